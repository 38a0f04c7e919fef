"""Checkpoints: everything that a later attempt needs to continue as if nothing had happened.

    rank-00000-of-00002.safetensors …   model.* and optimizer.*: a rank's part of every tensor, with its offset in the whole
    random-00000.json …                 the state of a rank's random number generators
    state.json                          where the run is

torch.distributed.checkpoint plans which rank writes what, and reads the files of any number of ranks on any other number. Its
own writers pickle their index, or hold a rank's whole file in memory and leave it to be read again for its hash; ours does
neither. Loading runs no code.
"""

import json
import logging
import random
from collections.abc import Generator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, TensorWriteData, WriteItem
from torch.distributed.checkpoint.state_dict import (
    OptimizerStateType,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future
from torch.optim import Optimizer

from spinrun_api.base import Record
from spinrun_protocol.ledger import FileEntry, Manifest
from spinrun_worker.ledger import Ledger, LedgerError, LedgerWriter, TensorSpec, TornError, hash_file, write_safetensors
from spinrun_worker.ledger.files import read_record, write_file
from spinrun_worker.trainer.ranks.distributed import Distributed
from spinrun_worker.trainer.storage.publish import distinct

logger = logging.getLogger(__name__)

STATE_FILE = "state.json"

NumpyState = tuple[str, NDArray[np.uint32], int, int, float]


class TrainerState(Record):
    """Where a run is."""

    step: int = Field(ge=0)
    """Optimizer steps done, and the checkpoint's number. The window and the position within it follow from it."""

    version: int = Field(ge=0)
    """Newest version that was due by then."""


class RandomState(Record):
    """State of the random number generators of one rank."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    torch_cpu: bytes
    """torch's generator of the CPU."""

    torch_cuda: bytes | None = None
    """torch's generator of this rank's GPU, where it has one."""

    numpy: tuple[str, tuple[int, ...], int, int, float]
    """numpy.random.get_state()."""

    python: tuple[int, tuple[int, ...], float | None]
    """random.getstate()."""


def save_checkpoint(
    ledger: LedgerWriter, ranks: Distributed, model: nn.Module, optimizer: Optimizer, state: TrainerState
) -> Manifest:
    """Write a checkpoint. All ranks call it; it is durable on return.

    Args:
        ledger: Where the checkpoint goes.
        ranks: The ranks.
        model: The model.
        optimizer: The optimizer, which must have taken a step.
        state: Where the run is.

    Returns:
        The checkpoint's manifest, on every rank.

    Raises:
        LedgerUnavailableError: On all ranks, when the volume refuses any of them.
        SupersededError: On all ranks, when a newer attempt owns the ledger.
        ValueError: No step has been taken, so there is nothing to resume from.
    """
    if not optimizer.state:
        raise ValueError("the optimizer has no state yet: there can be no checkpoint before the first step")
    directory = ranks.from_rank0(lambda: ledger.begin("checkpoint", state.step))
    tensors = _model_tensors(ranks, model) | _optimizer_tensors(get_optimizer_state_dict(model, optimizer))
    part = _PartWriter(directory / f"rank-{ranks.rank:05d}-of-{ranks.world_size:05d}.safetensors")
    with _plain_errors(f"Cannot write {directory}"):
        save(tensors, storage_writer=part, process_group=ranks.control)
    ranks.raise_together(part.error)
    random_entry = ranks.agree(lambda: _write_record(directory / _random_file(ranks), _random_state(ranks.device)))
    files = [entry for entries in ranks.gather([*part.entries, random_entry]) for entry in entries]

    def commit() -> Manifest:
        state_entry = _write_record(directory / STATE_FILE, state)
        return ledger.commit("checkpoint", state.step, [*files, state_entry], step=state.step, version=state.version)

    return ranks.from_rank0(commit)


def latest_checkpoint(ledger: Ledger, ranks: Distributed) -> Manifest | None:
    """The newest checkpoint whose files are what its manifest says, including their hashes; None when there is none.

    All ranks call it and share the reading. A checkpoint that is torn, foreign or superseded is skipped, with a warning that
    names it.
    """
    for number in ranks.from_rank0(lambda: _candidates(ledger)):
        try:
            return _verify(ledger, ranks, number)
        except TornError as error:
            logger.log(logging.WARNING if ranks.is_rank0 else logging.DEBUG, "checkpoint skipped: %s", error)
    return None


def _candidates(ledger: Ledger) -> list[int]:
    """Steps of the checkpoints that count by their files' names and sizes, the newest first."""
    sound = ledger.numbers("checkpoint")
    newest = max(sound, default=-1)
    for number in ledger.present("checkpoint"):
        if number > newest:
            logger.warning("checkpoint skipped: %s", _fault(ledger, number))
    return sound[::-1]


def _fault(ledger: Ledger, number: int) -> str:
    try:
        ledger.verify("checkpoint", number, hashes=False)
    except LedgerError as error:
        return str(error)
    return f"{ledger.layout.checkpoint(number)} is superseded: a newer attempt resumed from before it"


def _verify(ledger: Ledger, ranks: Distributed, number: int) -> Manifest:
    """The manifest of a checkpoint, after every rank has compared its share of the hashes. Raises TornError on all."""
    directory = ledger.layout.checkpoint(number)
    manifest = ranks.from_rank0(lambda: ledger.verify("checkpoint", number, hashes=False))

    def compare() -> None:
        for entry in manifest.files[ranks.rank :: ranks.world_size]:
            if hash_file(directory / entry.path, root=directory) != entry:
                raise TornError(f"{directory / entry.path} has different content than its manifest says")

    ranks.agree(compare)
    return manifest


def load_checkpoint(
    ledger: Ledger, ranks: Distributed, model: nn.Module, optimizer: Optimizer, checkpoint: Manifest
) -> TrainerState:
    """Load a checkpoint into the model, the optimizer and the random number generators. All ranks call it.

    The checkpoint may come from another number of ranks; a rank that it has no random state for gets one derived from it. The
    optimizer keeps its own settings, such as its learning rate.

    Args:
        ledger: Where the checkpoint is.
        ranks: The ranks.
        model: The model; changed in place.
        optimizer: The optimizer; changed in place.
        checkpoint: From `latest_checkpoint`, which has compared its hashes.

    Returns:
        Where the run is.

    Raises:
        LedgerError: The model or the optimizer does not match the one that was saved.
    """
    directory = ledger.layout.checkpoint(checkpoint.number)
    optimizer_state = get_optimizer_state_dict(model, optimizer)
    # The model's state dict holds the parameters themselves, so that loading into it is all there is to do.
    tensors = _model_tensors(ranks, model) | _optimizer_tensors(optimizer_state)
    with _plain_errors(f"{directory} does not match this model and optimizer"):
        load(tensors, storage_reader=HuggingFaceStorageReader(str(directory)), process_group=ranks.control)
    set_optimizer_state_dict(model, optimizer, optimizer_state)

    def read() -> TrainerState:
        _restore_random(read_record(directory / _random_file(ranks), RandomState), ranks, seed=checkpoint.digest)
        state = read_record(directory / STATE_FILE, TrainerState)
        if state is None:
            raise TornError(f"{directory / STATE_FILE} is missing")
        return state

    return ranks.agree(read)


def _model_tensors(ranks: Distributed, model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters and persistent buffers, tied ones once; without frozen ones, which come from the source."""
    state = cast(dict[str, Tensor], get_model_state_dict(model))
    # Not with torch's option for it, which keeps a tied weight under its second name.
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            del state[name]
    return {f"model.{name}": state[name] for name in ranks.from_rank0(lambda: distinct(state))}


def _optimizer_tensors(state: OptimizerStateType) -> dict[str, Tensor]:
    """The optimizer's tensors by parameter and kind, as in optimizer.lm_head.weight.exp_avg."""
    of_parameters = cast(dict[str, dict[str, Tensor]], state["state"])
    return {f"optimizer.{name}.{kind}": tensor for name, kinds in of_parameters.items() for kind, tensor in kinds.items()}


class _PartWriter(StorageWriter):
    """Writes one rank's part as a safetensors file that HuggingFaceStorageReader reads.

    `entries` and `error` say how it went: an exception would have to survive the planner's own exchange between the ranks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[FileEntry] = []
        self.error: LedgerError | None = None

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's items, holding one at a time in memory."""
        # Wider dtypes first, as the format's alignment requires.
        items = sorted(plan.items, key=lambda item: -_chunk(item).properties.dtype.itemsize)
        specs = [TensorSpec(item.index.fqn, _chunk(item).properties.dtype, _chunk(item).chunk.sizes) for item in items]
        places = {item.index.fqn: {"saved_offsets": list(_chunk(item).chunk.offsets)} for item in items}
        # The keys that the reader looks for: where in the whole tensor each part belongs, and the version of that convention.
        metadata = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(places)}
        parts = (cast(Tensor, planner.resolve_data(item)) for item in items)
        try:
            self.entries = [write_safetensors(self.path, specs, parts, metadata=metadata)] if items else []
        except LedgerError as error:
            self.error = error
        done: Future[list[WriteResult]] = Future()
        done.set_result([])
        return done

    # The rest of the interface: nothing to prepare, and the ledger's manifest takes the place of an index.

    def reset(self, checkpoint_id: str | PathLike[str] | None = None) -> None:
        """Nothing to prepare."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to prepare."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The plans as they are."""
        return plans

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Nothing to finish: the manifest is the ledger's."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | PathLike[str]) -> bool:
        """Accept paths only."""
        return isinstance(checkpoint_id, PathLike)


def _chunk(item: WriteItem) -> TensorWriteData:
    if item.tensor_data is None:
        raise TypeError(f"{item.index.fqn} is not a tensor: a checkpoint holds nothing else")
    return item.tensor_data


@contextmanager
def _plain_errors(message: str) -> Generator[None]:
    """Turn the planner's exception, which is not an Exception, into a LedgerError with the lowest rank's cause."""
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        raise LedgerError(f"{message}: {type(cause).__name__} on rank {rank}: {cause}") from cause


def _random_file(ranks: Distributed) -> str:
    return f"random-{ranks.rank:05d}.json"


def _random_state(device: torch.device) -> RandomState:
    name, key, position, has_gauss, gauss = cast(NumpyState, np.random.get_state(legacy=True))
    return RandomState(
        torch_cpu=torch.get_rng_state().numpy().tobytes(),
        torch_cuda=torch.cuda.get_rng_state(device).numpy().tobytes() if device.type == "cuda" else None,
        numpy=(name, tuple(key.tolist()), position, has_gauss, gauss),
        python=random.getstate(),
    )


def _restore_random(state: RandomState | None, ranks: Distributed, *, seed: str) -> None:
    """Restore the generators' state; None derives one from seed and rank."""
    if state is None:
        number = xxhash.xxh3_64_intdigest(f"{seed}/{ranks.rank}".encode())
        torch.manual_seed(number)
        np.random.seed(number % 2**32)
        random.seed(number)
        return
    torch.set_rng_state(_byte_tensor(state.torch_cpu))
    if ranks.device.type == "cuda" and state.torch_cuda is not None:
        torch.cuda.set_rng_state(_byte_tensor(state.torch_cuda), ranks.device)
    np.random.set_state(cast(NumpyState, state.numpy))
    random.setstate(state.python)


def _byte_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _write_record(path: Path, record: Record) -> FileEntry:
    return write_file(path, [record.model_dump_json(by_alias=True, exclude_none=True).encode() + b"\n"])
