"""The arithmetic of docs/scaling.md."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from bench import workload
from bench.scaling import DEMO, H100, SEVEN_B, TWO_CORES, limit_of_rollouts
from spinrun_cli.estimate.memory import rank_memory
from spinrun_cli.estimate.window import train_seconds, window

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


FIGURES: dict[str, Any] = json.loads((DOCS / "benchmarks.json").read_text())["figures"]
BENCH = replace(
    DEMO,
    answers=workload.ANSWERS,
    optimizer="adamw",
    row_tokens=workload.TOKENS_PER_MICRO_BATCH,
    sequences=workload.GENERATION_SEQUENCES,
    batched_tokens=2048,
    cache_bytes=workload.KV_CACHE_BYTES,
    # No checkpoint in these windows, and the reference by the rollouts.
    checkpoints=0,
    reference_pass=False,
)


@pytest.mark.parametrize(
    ("dtype", "measured"), [(dtype, each) for dtype in ("float32", "bfloat16") for each in FIGURES[f"online spinrun {dtype}"]]
)
def test_the_arithmetic_is_near_the_windows_of_the_benchmark(dtype: str, measured: dict[str, Any]):
    names = ("publish", "activate", "generate", "train")
    seconds = {name: median(each[f"timing/{name}_seconds"] for each in measured["phases"]) for name in names}
    prompts = workload.PROMPTS_PER_STEP * workload.STEPS_PER_WINDOW
    work = replace(
        BENCH,
        answer_tokens=seconds["generate"] * measured["completion_tokens_per_second"] / (prompts * workload.ANSWERS),
        pairs_per_prompt=measured["pairs_per_second"] / measured["prompts_per_second"],
        published_dtype=dtype,
        rollout_dtype=dtype,
    )

    got = window(work, TWO_CORES)

    assert {name: getattr(got, name) for name in seconds} == pytest.approx(seconds, rel=0.4)
    assert got.total == pytest.approx(prompts / measured["prompts_per_second"], rel=0.25)


@pytest.mark.parametrize(
    ("name", "dtype", "row"),
    [
        ("train", "float32", workload.TOKENS_PER_MICRO_BATCH),
        ("train", "bfloat16", workload.TOKENS_PER_MICRO_BATCH),
        ("memory", "float32", workload.FRUGAL_TOKENS_PER_MICRO_BATCH),
    ],
)
def test_the_arithmetic_is_near_the_train_steps_of_the_benchmark(name: str, dtype: str, row: int):
    # Sixteen pairs, of 1119 tokens of which 408 are completions.
    step = replace(BENCH, prompts=16, steps=1, pairs_per_prompt=1, prompt_tokens=711 / 16, answer_tokens=408 / 32)
    work = replace(step, compute_dtype=dtype, row_tokens=row)

    for measured in FIGURES[f"{name} spinrun {dtype}"]:
        assert train_seconds(work, TWO_CORES) == pytest.approx(median(measured["steps"]), rel=0.25)
        assert rank_memory(work, TWO_CORES).total == pytest.approx(measured["peak_bytes"], rel=0.15)
