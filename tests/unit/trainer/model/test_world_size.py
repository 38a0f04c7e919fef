"""One rank and two ranks, run as processes of their own (rank_main.py), train alike."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

RANK_MAIN = Path(__file__).with_name("rank_main.py")
TESTS = Path(__file__).parents[3]

Outcome = dict[str, Any]

ADAPTERS = ("adapters", "adapters, checkpointed", "adapters in bfloat16", "adapters in bfloat16, checkpointed")


@pytest.fixture(scope="module")
def outcomes(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Outcome]]:
    """By world size, what each rank saw."""
    return {world_size: run_ranks(world_size, llama, tmp_path_factory.mktemp(f"ranks-{world_size}")) for world_size in (1, 2)}


def run_ranks(world_size: int, model: Path, folder: Path) -> list[Outcome]:
    command = [sys.executable, str(RANK_MAIN)]
    environment = {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ranks = [
        subprocess.Popen([*command, str(rank), str(world_size), str(folder), str(model)], env=environment, stderr=subprocess.PIPE)
        for rank in range(world_size)
    ]
    errors = [rank.communicate(timeout=500)[1].decode() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world_size, "\n".join(errors)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(world_size)]


def assert_close(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    """Each tensor to a share of its largest element."""
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=tolerance * tensor.abs().max().item(), msg=name)


@pytest.mark.parametrize("scenario", ["eight pairs", "one pair", "checkpointed", "adapters", "adapters, checkpointed"])
def test_two_ranks_take_the_same_steps_as_one(outcomes: dict[int, list[Outcome]], scenario: str):
    one, two = outcomes[1][0][scenario], outcomes[2][0][scenario]

    assert two["sharded"]
    assert not one["sharded"]
    for got, want in zip(two["figures"], one["figures"], strict=True):
        assert got == pytest.approx(want, rel=2e-6, abs=1e-6)
    assert_close(two["gradient"], one["gradient"], 1e-4)
    assert_close(two["weights"], one["weights"], 1e-5)


@pytest.mark.parametrize("scenario", ["cringe", "advantages"])
def test_two_ranks_do_with_other_losses_what_one_does(outcomes: dict[int, list[Outcome]], scenario: str):
    # With cringe: they draw the same tokens. With advantages: some answers are alone, on one rank more than on the other.
    one, two = outcomes[1][0][scenario], outcomes[2][0][scenario]

    assert two["figures"][0] == pytest.approx(one["figures"][0], rel=2e-6, abs=1e-6)
    assert_close(two["gradient"], one["gradient"], 1e-4)


def test_two_ranks_know_the_same_log_probs_by_token_and_take_the_same_steps_of_grpo(outcomes: dict[int, list[Outcome]]):
    one, two = outcomes[1][0]["grpo"], outcomes[2][0]["grpo"]

    assert outcomes[2][0]["grpo"]["logprobs"] == outcomes[2][1]["grpo"]["logprobs"], "both ranks have all of them"
    for got, want in zip(two["logprobs"], one["logprobs"], strict=True):
        assert got[0] == pytest.approx(want[0], rel=2e-6, abs=1e-6)
    for got, want in zip(two["figures"], one["figures"], strict=True):
        assert got == pytest.approx(want, rel=2e-5, abs=1e-5)
    assert_close(two["gradient"], one["gradient"], 1e-4)


def test_a_rank_without_pairs_keeps_step(outcomes: dict[int, list[Outcome]]):
    for outcome in outcomes[2]:
        assert [figures["pairs"] for figures in outcome["one pair"]["figures"]] == [1.0, 1.0]


@pytest.mark.parametrize("scenario", ["eight pairs", "one pair", "checkpointed", "bfloat16", *ADAPTERS])
def test_every_rank_has_the_same_figures_and_references(outcomes: dict[int, list[Outcome]], scenario: str):
    first, second = (outcome[scenario] for outcome in outcomes[2])

    assert first["figures"] == second["figures"]
    assert first["reference"] == second["reference"]
    assert all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("scenario", ["eight pairs", "one pair", "checkpointed", "bfloat16", *ADAPTERS])
def test_the_first_step_is_at_the_reference_to_the_last_bit(outcomes: dict[int, list[Outcome]], scenario: str, world_size: int):
    figures = outcomes[world_size][0][scenario]["figures"][0]

    assert figures["loss"] == pytest.approx(0.6931471805599453, abs=2e-16)
    assert figures["rewards/margins"] == 0.0


def test_bfloat16_arithmetic_updates_fp32_weights_on_one_rank_and_two(outcomes: dict[int, list[Outcome]]):
    one, two = outcomes[1][0]["bfloat16"], outcomes[2][0]["bfloat16"]
    exact = outcomes[1][0]["eight pairs"]

    assert not one["sharded"], "one rank on a CPU converts its weights without FSDP"
    assert {tensor.dtype for tensor in one["weights"].values()} == {torch.float32}
    assert one["weights"].keys() == exact["weights"].keys()
    assert_close(two["gradient"], one["gradient"], 0.05)
    assert one["reference"][0][0] == pytest.approx(exact["reference"][0][0], rel=0.02)
    assert one["reference"][0][0] != exact["reference"][0][0]


@pytest.mark.parametrize("scenario", ["adapters in bfloat16", "adapters in bfloat16, checkpointed"])
def test_adapters_stay_fp32_beside_a_base_in_bfloat16(outcomes: dict[int, list[Outcome]], scenario: str):
    one, two = outcomes[1][0][scenario], outcomes[2][0][scenario]

    for outcome in (one, two):
        assert outcome["frozen"] == {"torch.bfloat16"}
        assert {tensor.dtype for tensor in outcome["weights"].values()} == {torch.float32}
        assert all("lora" in name for name in outcome["weights"])
    assert not one["sharded"], "one rank has next to nothing to convert"
    of_b = {name: tensor for name, tensor in one["gradient"].items() if "lora_B" in name}
    assert all(tensor.any() for tensor in of_b.values())
    assert_close({name: two["gradient"][name] for name in of_b}, of_b, 0.05)


def test_adamw_trains_shards_as_it_trains_whole_weights(outcomes: dict[int, list[Outcome]]):
    one, two = outcomes[1][0]["adamw"]["losses"], outcomes[2][0]["adamw"]["losses"]

    assert two == pytest.approx(one, rel=1e-5)
    assert two[2] < two[1] < two[0]


@pytest.mark.parametrize("rank", [0, 1])
def test_all_ranks_stop_when_one_is_asked_to(outcomes: dict[int, list[Outcome]], rank: int):
    stopped = outcomes[2][rank]["stopped"]

    assert stopped == {"result": None, "asked": 2, "unchanged": True, "gradients_left": False}


@pytest.mark.parametrize("rank", [0, 1])
def test_all_ranks_refuse_a_step_that_is_not_finite_on_one(outcomes: dict[int, list[Outcome]], rank: int):
    broken = outcomes[2][rank]["broken"]

    assert "prompt-2:" in broken["error"]
    assert broken["unchanged"]
