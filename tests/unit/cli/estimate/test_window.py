"""Seconds of a window, by hand for one small shape, and against steps that were measured on a GPU."""

from dataclasses import replace

import pytest

from spinrun_cli.estimate.hardware import CARDS, Hardware, of_card
from spinrun_cli.estimate.shape import KNOWN, Shape
from spinrun_cli.estimate.window import forward_flops, generation, reference_seconds, train_seconds, window
from spinrun_cli.estimate.work import Work

TINY = Shape(layers=2, hidden=4, heads=2, kv_heads=1, head_dim=2, intermediate=8, vocabulary=10, tied=False)
PLAIN = Hardware(
    name="by hand",
    is_gpu=True,
    bfloat16=1000.0,
    float32=500.0,
    memory=1e9,
    bandwidth=1e9,
    link=1e9,
    train_utilization=0.5,
    launch_seconds=0.0,
    prefill_utilization=0.5,
    decode_utilization=0.25,
    bandwidth_utilization=0.5,
    iteration_seconds=0.0,
    token_seconds=0.0,
    volume_write=100.0,
    volume_read=100.0,
    rollout_read=1e9,
    load=1e9,
    boundary_seconds=0.0,
    process_bytes=0.0,
    server_bytes=0.0,
    sequences=4,
    batched_tokens=16,
)
WORK = Work(
    shape=TINY,
    prompts=8,
    answers=2,
    prompt_tokens=6,
    answer_tokens=2,
    longest_prompt=6,
    longest_answer=4,
    pairs_per_prompt=0.5,
    steps=2,
    row_tokens=20,
    sequences=4,
    batched_tokens=16,
)


def test_a_forward_pass_computes_prompts_once_and_logits_of_completions():
    # Four pairs of ten tokens through 308 weights, attention over ten keys in two layers of four; 4 × 4 completions of 10 × 4.
    assert forward_flops(WORK) == (2 * 308 + 2 * 2 * 4 * 10) * 40 + 2 * 40 * 16


def test_training_is_three_times_a_forward_pass():
    forward = forward_flops(WORK) / (1000 * 0.5)

    assert train_seconds(WORK, PLAIN) == pytest.approx(3 * forward, rel=1e-3)
    assert train_seconds(replace(WORK, activation_checkpointing=True), PLAIN) == pytest.approx(4 * forward, rel=1e-3)
    assert train_seconds(replace(WORK, adapters=384), PLAIN) == pytest.approx(2 * forward, rel=1e-3)
    assert train_seconds(replace(WORK, ranks=2), PLAIN) == pytest.approx(3 * forward / 2, rel=1e-3)
    # The first of two steps gives its own reference.
    assert reference_seconds(WORK, PLAIN) == pytest.approx(forward / 2, rel=1e-3)
    assert reference_seconds(replace(WORK, reference_pass=False), PLAIN) == 0


def test_passes_over_the_weights_are_bound_by_memory():
    slow = replace(PLAIN, bandwidth=1e-3, bfloat16=1e15, float32=1e15)
    # Of each of 388 weights in two steps, in fp32: read and written 3 + 1 + 4 + 1 times by AdamW, 3 times for the gradients of
    # the one row; converted forward and backward, 6 bytes each.
    bytes_of_step = 4 * 9 + 4 * 3 + 2 * 6

    assert train_seconds(WORK, slow) == pytest.approx(2 * bytes_of_step * 388 / (1e-3 * 0.5))


def test_ranks_wait_for_what_they_exchange():
    slow = replace(PLAIN, link=1.0)
    # Two gatherings in bfloat16 and one reduction in fp32, of what three of four ranks hold, for each row of both steps.
    exchanged = 2 * (2 * 2 + 4) * 388 * 3 / 4

    assert train_seconds(replace(WORK, ranks=4), slow) == pytest.approx(exchanged, rel=1e-3)


def test_generation_is_prompts_once_and_a_token_for_each_sequence_of_a_batch():
    got = generation(WORK, PLAIN)

    # 16 answers of two tokens, four at a time: eight batches of four, through the body and the output matrix.
    assert got.batch == 4
    assert got.prefill == pytest.approx(2 * 308 * 8 * 6 / (1000 * 0.5))
    assert got.seconds - got.prefill == pytest.approx(8 * 2 * (308 + 40) * 4 / (1000 * 0.25))
    assert got.bound == "arithmetic"


def test_few_answers_take_as_long_as_the_longest_of_them():
    got = generation(replace(WORK, prompts=1, sequences=100), PLAIN)

    # Two answers of two tokens on average: the longer one has four, so that one is left in half of the batches.
    assert got.batch == 1


def test_reading_weights_bounds_small_batches():
    got = generation(WORK, replace(PLAIN, bandwidth=1.0))

    # 388 weights and, of four sequences with seven tokens each, eight numbers; two bytes each.
    assert got.seconds - got.prefill == pytest.approx(8 * (388 + 4 * 7 * 8) * 2 / 0.5)
    assert got.bound == "memory bandwidth"


def test_a_boundary_is_written_once_and_read_by_all_rollouts():
    got = window(replace(WORK, rollouts=2), PLAIN)

    assert got.publish == pytest.approx(2 * 388 / 100)
    assert got.activate == pytest.approx(2 * 388 / (100 / 2), rel=1e-3)
    assert got.checkpoint == pytest.approx(12 * 388 / 100)
    assert got.total == pytest.approx(got.publish + got.activate + max(got.generate, got.checkpoint) + got.reference + got.train)


def test_adapters_are_all_that_is_published():
    got = window(replace(WORK, adapters=384), PLAIN)

    assert got.publish == pytest.approx(4 * 384 / 100)
    assert got.checkpoint == pytest.approx(12 * 384 / 100)


def test_rollouts_ahead_generate_while_the_trainer_trains():
    got = window(replace(WORK, overlap=True, checkpoints=0), PLAIN)

    assert got.total == pytest.approx(got.publish + got.activate + max(got.generate, got.reference + got.train))


def test_processes_on_the_same_cores_share_them():
    alone, shared = (replace(WORK, ranks=2, rollouts=2, shares_cores=shared) for shared in (False, True))

    assert train_seconds(shared, PLAIN) == pytest.approx(2 * train_seconds(alone, PLAIN))
    assert generation(shared, PLAIN).seconds == pytest.approx(2 * generation(alone, PLAIN).seconds)


@pytest.mark.parametrize(("size", "tokens_per_second"), [("0.5B", 33_000), ("1.5B", 25_700), ("3B", 18_600)])
def test_steps_measured_on_an_h200_are_near(size: str, tokens_per_second: float):
    """Tokens with each prompt counted twice, of 48,232; the same runs as in test_memory."""
    work = Work(KNOWN[f"Qwen/Qwen2.5-{size}-Instruct"], 32, 2, 379, 378, 512, 512, pairs_per_prompt=1, steps=1, row_tokens=16384)

    assert train_seconds(work, of_card(CARDS["H200"])) == pytest.approx(48_232 / tokens_per_second, rel=0.15)
