"""Training that resumes from a checkpoint, compared with training that was never interrupted."""

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from spinrun_worker.ledger import LedgerError, LedgerUnavailableError, LedgerWriter, durable
from spinrun_worker.trainer.ranks.distributed import Distributed
from spinrun_worker.trainer.storage.checkpoint import TrainerState, latest_checkpoint, load_checkpoint, save_checkpoint

UID = "uid"


class Toy(nn.Module):
    """Sizes that no number of ranks divides, a scalar, dropout that needs the random numbers, and a tied head."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.embedding = nn.Embedding(33, width)
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)])
        self.scale = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(width, 33, bias=False)
        self.head.weight = self.embedding.weight
        self.dropout = 0.0

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = hidden + layer(nn.functional.dropout(hidden, self.dropout)).tanh()
        return self.head(hidden) * self.scale


class Training:
    """A model, its optimizer and a ledger."""

    def __init__(
        self,
        ranks: Distributed,
        folder: str,
        *,
        width: int = 10,
        seed: int = 0,
        dropout: float = 0.0,
        optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    ) -> None:
        torch.manual_seed(seed)
        self.ranks = ranks
        self.model = Toy(width)
        self.model.dropout = dropout
        if ranks.world_size > 1:
            for layer in self.model.layers:
                fully_shard(layer)
            fully_shard(self.model)
        decayed = [parameter for parameter in self.model.parameters() if parameter.ndim > 1]
        plain = [parameter for parameter in self.model.parameters() if parameter.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = optimizer(groups, lr=1e-2)
        self.ledger = LedgerWriter(Path(folder), UID, attempt=1)
        ranks.from_rank0(self.ledger.claim)

    def step(self, count: int) -> None:
        """The same tokens on every rank, so that the gradients do not depend on their number."""
        for _ in range(count):
            self.optimizer.zero_grad()
            self.model(torch.arange(24).reshape(2, 12)).square().mean().backward()
            self.optimizer.step()

    def save(self, step: int, version: int = 1) -> None:
        save_checkpoint(self.ledger, self.ranks, self.model, self.optimizer, TrainerState(step=step, version=version))

    def load(self) -> TrainerState | None:
        checkpoint = latest_checkpoint(self.ledger, self.ranks)
        if checkpoint is None:
            return None
        return load_checkpoint(self.ledger, self.ranks, self.model, self.optimizer, checkpoint)

    def everything(self) -> dict[str, Tensor]:
        """Whole parameters and moments by name."""
        tensors = {name: parameter.detach() for name, parameter in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            tensors |= {f"{name}.{kind}": value for kind, value in self.optimizer.state[parameter].items()}
        return {name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in tensors.items()}


def interrupted_and_not(
    ranks: Distributed, folder: str, optimizer: type[torch.optim.Optimizer] = torch.optim.AdamW
) -> dict[str, bool]:
    """Whether each tensor is the same, bit for bit, after a break between the second and the third step."""
    undisturbed = Training(ranks, folder, dropout=0.5, optimizer=optimizer)
    undisturbed.step(2)
    undisturbed.save(2)
    undisturbed.step(2)
    resumed = Training(ranks, folder, seed=1, dropout=0.5, optimizer=optimizer)
    torch.manual_seed(99)
    assert resumed.load() == TrainerState(step=2, version=1)
    resumed.step(2)
    want = undisturbed.everything()
    return {name: torch.equal(tensor, want[name]) for name, tensor in resumed.everything().items()}


def test_resumed_training_is_exact_on_one_rank(alone: Distributed, tmp_path: Path) -> None:
    same = interrupted_and_not(alone, str(tmp_path))
    assert len(same) == 6 * 4, "parameters, two moments and a step count"
    assert all(same.values()), same


def test_resumed_training_is_exact_with_rmsprop(alone: Distributed, tmp_path: Path) -> None:
    same = interrupted_and_not(alone, str(tmp_path), torch.optim.RMSprop)
    assert len(same) == 6 * 3, "parameters, a mean of squares and a step count"
    assert all(same.values()), same


def test_resumed_training_is_exact_on_two_ranks(run_ranks: Any, tmp_path: Path) -> None:
    for same in run_ranks(2, interrupted_and_not, str(tmp_path)):
        assert len(same) == 6 * 4
        assert all(same.values()), same
    files = sorted(path.name for path in (tmp_path / "checkpoints" / "step-000002").iterdir())
    assert files == [
        "MANIFEST.json",
        "random-00000.json",
        "random-00001.json",
        "rank-00000-of-00002.safetensors",
        "rank-00001-of-00002.safetensors",
        "state.json",
    ], "nothing that could hold code"


def train_save_train(ranks: Distributed, folder: str) -> dict[str, Any]:
    training = Training(ranks, folder)
    training.step(2)
    training.save(2)
    training.step(2)
    return {name: tensor.numpy() for name, tensor in training.everything().items()}


def load_train(ranks: Distributed, folder: str) -> dict[str, Any]:
    training = Training(ranks, folder, seed=1)
    training.load()
    training.step(2)
    return {name: tensor.numpy() for name, tensor in training.everything().items()}


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_ranks_continues_the_same_way(run_ranks: Any, tmp_path: Path, before: int, after: int) -> None:
    want = run_ranks(before, train_save_train, str(tmp_path))[0]
    got = run_ranks(after, load_train, str(tmp_path))[0]
    assert got.keys() == want.keys()
    for name in want:
        np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=1e-6, err_msg=name)


def draw() -> list[float]:
    return [torch.rand(()).item(), float(np.random.rand()), random.random(), float(np.random.randn()), random.gauss()]


def test_random_numbers_go_on(alone: Distributed, tmp_path: Path) -> None:
    training = Training(alone, str(tmp_path))
    training.step(1)
    draw()  # the second of a pair of normal numbers is pending now
    training.save(1)
    want = draw()
    training.load()
    assert draw() == want


def load_and_draw(ranks: Distributed, folder: str) -> list[list[float]]:
    training = Training(ranks, folder, seed=1)
    drawn: list[list[float]] = []
    for _ in range(2):
        training.load()
        drawn.append(draw())
    return drawn


def test_a_new_rank_has_random_numbers_of_its_own(alone: Distributed, run_ranks: Any, tmp_path: Path) -> None:
    training = Training(alone, str(tmp_path))
    training.step(1)
    training.save(1)
    old, new = run_ranks(2, load_and_draw, str(tmp_path))
    assert old[0] == old[1] == draw()
    assert new[0] == new[1]
    assert new[0] != old[0]


def test_state_comes_back(alone: Distributed, tmp_path: Path) -> None:
    training = Training(alone, str(tmp_path))
    training.step(1)
    training.save(1, version=3)
    assert training.load() == TrainerState(step=1, version=3)


def test_no_checkpoint_is_none(alone: Distributed, tmp_path: Path) -> None:
    assert Training(alone, str(tmp_path)).load() is None


def test_nothing_is_saved_before_the_first_step(alone: Distributed, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="first step"):
        Training(alone, str(tmp_path)).save(0)


def remove_manifest(directory: Path) -> None:
    (directory / "MANIFEST.json").unlink()


def flip_a_bit(directory: Path) -> None:
    file = directory / "rank-00000-of-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def cut(directory: Path) -> None:
    file = directory / "state.json"
    file.write_bytes(file.read_bytes()[:-3])


def add_a_file(directory: Path) -> None:
    (directory / "rank-00007-of-00008.safetensors").write_bytes(b"")


@pytest.mark.parametrize("damage", [remove_manifest, flip_a_bit, cut, add_a_file])
def test_torn_checkpoint_is_skipped_by_name(
    alone: Distributed, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    training = Training(alone, str(tmp_path))
    for step in (1, 2):
        training.step(1)
        training.save(step)
    damage(training.ledger.layout.checkpoint(2))
    with caplog.at_level(logging.WARNING):
        state = training.load()
    assert state is not None
    assert state.step == 1
    assert "step-000002" in caplog.text


def test_checkpoint_of_a_superseded_past_is_skipped(alone: Distributed, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    training = Training(alone, str(tmp_path))
    training.step(1)
    training.save(9)
    training.ledger = LedgerWriter(tmp_path, UID, attempt=2)
    training.ledger.claim()
    training.save(5)
    with caplog.at_level(logging.WARNING):
        state = training.load()
    assert state is not None
    assert state.step == 5
    assert "step-000009 is superseded" in caplog.text


def test_model_of_another_shape_is_refused(alone: Distributed, tmp_path: Path) -> None:
    training = Training(alone, str(tmp_path))
    training.step(1)
    training.save(1)
    with pytest.raises(LedgerError, match=r"step-000001 does not match this model and optimizer.*(?i:size)"):
        Training(alone, str(tmp_path), width=12).load()


def save_to_a_full_volume(ranks: Distributed, folder: str) -> list[str]:
    """What each rank raises when the volume is full at either rank's part, at its random state, at the manifest."""
    training = Training(ranks, folder)
    training.step(1)
    training.save(1)
    messages: list[str] = []
    for operation, name in (
        ("write", "rank-00001"),
        ("write", "rank-00000"),
        ("create", "random-00001"),
        ("replace", "MANIFEST"),
    ):

        def refuse(observed: str, path: Path, operation: str = operation, name: str = name) -> None:
            if observed == operation and path.name.startswith(name):
                raise LedgerUnavailableError(f"Cannot {operation} {path.name}: No space left on device")

        durable.observe = refuse
        try:
            training.save(2)
        except LedgerUnavailableError as error:
            messages.append(str(error).split(":")[0])
        durable.observe = None
    state = training.load()
    assert state is not None
    assert state.step == 1, "the checkpoint before is as it was"
    training.save(2)
    return messages


def test_full_volume_stops_all_ranks_and_keeps_the_checkpoint_before(run_ranks: Any, tmp_path: Path) -> None:
    first, second = run_ranks(2, save_to_a_full_volume, str(tmp_path))
    assert first == second
    assert first == [
        "Cannot write rank-00001-of-00002.safetensors",
        "Cannot write rank-00000-of-00002.safetensors",
        "Cannot create random-00001.json",
        "Cannot replace MANIFEST.json",
    ]
    assert LedgerWriter(tmp_path, UID, attempt=1).numbers("checkpoint") == [1, 2]
