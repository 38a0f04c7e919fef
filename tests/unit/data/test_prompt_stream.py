from hypothesis import given
from hypothesis import strategies as st

from spinrun_worker.data import PromptStream
from spinrun_worker.records import PromptRecord

RECORDS = [PromptRecord(id=str(row), tokens=(row + 1,), text=f"question {row}", answer=str(row)) for row in range(7)]


def ids(prompts: list[PromptRecord]) -> list[str]:
    return [prompt.id for prompt in prompts]


@given(start=st.integers(0, 50), count=st.integers(0, 30), cut=st.integers(0, 30))
def test_what_is_drawn_depends_on_the_position_alone(start: int, count: int, cut: int):
    stream = PromptStream(RECORDS, seed=3)
    cut = min(cut, count)
    in_two_draws = PromptStream(RECORDS, seed=3).draw(start + cut, count - cut)
    assert stream.draw(start, cut) + in_two_draws == stream.draw(start, count)


@given(seed=st.integers(0, 1000), epoch=st.integers(0, 20))
def test_an_epoch_holds_every_prompt_once(seed: int, epoch: int):
    drawn = PromptStream(RECORDS, seed).draw(epoch * len(RECORDS), len(RECORDS))
    assert {prompt.tokens for prompt in drawn} == {record.tokens for record in RECORDS}


@given(start=st.integers(0, 50), count=st.integers(0, 60))
def test_ids_of_a_draw_are_unique_however_many_epochs_it_spans(start: int, count: int):
    drawn = ids(PromptStream(RECORDS, seed=0).draw(start, count))
    assert len(set(drawn)) == len(drawn) == count


def test_ids_name_row_and_epoch():
    drawn = PromptStream(RECORDS[:1], seed=0).draw(0, 3)
    assert ids(drawn) == ["0#0", "0#1", "0#2"]
    assert {prompt.answer for prompt in drawn} == {"0"}


def test_epochs_and_seeds_have_orders_of_their_own():
    def order(seed: int, epoch: int) -> list[tuple[int, ...]]:
        return [prompt.tokens for prompt in PromptStream(RECORDS, seed).draw(7 * epoch, 7)]

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_the_order_is_the_same_in_every_process():
    # Pinned: a resumed run must continue with the prompts that the first attempt would have drawn.
    assert ids(PromptStream(RECORDS, seed=0).draw(0, 7)) == ["0#0", "3#0", "2#0", "1#0", "4#0", "6#0", "5#0"]
