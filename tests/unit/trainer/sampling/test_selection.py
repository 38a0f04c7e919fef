"""Which prompts of the stream lie within the bounds of their pass rates."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinrun_api.spec import PassRateBand
from spinrun_worker.data import Part, PromptStream, row_and_epoch
from spinrun_worker.records import PassRate, PromptRecord
from spinrun_worker.trainer.sampling.selection import AllPrompts, histogram, select

RATES = (0.0, 0.25, 0.5, 0.75, 1.0)
RECORDS = [PromptRecord(str(row), (row + 1,), f"ask {row}") for row in range(5)]
STREAM = PromptStream([Part(RECORDS)], seed=0)
EPOCH = len(STREAM)
ALL_ASKED = {str(row): PassRate(rate, 0) for row, rate in enumerate(RATES)}


def rows(positions: object) -> list[tuple[str, int]]:
    return [STREAM.row(position) for position in positions]  # type: ignore[attr-defined]


def test_without_bounds_every_position_is_taken() -> None:
    assert [*AllPrompts().select(0, start=3, count=4).positions] == [3, 4, 5, 6]


def test_prompts_that_were_never_asked_are_drawn() -> None:
    assert select(STREAM, PassRateBand(min=0.5, max=0.5), {}, start=2, count=4).positions == [2, 3, 4, 5]


def test_bounds_are_inside() -> None:
    found = select(STREAM, PassRateBand(min=0.25, max=0.75), ALL_ASKED, start=EPOCH, count=3)
    assert {row for row, _ in rows(found.positions)} == {"1", "2", "3"}
    assert (found.note, found.widened) == ("", 0.0)


@pytest.mark.parametrize("after", [1, 3])
def test_a_prompt_outside_comes_back_after_so_many_epochs(after: int) -> None:
    band = PassRateBand(min=0.25, max=0.75, retry_after_epochs=after)
    found = select(STREAM, band, ALL_ASKED, start=EPOCH, count=5 * EPOCH)
    for outside in ("0", "4"):
        epochs = [epoch for row, epoch in rows(found.positions) if row == outside]
        assert epochs[0] == after + 1


def test_a_prompt_whose_rate_is_of_a_later_epoch_is_left_out_from_there() -> None:
    known = {"0": PassRate(0.0, 4)}
    found = select(STREAM, PassRateBand(min=0.5, retry_after_epochs=2), known, start=5 * EPOCH, count=18)
    assert [epoch for row, epoch in rows(found.positions) if row == "0"] == [7, 8]


def test_where_an_epoch_has_no_prompt_inside_the_window_ends_and_the_histogram_is_said() -> None:
    found = select(STREAM, PassRateBand(min=0.3, max=0.4), ALL_ASKED, start=EPOCH, count=3)
    assert not found.positions
    assert found.note == (
        "method.sampling.passRate: for an epoch no prompt has had a pass rate from 0.3 to 0.4. "
        "Prompts by pass rate: 0: 1, below 0.25: 0, below 0.5: 1, below 0.75: 1, below 1: 1, 1: 1"
    )


def test_prompts_before_an_epoch_without_any_are_kept() -> None:
    known = {row: rate for row, rate in ALL_ASKED.items() if row != STREAM.row(EPOCH)[0]}
    first = select(STREAM, PassRateBand(min=0.3, max=0.4), known, start=EPOCH, count=1)
    assert first.positions == [EPOCH]
    assert not first.note


@pytest.mark.parametrize("step", [0.02, 0.05, 0.1])
def test_the_bounds_are_widened_step_by_step_until_there_is_a_prompt_inside(step: float) -> None:
    band = PassRateBand(min=0.35, max=0.35, when_none="widen", widen_by=step)
    found = select(STREAM, band, ALL_ASKED, start=EPOCH, count=2)
    assert {row for row, _ in rows(found.positions)} == {"1"}, "0.25 is 0.1 below"
    assert found.widened == 0.1
    assert found.positions[0] < 2 * EPOCH, "of the epoch that had none"
    assert found.note.endswith("The window takes prompts with pass rates from 0.25 to 0.45")


@given(
    known=st.dictionaries(st.sampled_from("01234"), st.tuples(st.floats(0, 1), st.integers(0, 6))),
    bounds=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    retry=st.integers(1, 5),
    widens=st.booleans(),
    start=st.integers(0, 40),
    count=st.integers(1, 30),
)
@settings(deadline=None)
def test_a_selection_ends_and_holds_what_lies_inside(
    known: dict[str, tuple[float, int]], bounds: list[float], retry: int, widens: bool, start: int, count: int
) -> None:
    rates = {row: PassRate(rate, epoch) for row, (rate, epoch) in known.items()}
    band = PassRateBand(min=bounds[0], max=bounds[1], retry_after_epochs=retry, when_none="widen" if widens else "end")
    found = select(STREAM, band, rates, start, count)
    assert list(found.positions) == sorted({*found.positions})
    assert len(found.positions) == count or (not widens and not found.positions and found.note)
    for row, epoch in rows(found.positions):
        rate = rates.get(row)
        low, high = band.min - found.widened - 1e-9, band.max + found.widened + 1e-9
        assert rate is None or low <= rate.rate <= high or epoch > rate.epoch + retry
    cut = select(STREAM, band, rates, start, max(1, count // 2))
    assert list(cut.positions) == list(found.positions)[: len(cut.positions)], (
        "what is found first does not depend on how many are wanted"
    )


@pytest.mark.parametrize("start", range(EPOCH, 2 * EPOCH))
def test_the_one_prompt_inside_is_found_wherever_the_window_begins(start: int) -> None:
    """From the middle of one epoch to the middle of the next, not every prompt comes by."""
    band = PassRateBand(min=0.5, max=0.5, retry_after_epochs=9)
    assert {row for row, _ in rows(select(STREAM, band, ALL_ASKED, start, count=3).positions)} == {"2"}


def test_the_one_prompt_inside_is_found_in_a_source_that_gives_few_prompts() -> None:
    """The source of five prompts gives one in a hundred: its epoch takes five hundred positions."""
    few = Part([PromptRecord(f"few/{row}", (1,), "") for row in range(5)], "few", 1.0)
    many = Part([PromptRecord(f"many/{row}", (1,), "") for row in range(3)], "many", 99.0)
    stream = PromptStream([few, many], seed=0)
    known = {record.id: PassRate(0.0, 0) for part in (few, many) for record in part.records}
    del known["few/4"]
    band = PassRateBand(min=0.5, retry_after_epochs=1000)
    assert {stream.row(position)[0] for position in select(stream, band, known, start=0, count=3).positions} == {"few/4"}


def test_the_histogram_has_zero_and_one_apart_from_what_is_between() -> None:
    rates = [0.0, 0.0, 0.1, 0.25, 0.3, 0.99, 1.0]
    assert histogram(PassRate(rate, 0) for rate in rates) == "0: 2, below 0.25: 1, below 0.5: 2, below 0.75: 0, below 1: 1, 1: 1"


def test_row_and_epoch_are_read_from_an_id() -> None:
    assert row_and_epoch("gsm8k#main/12#3") == ("gsm8k#main/12", 3)
