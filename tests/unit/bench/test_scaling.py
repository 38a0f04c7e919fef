"""The arithmetic of docs/scaling.md."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest

from bench import workload
from bench.scaling import DEMO, H100, SEVEN_B, TWO_CORES, limit_of_rollouts
from spinrun_cli.estimate.window import window

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_more_ranks_and_rollouts_divide_what_they_compute_and_nothing_else():
    one, four = window(SEVEN_B, H100), window(replace(SEVEN_B, ranks=32, rollouts=32), H100)

    assert four.train == pytest.approx(one.train / 4, rel=0.02)
    assert four.generate < one.generate / 2  # less than a quarter where a rollout's batch is no longer full
    assert four.publish == one.publish
    assert four.activate > one.activate


def test_a_checkpoint_costs_only_what_generation_does_not_hide():
    hidden = window(replace(SEVEN_B, ranks=1, rollouts=1), H100)
    shown = window(replace(SEVEN_B, prompts=16, ranks=1, rollouts=1), H100)

    assert hidden.checkpoint < hidden.generate
    assert hidden.total == pytest.approx(hidden.publish + hidden.activate + hidden.generate + hidden.reference + hidden.train)
    assert shown.total == pytest.approx(shown.publish + shown.activate + shown.checkpoint + shown.reference + shown.train)


def test_longer_windows_dilute_their_boundary():
    long = replace(SEVEN_B, prompts=8 * SEVEN_B.prompts, steps=8 * SEVEN_B.steps)

    assert window(long, H100).outside < window(SEVEN_B, H100).outside / 3


def test_a_volume_that_scales_with_its_readers_takes_the_limit_away():
    wide = replace(H100, volume_read=1e15)

    assert limit_of_rollouts(SEVEN_B, H100) < limit_of_rollouts(SEVEN_B, wide)


def test_the_arithmetic_is_near_the_windows_of_the_benchmark():
    measured = json.loads((DOCS / "benchmarks.json").read_text())["figures"]["online spinrun float32"][0]
    seconds = {name: median(each[f"timing/{name}_seconds"] for each in measured["phases"]) for name in ("train", "publish")}
    total = workload.PROMPTS_PER_STEP * workload.STEPS_PER_WINDOW / measured["prompts_per_second"]
    share = measured["pairs_per_second"] / measured["prompts_per_second"]
    generated = median(each["timing/generate_seconds"] for each in measured["phases"]) * measured["completion_tokens_per_second"]
    tokens = generated / (workload.PROMPTS_PER_STEP * workload.STEPS_PER_WINDOW * workload.ANSWERS)
    # No checkpoint in these windows, and the reference by the rollouts.
    work = replace(
        DEMO,
        answers=workload.ANSWERS,
        answer_tokens=tokens,
        pairs_per_prompt=share,
        optimizer="adamw",
        row_tokens=workload.TOKENS_PER_MICRO_BATCH,
        sequences=workload.GENERATION_SEQUENCES,
        checkpoints=0,
        reference_pass=False,
    )

    got = window(work, TWO_CORES)

    assert {name: getattr(got, name) for name in seconds} == pytest.approx(seconds, rel=0.4)
    assert got.total == pytest.approx(total, rel=0.25)
