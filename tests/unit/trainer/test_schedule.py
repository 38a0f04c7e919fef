import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinrun_api.spec import Duration, SpinRunSpec
from spinrun_worker.trainer.schedule import Schedule, divide, make_schedule, split_into_steps


def spec(duration: Duration, *, prompts_per_step: int = 16, **method: int) -> SpinRunSpec:
    return SpinRunSpec.model_validate(
        {
            "model": {"source": "/model"},
            "data": {"prompts": {"source": "arithmetic"}},
            "preference": {"rule": {"kind": "lastNumber"}},
            "method": {"refUpdateFreq": 4} | method,
            "trainer": {"promptsPerStep": prompts_per_step},
            "duration": duration.to_document(),
        }
    )


@pytest.mark.parametrize(
    ("duration", "want_windows", "want_steps"),
    [
        pytest.param(Duration(windows=5), 5, 20, id="windows"),
        pytest.param(Duration(steps=10), 3, 10, id="steps that do not fill the last window"),
        pytest.param(Duration(epochs=1), 3, 12, id="an epoch is rounded up to whole windows"),
        pytest.param(Duration(epochs=0.5), 2, 8, id="half an epoch"),
    ],
)
def test_duration_sets_windows_and_steps(duration: Duration, want_windows: int, want_steps: int) -> None:
    schedule = make_schedule(spec(duration), num_prompts=135)
    assert (schedule.windows, schedule.total_steps) == (want_windows, want_steps)


def test_the_last_window_is_shorter_when_steps_do_not_fill_it() -> None:
    schedule = make_schedule(spec(Duration(steps=10)), num_prompts=135)
    assert [schedule.steps(window) for window in range(3)] == [4, 4, 2]
    assert schedule.prompts(2) == (128, 32)


@pytest.mark.parametrize(
    ("method", "want"),
    [
        pytest.param({}, [0, 1, 2, 3, 4, 5], id="the version sampled from"),
        pytest.param({"refUpdateFreq": 4, "rolloutUpdateFreq": 4}, [0, 1, 2, 3, 4, 5], id="the same, said in full"),
        pytest.param({"refUpdateFreq": 6, "rolloutUpdateFreq": 2}, [0, 0, 0, 3, 3, 3], id="an older one for three windows"),
        pytest.param({"refUpdateFreq": 0, "rolloutUpdateFreq": 2}, [0, 0, 0, 0, 0, 0], id="the first for ever"),
    ],
)
def test_a_window_is_compared_with_the_newest_reference(method: dict[str, int], want: list[int]) -> None:
    schedule = make_schedule(spec(Duration(windows=6), **method), num_prompts=135)
    assert [schedule.reference(window) for window in range(6)] == want


@pytest.mark.parametrize(("overlap", "want"), [(0, [0, 1, 2, 3]), (1, [0, 0, 1, 2])])
def test_rollouts_that_are_ahead_answer_with_the_version_before(overlap: int, want: list[int]) -> None:
    schedule = make_schedule(spec(Duration(windows=4), overlap=overlap), num_prompts=135)
    assert [schedule.sampler(window) for window in range(4)] == want


def test_a_window_lasts_until_the_rollouts_get_new_weights() -> None:
    schedule = make_schedule(spec(Duration(windows=6), refUpdateFreq=6, rolloutUpdateFreq=2), num_prompts=135)
    assert [schedule.steps(window) for window in range(6)] == [2] * 6
    assert schedule.prompts(5) == (160, 32)


@pytest.mark.parametrize("duration", [Duration(windows=4), Duration(epochs=1.7)], ids=["windows", "epochs"])
def test_a_window_that_replays_others_has_as_many_steps_for_each_and_draws_no_more_prompts(duration: Duration) -> None:
    schedule = make_schedule(spec(duration, replayWindows=2), num_prompts=135)
    assert [list(schedule.replayed(window)) for window in range(4)] == [[], [0], [0, 1], [1, 2]]
    assert [schedule.steps(window) for window in range(4)] == [4, 8, 12, 12]
    assert [schedule.prompts(window) for window in range(4)] == [(0, 64), (64, 64), (128, 64), (192, 64)]
    assert (schedule.windows, schedule.total_steps) == (4, 36)


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 12))
def test_steps_lie_in_the_windows_that_begin_before_them(windows: int, per_window: int, replay: int) -> None:
    method = {"refUpdateFreq": per_window, "replayWindows": replay}
    schedule = make_schedule(spec(Duration(windows=windows), **method), num_prompts=1)
    places = [(window, index) for window in range(windows) for index in range(per_window * (1 + min(window, replay)))]
    assert [schedule.locate(step) for step in range(schedule.total_steps)] == places
    assert [schedule.first_step(window) for window, index in places if index == 0] == [
        step for step, (_, index) in enumerate(places) if index == 0
    ]
    assert schedule.locate(schedule.total_steps) == (schedule.windows, 0) == (windows, 0)


@given(st.integers(1, 500), st.integers(1, 40), st.integers(1, 40))
def test_windows_partition_steps_and_prompts(total: int, per_window: int, per_step: int) -> None:
    schedule = Schedule(total, per_window, per_step)
    position = 0
    for window in range(schedule.windows):
        start, count = schedule.prompts(window)
        assert start == position
        assert 0 < schedule.steps(window) <= per_window
        position += count
    assert position == total * per_step
    assert schedule.steps(schedule.windows) == 0


@given(st.lists(st.integers(), max_size=100), st.integers(1, 20))
def test_divide_keeps_order_and_is_even(items: list[int], parts: int) -> None:
    batches = divide(items, parts)
    assert len(batches) == parts
    assert [item for batch in batches for item in batch] == items
    sizes = [len(batch) for batch in batches]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_each_step_has_its_share_of_every_window() -> None:
    steps = split_into_steps({2: "abcdef", 1: "123"}, 3)
    assert [{window: "".join(share) for window, share in step.items()} for step in steps] == [
        {2: "ab", 1: "1"},
        {2: "cd", 1: "2"},
        {2: "ef", 1: "3"},
    ]
