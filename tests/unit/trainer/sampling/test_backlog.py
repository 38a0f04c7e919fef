import logging
from collections.abc import Sequence
from typing import Any

import pytest

from spinrun_protocol.wire import Sample, SampleGroup
from spinrun_worker.errors import RunError
from spinrun_worker.records import PromptRecord
from spinrun_worker.trainer.sampling.backlog import Backlog
from spinrun_worker.trainer.sampling.limits import SamplingLimits


def backlog_of(count: int, **limits: Any) -> Backlog:
    """So many prompts of three tokens each, p0 first."""
    prompts = [PromptRecord(f"p{number}", (1, 2, number), "question") for number in range(count)]
    return Backlog(prompts, SamplingLimits(**limits))


def take(
    backlog: Backlog, agent: str, count: int = 100, *, except_for: Sequence[str] = (), candidates: Sequence[str] = ("a", "b")
) -> list[str]:
    return [prompt.id for prompt in backlog.take(agent, count, except_for=except_for, candidates=candidates)]


def group(name: str) -> SampleGroup:
    return SampleGroup(id=name, version=7, digest="d", samples=(Sample(tokens=(1,), text="answer", finish_reason="stop"),))


def test_prompts_are_taken_once_and_in_order():
    backlog = backlog_of(5)
    assert take(backlog, "a", 2) == ["p0", "p1"]
    assert take(backlog, "b", 2) == ["p2", "p3"]
    assert take(backlog, "a", 2) == ["p4"]
    assert take(backlog, "a", 2) == []


def test_long_prompts_are_taken_in_smaller_batches():
    backlog = backlog_of(5, tokens_per_call=5)
    assert take(backlog, "a") == ["p0", "p1"]


def test_a_batch_has_one_prompt_however_long_it_is():
    backlog = backlog_of(2, tokens_per_call=1)
    assert take(backlog, "a") == ["p0"]


def test_prompts_that_an_agent_is_answering_stay_for_others():
    backlog = backlog_of(3)
    assert take(backlog, "a", except_for=["p1"]) == ["p0", "p2"]
    assert take(backlog, "b") == ["p1"]


def test_prompts_that_are_put_back_are_the_next_ones():
    backlog = backlog_of(4)
    taken = take(backlog, "a", 1)
    backlog.put_back([*taken, "p2"])
    assert take(backlog, "b", 2) == ["p0", "p1"]
    assert take(backlog, "b") == ["p2", "p3"], "what was queued keeps its place"


def test_prompts_that_are_appended_are_the_last_ones():
    backlog = backlog_of(4)
    taken = take(backlog, "a", 2)
    backlog.append(["p2", *taken])
    assert take(backlog, "b") == ["p2", "p3", "p0", "p1"]


def test_a_prompt_is_not_given_again_to_an_agent_that_failed_it_while_there_is_another_one():
    backlog = backlog_of(1)
    backlog.fail("p0", "a", "vLLM crashed", now=0.0)
    assert take(backlog, "a") == []
    assert take(backlog, "b") == ["p0"]


def test_a_prompt_that_failed_on_all_candidates_is_given_to_any_of_them():
    backlog = backlog_of(1)
    backlog.fail("p0", "a", "vLLM crashed", now=0.0)
    assert take(backlog, "a", candidates=["a"]) == ["p0"]


def test_done_prompts_are_not_taken_even_where_they_were_queued_again():
    backlog = backlog_of(3)
    backlog.append(take(backlog, "a"))
    backlog.answer(group("p0"))
    backlog.drop("p1", "too long")
    assert backlog.num_done == 2
    assert take(backlog, "b") == ["p2"]


def test_a_prompt_that_fails_too_often_ends_the_run():
    backlog = backlog_of(2, tries=3, outage_seconds=0.0)
    backlog.fail("p1", "a", "first", now=0.0)
    backlog.fail("p1", "b", "second", now=0.0)
    backlog.fail("p0", "b", "another prompt's", now=0.0)
    with pytest.raises(RunError, match="prompt p1 failed 3 times on 2 agents; the last time on a: third"):
        backlog.fail("p1", "a", "third", now=0.0)


def test_failures_during_an_outage_cost_one_try():
    backlog = backlog_of(2, tries=2, outage_seconds=60.0)
    for now in (0.0, 1.0, 59.0):
        backlog.fail("p0", "a", "vLLM does not answer", now=now)
    with pytest.raises(RunError, match="prompt p0 failed 2 times"):
        backlog.fail("p0", "a", "vLLM does not answer", now=60.0)


def test_a_failure_costs_a_try_when_another_prompt_was_done_since_the_last_one():
    backlog = backlog_of(2, tries=2, outage_seconds=60.0)
    backlog.fail("p0", "a", "vLLM does not answer", now=0.0)
    backlog.answer(group("p1"))
    with pytest.raises(RunError, match="prompt p0 failed 2 times"):
        backlog.fail("p0", "a", "vLLM does not answer", now=1.0)


def test_the_result_is_in_the_order_of_the_prompts_without_those_that_were_dropped(caplog: pytest.LogCaptureFixture):
    backlog = backlog_of(5)
    for name in ("p4", "p0"):
        backlog.answer(group(name))
    for name, reason in {"p3": "a fault of its own", "p2": "too long", "p1": "too long"}.items():
        backlog.drop(name, reason)
    with caplog.at_level(logging.WARNING):
        assert [answer.id for answer in backlog.result()] == ["p0", "p4"]
    assert caplog.messages == ["3 of 5 prompts cannot be answered; 2 of them, such as p2: too long"]


def test_a_result_without_any_answer_ends_the_run():
    backlog = backlog_of(1)
    backlog.drop("p0", "too long")
    with pytest.raises(RunError, match="1 of 1 prompts cannot be answered; 1 of them, such as p0: too long"):
        backlog.result()


def test_two_prompts_with_the_same_id_are_refused():
    prompt = PromptRecord("p0", (1,), "question")
    with pytest.raises(ValueError, match="the same id"):
        Backlog([prompt, prompt], SamplingLimits())


def test_the_backlog_knows_its_prompts():
    backlog = backlog_of(3)
    take(backlog, "a")
    assert len(backlog) == 3
    assert "p2" in backlog
    assert "p3" not in backlog
