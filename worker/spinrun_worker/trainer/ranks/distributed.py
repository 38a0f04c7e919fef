"""The ranks of an attempt as one: how they join, how they exchange values, and how they fail together.

There are two process groups. Tensors of the model travel on the default group: NCCL on GPUs, gloo on CPUs. Decisions, manifests
and errors travel on a gloo group of their own, whose timeout is a week: ranks wait there while rank 0 waits for rollouts.
A dead rank is not noticed by these timeouts: its connections close, and the launcher ends the others.
"""

import logging
import os
import pickle
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial, wraps
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast

import torch
import torch.distributed as dist

# Documented under this name, but not marked as exported for type checkers.
from torch.distributed import HashStore, PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from spinrun_protocol.commands import Accelerator
from spinrun_protocol.machine import available_cores
from spinrun_worker.trainer.ranks.launcher import STORE_FD

logger = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")

START_TIMEOUT = timedelta(hours=1)
"""How long the first rank waits for the last one: pods of one attempt may wait for different nodes and images."""
TENSOR_TIMEOUT = timedelta(minutes=30)
"""Longest wait for another rank within a step or a publication, which includes its writes to a slow volume."""
CONTROL_TIMEOUT = timedelta(days=7)
"""Longest wait for a decision of rank 0, which may itself wait for rollouts, and these for nodes."""


@dataclass(frozen=True)
class Distributed:
    """This rank and its connections to the others. Every method is a collective: all ranks call it, in the same order."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    store: Store
    """Key-value store that all ranks can reach; its keys are this attempt's own."""
    control: dist.ProcessGroup
    """Gloo group for everything that is not a tensor of the model."""

    @property
    def is_rank0(self) -> bool:
        """Whether this is the rank that makes decisions and commits to the ledger."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here."""
        dist.barrier(group=self.control)

    def broadcast(self, value: T | None) -> T:
        """Rank 0's value, on every rank; the other ranks' values are ignored. It must be picklable."""
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's value in rank order, on every rank. They must be picklable."""
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        votes = torch.tensor(int(flag))
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self.control)
        return bool(votes)

    def agree(self, action: Callable[[], T]) -> T:
        """Run an action on every rank; each returns its own result, or all raise as `raise_together` does.

        The action must not contain collectives: if it failed on one rank, the others would wait in them.
        """
        if self.world_size == 1:
            return action()
        result, error = _attempt(action)
        self.raise_together(error)
        return cast(T, result)

    def raise_together(self, error: Exception | None) -> None:
        """If any rank has an error, raise that of the lowest such rank on all, so that none waits for one that has left."""
        failures = self.gather(_Failure.of(error, self.rank) if error else None)
        _raise_first(failures, self.rank, error)

    def from_rank0(self, action: Callable[[], T]) -> T:
        """Run an action on rank 0 only; every rank returns its result, which must be picklable, or raises its error."""
        if self.world_size == 1:
            return action()
        result, error = _attempt(action) if self.is_rank0 else (None, None)
        result, failure = self.broadcast((result, _Failure.of(error, 0) if error else None))
        _raise_first([failure], self.rank, error)
        return cast(T, result)

    def on_rank0(self, make: Callable[[], T]) -> T:
        """Make something that only rank 0 has, such as a connection; every rank learns of a failure.

        Returns:
            What was made. On the other ranks it is None, whatever its type says: only collective methods may touch it, and they
            run on rank 0.
        """
        return cast(T, self.agree(lambda: make() if self.is_rank0 else None))


class _OnEveryRank(Protocol):
    @property
    def ranks(self) -> Distributed: ...


Holder = TypeVar("Holder", bound=_OnEveryRank)


def collective(method: Callable[Concatenate[Holder, P], T]) -> Callable[Concatenate[Holder, P], T]:
    """Make a method collective: all ranks call it, rank 0 alone runs it, and every rank returns its result or raises its error.

    The result must pickle. A collective method must not call another one: the other ranks are not in it.
    """

    @wraps(method)
    def call(self: Holder, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.ranks.from_rank0(partial(method, self, *args, **kwargs))

    return call


class Kept(Generic[T]):
    """A value that stays on rank 0: what reaches the other ranks with the result of a collective is an empty wrapper."""

    def __init__(self, *value: T) -> None:
        self._value = value

    @property
    def value(self) -> T:
        """The value, on rank 0."""
        return self._value[0]

    def __reduce__(self) -> tuple[type["Kept[T]"], tuple[()]]:
        return type(self), ()


def _attempt(action: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return action(), None
    except Exception as error:  # noqa: BLE001 - it is raised again, on every rank
        return None, error


@dataclass(frozen=True)
class _Failure:
    """An exception on its way to the other ranks.

    It consists of class, message and attributes, but not of the call of the constructor, whose parameters are unknown.
    """

    rank: int
    kind: type[Exception]
    arguments: tuple[Any, ...]
    attributes: dict[str, Any]

    @classmethod
    def of(cls, error: Exception, rank: int) -> "_Failure":
        """The exception as it is if it can be sent, else its nearest base class that can, with the message."""
        message = f"{type(error).__name__}: {error}"
        bases = [base for base in type(error).__mro__ if issubclass(base, Exception)]
        candidates = [cls(rank, type(error), error.args, dict(vars(error))), *(cls(rank, base, (message,), {}) for base in bases)]
        return next(candidate for candidate in candidates if candidate._arrives(str(error)))

    def _arrives(self, message: str) -> bool:
        try:
            return message in str(pickle.loads(pickle.dumps(self)).rebuild())  # noqa: S301 - our own bytes
        except Exception:  # noqa: BLE001 - a class or an attribute may raise anything when it is pickled
            return False

    def rebuild(self) -> Exception:
        """The exception, with a note that says where it was raised."""
        error = self.kind.__new__(self.kind, *self.arguments)
        vars(error).update(self.attributes)
        error.add_note(f"(raised on rank {self.rank})")
        return error


def _raise_first(failures: list[_Failure | None], rank: int, own: Exception | None) -> None:
    """Raise the failure of the lowest rank, as the original exception where it happened here."""
    failure = next((failure for failure in failures if failure), None)
    if failure is None:
        return
    if failure.rank == rank and own is not None:
        raise own
    if own is not None:
        logger.error("this rank failed too, with another error", exc_info=own)
    raise failure.rebuild()


@contextmanager
def join_ranks(run_id: str, *, accelerator: Accelerator | None = None) -> Generator[Distributed]:
    """Join the other ranks of an attempt for the duration of the block.

    Rank and world size come from the environment, as torchrun and our launcher set it; without it this process is the only rank.

    Args:
        run_id: The same on all ranks of an attempt, and different for every attempt, so that a straggler of an earlier one cannot
            join this one.
        accelerator: What tensors are on. None means GPUs where there are any.

    Yields:
        This rank and its connections to the others.

    Raises:
        torch.distributed.DistError: The others did not arrive within START_TIMEOUT.
    """
    if accelerator is None:
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    rank, world_size, local_rank, local_world_size = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
    )
    _limit_threads(local_world_size)
    device = torch.device(accelerator, local_rank) if accelerator == "cuda" else torch.device("cpu")
    if accelerator == "cuda":
        torch.cuda.set_device(device)
    store = PrefixStore(run_id, _connect(rank, world_size))
    dist.init_process_group(
        "nccl" if accelerator == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=TENSOR_TIMEOUT,
        device_id=device if accelerator == "cuda" else None,
    )
    control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
    assert isinstance(control, dist.ProcessGroup)
    ranks = Distributed(rank, world_size, local_rank, device, store, control)
    yield ranks
    # Only after an orderly end: destroying a group waits for its members, and after an error some are gone.
    ranks.barrier()
    dist.destroy_process_group()


def _connect(rank: int, world_size: int) -> Store:
    """The store at which the ranks meet. The launcher of node 0 has already bound its port and passes the socket to rank 0."""
    if world_size == 1:
        return HashStore()
    socket_fd = os.environ.get(STORE_FD)
    torchrun_serves = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size,
        is_master=rank == 0 and not torchrun_serves,
        timeout=START_TIMEOUT,
        master_listen_fd=int(socket_fd) if rank == 0 and socket_fd is not None else None,
    )


def _limit_threads(local_world_size: int) -> None:
    """Divide the cores among this machine's ranks, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, available_cores() // local_world_size))
