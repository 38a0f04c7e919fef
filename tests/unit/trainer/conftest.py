"""Several ranks in a test: real processes with real gloo, forked from a server that has imported torch once."""

import inspect
import multiprocessing
import runpy
import socket
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest
import torch

from spinrun_worker.ledger import LedgerWriter
from spinrun_worker.trainer.ranks.distributed import Distributed, join_ranks

PROGRAM = Path(__file__).with_name("rank_program.py")
LIMIT_SECONDS = 120
UID = "0a1b2c3d-0000-4000-8000-000000000000"

RunRanks = Callable[..., list[Any]]


@pytest.fixture(scope="session")
def context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch.distributed.fsdp", "spinrun_worker.trainer.storage.checkpoint", "pytest", "hypothesis"]
    )
    return context


@pytest.fixture
def run_ranks(context: Any) -> Iterator[RunRanks]:
    """run_ranks(2, scenario, *arguments): what scenario(ranks, *arguments), a function of a module, returns on each rank."""
    started: list[Any] = []

    def run(world_size: int, scenario: Callable[..., Any], *arguments: Any) -> list[Any]:
        store = socket.create_server(("127.0.0.1", 0))
        pipes: list[Connection] = []
        for rank in range(world_size):
            ours, theirs = context.Pipe(duplex=False)
            job = {
                "rank": rank,
                "world_size": world_size,
                "port": store.getsockname()[1],
                "store": store if rank == 0 else None,
                "scenario": (inspect.getfile(scenario), scenario.__name__),
                "arguments": arguments,
                "answer": theirs,
            }
            process = context.Process(target=runpy.run_path, args=(str(PROGRAM), {"job": job}), daemon=True)
            process.start()
            theirs.close()
            started.append(process)
            pipes.append(ours)
        answers = [receive(pipe) for pipe in pipes]
        errors = [f"rank {rank}:\n{error}" for rank, (_, error) in enumerate(answers) if error]
        assert not errors, "\n".join(errors)
        return [result for result, _ in answers]

    yield run
    for process in started:
        process.kill()
        process.join()


def receive(pipe: Connection) -> tuple[Any, str | None]:
    if not wait([pipe], LIMIT_SECONDS):
        return None, f"no answer in {LIMIT_SECONDS} s"
    try:
        return pipe.recv()
    except EOFError:
        return None, "ended without an answer"


@pytest.fixture
def alone() -> Iterator[Distributed]:
    """The only rank, in the test's own process."""
    threads = torch.get_num_threads()
    with join_ranks("test", accelerator="cpu") as ranks:
        yield ranks
    torch.set_num_threads(threads)


@pytest.fixture
def ledger(tmp_path: Path) -> LedgerWriter:
    writer = LedgerWriter(tmp_path / "ledger", UID, attempt=1)
    writer.claim()
    return writer
