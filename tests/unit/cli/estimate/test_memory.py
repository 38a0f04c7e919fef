"""Memory of ranks and rollouts, by hand for one small shape, and against steps that were measured on a GPU."""

from dataclasses import replace

import pytest

from spinrun_cli.estimate.hardware import CARDS, GB, Hardware, Speeds, of_card, of_machine
from spinrun_cli.estimate.memory import Memory, activation_bytes, loading_memory, rank_memory, rollout_memory
from spinrun_cli.estimate.shape import KNOWN, Shape
from spinrun_cli.estimate.work import Work

TINY = Shape(layers=2, hidden=4, heads=2, kv_heads=1, head_dim=2, intermediate=8, vocabulary=10, tied=False)
MACHINE = of_machine(Speeds(bfloat16=4e11, float32=2e11, copy=1e10, memory=25e9))
H100 = of_card(CARDS["H100"])
WORK = Work(
    shape=TINY,
    prompts=8,
    answers=2,
    prompt_tokens=6,
    answer_tokens=2,
    longest_prompt=300,
    longest_answer=2,
    pairs_per_prompt=1,
    steps=2,
    row_tokens=20,
    compute_dtype="float32",
    rollout_dtype="float32",
    sequences=4,
    batched_tokens=16,
    cache_bytes=1000,
    shares_cores=True,
)


def parts(memory: Memory) -> dict[str, float]:
    return {part.name: part.bytes for part in memory.parts if part.name != "process"}


def test_a_rank_holds_weights_gradients_and_what_the_optimizer_keeps():
    got = parts(rank_memory(WORK, MACHINE))

    # Of each token and layer, in fp32: norms 6 × 4, queries and outputs 2 × 4, keys and values 2 × 2, feed-forward 4 × 8.
    assert activation_bytes(WORK, MACHINE) == 2 * 4 * (24 + 8 + 4 + 32)
    # A step has four pairs of ten tokens, and a row takes the longest pair, of 304 tokens: all forty.
    assert got == {
        "weights": 4 * 388,
        "gradients": 4 * 388,
        "optimizer": 8 * 388,
        "copies": 2 * 4 * 40,  # of a table of ten times four
        "activations": 544 * 40,
        "logits": 12 * (40 * 4 / 10) * 10,  # four tokens in ten are completions
    }


def test_short_pairs_on_a_cpu_keep_padded_copies_and_attention_weights():
    short = replace(WORK, longest_prompt=6)

    # Queries three times in place of twice, keys and values four times, and two heads' weights for ten tokens each.
    assert activation_bytes(short, MACHINE) == 2 * 4 * (24 + 12 + 8 + 20 + 32)
    assert rank_memory(short, MACHINE).parts[5].bytes == 768 * 20


def test_gradients_take_the_place_of_the_activations_of_a_single_row():
    # Two tokens in a step, of 544 bytes each.
    one_row = replace(WORK, prompts=2, steps=2, prompt_tokens=1, answer_tokens=0.5)

    assert parts(rank_memory(one_row, MACHINE))["gradients"] == 4 * 388 - 2 * 544
    assert parts(rank_memory(replace(one_row, prompts=40), MACHINE))["gradients"] == 4 * 388


def test_ranks_share_what_is_trained_but_not_what_they_gather():
    several_rows = replace(WORK, compute_dtype="bfloat16", row_tokens=5)

    one, four = (parts(rank_memory(replace(several_rows, ranks=ranks), H100)) for ranks in (1, 4))

    assert [four[name] * 4 for name in ("weights", "gradients", "optimizer")] == [4 * 388, 4 * 388, 8 * 388]
    # Two layers of 152 and the 84 outside in bfloat16; the largest unit once more in bfloat16, and in fp32.
    assert one["copies"] == four["copies"] == 2 * (2 * 152 + 84) + 6 * 152


def test_adapters_are_all_that_has_gradients():
    got = parts(rank_memory(replace(WORK, adapters=384, compute_dtype="bfloat16", optimizer="rmsprop"), H100))

    assert got["weights"] == 2 * 388 + 4 * 384
    assert got["gradients"] == got["optimizer"] == 4 * 384


def test_recomputed_layers_keep_their_input_alone():
    work = replace(WORK, activation_checkpointing=True)

    assert activation_bytes(work, MACHINE) == 2 * 4 * 4 + activation_bytes(WORK, MACHINE) / 2


def test_every_rank_loads_the_whole_model():
    assert parts(loading_memory(replace(WORK, ranks=4), H100)) == {"weights": 4 * 388, "files": 2 * 388}


def test_a_rollout_keeps_a_cache_of_the_size_that_the_run_gives():
    got = rollout_memory(WORK, MACHINE)

    assert parts(got.memory)["weights"] == 4 * 388
    # Two layers without their norms, in fp32; a version in bfloat16.
    assert (parts(got.memory)["packed"], parts(got.memory)["new version"]) == (4 * 2 * 144, 2 * 388)
    # Eight numbers a token, in fp32: 31 tokens.
    assert (got.token_bytes, got.longest_sequences) == (32, pytest.approx(1000 / 32 / 302))
    # A prompt's six tokens are kept once for both answers.
    assert got.sequences == pytest.approx(1000 / 32 / (6 / 2 + 2))


def test_a_gpu_that_vllm_has_alone_gives_its_cache_what_is_left():
    seven = Work(KNOWN["Qwen/Qwen2.5-7B-Instruct"], 1024, 8, 150, 400, 1024, 1024, sequences=1024, batched_tokens=8192)

    got = rollout_memory(seven, H100)

    assert got.memory.total == pytest.approx(0.92 * 80 * GB)
    assert got.token_bytes == 2 * 28 * 4 * 128 * 2
    assert got.excess == 0


def test_key_value_heads_are_divided_as_far_as_there_are_some():
    seven = Work(KNOWN["Qwen/Qwen2.5-7B-Instruct"], 1024, 8, 150, 400, 1024, 1024)

    of_two, of_eight = (rollout_memory(replace(seven, tensor_parallel=size), H100).token_bytes for size in (2, 8))

    assert (of_two, of_eight) == (57344 / 2, 57344 / 4)


def test_a_model_larger_than_a_gpu_says_by_how_much():
    seventy = Work(KNOWN["meta-llama/Llama-3.1-70B-Instruct"], 1024, 8, 150, 400, 1024, 1024)

    excess = rollout_memory(seventy, H100).excess

    assert excess > 70.55e9 * 2 - 0.92 * 80e9
    assert rollout_memory(replace(seventy, tensor_parallel=4), H100).excess == 0


@pytest.mark.parametrize(("size", "gib", "pairs"), [("0.5B", 31.2, 32), ("1.5B", 72.0, 32), ("3B", 124.8, 32)])
def test_steps_measured_on_an_h200_are_near(size: str, gib: float, pairs: int):
    """Qwen2.5's shapes, bfloat16, one rank, rows of 16,384 tokens, prompts and answers of 256 to 512 tokens: the most memory that
    torch allocated, which is without CUDA's context."""
    work = Work(
        KNOWN[f"Qwen/Qwen2.5-{size}-Instruct"], pairs, 2, 379, 378, 512, 512, pairs_per_prompt=1, steps=1, row_tokens=16384
    )

    memory = rank_memory(work, of_card(CARDS["H200"]))

    assert memory.total - memory.parts[0].bytes == pytest.approx(gib * 2**30, rel=0.05)


def test_hardware_of_every_card_is_complete():
    for card in CARDS.values():
        hardware: Hardware = of_card(card)
        assert hardware.bandwidth < hardware.bfloat16
        assert card.source.startswith("NVIDIA")
