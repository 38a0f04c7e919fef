from hypothesis import given, settings
from hypothesis import strategies as st

from spinrun_worker.data import Part, PromptStream
from spinrun_worker.records import PromptRecord

RECORDS = [PromptRecord(id=str(row), tokens=(row + 1,), text=f"question {row}", answer=str(row)) for row in range(7)]


def ids(prompts: list[PromptRecord]) -> list[str]:
    return [prompt.id for prompt in prompts]


@given(start=st.integers(0, 50), count=st.integers(0, 30), cut=st.integers(0, 30))
def test_what_is_drawn_depends_on_the_position_alone(start: int, count: int, cut: int):
    stream = PromptStream([Part(RECORDS)], seed=3)
    cut = min(cut, count)
    in_two_draws = PromptStream([Part(RECORDS)], seed=3).draw(start + cut, count - cut)
    assert stream.draw(start, cut) + in_two_draws == stream.draw(start, count)


@given(seed=st.integers(0, 1000), epoch=st.integers(0, 20))
def test_an_epoch_holds_every_prompt_once(seed: int, epoch: int):
    drawn = PromptStream([Part(RECORDS)], seed).draw(epoch * len(RECORDS), len(RECORDS))
    assert {prompt.tokens for prompt in drawn} == {record.tokens for record in RECORDS}


@given(start=st.integers(0, 50), count=st.integers(0, 60))
def test_ids_of_a_draw_are_unique_however_many_epochs_it_spans(start: int, count: int):
    drawn = ids(PromptStream([Part(RECORDS)], seed=0).draw(start, count))
    assert len(set(drawn)) == len(drawn) == count


def test_ids_name_row_and_epoch():
    drawn = PromptStream([Part(RECORDS[:1])], seed=0).draw(0, 3)
    assert ids(drawn) == ["0#0", "0#1", "0#2"]
    assert {prompt.answer for prompt in drawn} == {"0"}


def test_epochs_and_seeds_have_orders_of_their_own():
    def order(seed: int, epoch: int) -> list[tuple[int, ...]]:
        return [prompt.tokens for prompt in PromptStream([Part(RECORDS)], seed).draw(7 * epoch, 7)]

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_the_order_is_the_same_in_every_process():
    # Pinned: a resumed run must continue with the prompts that the first attempt would have drawn.
    assert ids(PromptStream([Part(RECORDS)], seed=0).draw(0, 7)) == ["0#0", "3#0", "2#0", "1#0", "4#0", "6#0", "5#0"]


# --- several sources -----------------------------------------------------------------------------------------------


def parts(*weights: float, sizes: tuple[int, ...] = (7, 3, 11, 5)) -> list[Part]:
    return [
        Part([PromptRecord(f"{name}/{row}", (1,), "") for row in range(size)], name, weight)
        for name, weight, size in zip("abcd", weights, sizes, strict=False)
    ]


weights = st.lists(st.floats(0.01, 100), min_size=1, max_size=4)


@given(weights=weights, start=st.integers(0, 50), count=st.integers(0, 30), cut=st.integers(0, 30))
@settings(deadline=None)
def test_what_is_drawn_of_several_sources_depends_on_the_position_alone(weights: list[float], start: int, count: int, cut: int):
    stream, cut = PromptStream(parts(*weights), seed=3), min(cut, count)
    in_two_draws = PromptStream(parts(*weights), seed=3).draw(start + cut, count - cut)
    assert stream.draw(start, cut) + in_two_draws == stream.draw(start, count)
    assert [f"{row}#{epoch}" for row, epoch in map(stream.row, range(start, start + count))] == ids(stream.draw(start, count))
    assert len({*ids(stream.draw(start, count))}) == count


@given(weights=weights, count=st.integers(1, 500))
@settings(deadline=None)
def test_each_source_gives_its_share_however_many_prompts_are_drawn(weights: list[float], count: int):
    drawn = ids(PromptStream(parts(*weights), seed=0).draw(0, count))
    for part in parts(*weights):
        share = part.weight / sum(weights)
        assert abs(sum(each.startswith(f"{part.name}/") for each in drawn) - share * count) < len(weights)


@given(weights=weights)
@settings(deadline=None)
def test_each_source_has_epochs_of_its_own(weights: list[float]):
    for part in parts(*weights):
        drawn = ids(PromptStream(parts(*weights), seed=0).draw(0, 300))
        own = [each.partition("#")[0] for each in drawn if each.startswith(f"{part.name}/")]
        size = len(part.records)
        whole = [own[start : start + size] for start in range(0, len(own) - size, size)]
        assert all({*epoch} == {record.id for record in part.records} for epoch in whole)


def test_the_rows_of_all_sources_are_known():
    assert sorted(PromptStream(parts(1.0, 2.0, sizes=(2, 1)), seed=0).rows()) == ["a/0", "a/1", "b/0"]


def test_one_source_is_drawn_as_without_weights():
    assert PromptStream([Part(RECORDS, weight=7.0)], seed=5).draw(3, 20) == PromptStream([Part(RECORDS)], seed=5).draw(3, 20)


def test_the_mixture_is_the_same_in_every_process():
    # Pinned, as the order within an epoch is.
    drawn = ids(PromptStream(parts(0.5, 0.3, 0.2), seed=0).draw(0, 8))
    assert drawn == ["a/2#0", "b/0#0", "a/6#0", "b/1#0", "a/5#0", "c/10#0", "a/0#0", "b/2#0"]


# --- ranks ---------------------------------------------------------------------------------------------------------


def test_prompts_are_drawn_by_rank_and_those_of_one_rank_in_another_order_in_each_epoch():
    stream = PromptStream([Part(RECORDS, ranks=(2.0, 1.0, 1.0, 0.0, 1.0, 1.0, 2.0))], seed=0)
    epochs = [[each.partition("#")[0] for each in ids(stream.draw(start, 7))] for start in range(0, 35, 7)]
    assert all(epoch[0] == "3" and {*epoch[5:]} == {"0", "6"} for epoch in epochs)
    assert len({tuple(epoch[1:5]) for epoch in epochs}) > 1
