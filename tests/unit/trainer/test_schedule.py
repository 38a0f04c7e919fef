import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinrun_api.spec import Duration, SpinRunSpec
from spinrun_worker.trainer.schedule import Schedule, divide, make_schedule


def spec(duration: Duration, *, ref_update_freq: int = 4, prompts_per_step: int = 16) -> SpinRunSpec:
    return SpinRunSpec.model_validate(
        {
            "model": {"source": "/model"},
            "data": {"prompts": {"source": "arithmetic"}},
            "preference": {"rule": {"kind": "lastNumber"}},
            "method": {"refUpdateFreq": ref_update_freq},
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
