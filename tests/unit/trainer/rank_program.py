"""One rank of a test, run by conftest.run_ranks with its job among the globals."""

import importlib.util
import os
import sys
import traceback
from types import ModuleType
from typing import Any

import torch

from spinrun_worker.trainer.ranks.distributed import join_ranks
from spinrun_worker.trainer.ranks.launcher import STORE_FD


def load(file: str) -> ModuleType:
    """A test module as an importable one, so that its classes travel between ranks."""
    spec = importlib.util.spec_from_file_location("scenarios", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["scenarios"] = module
    spec.loader.exec_module(module)
    return module


def main(job: dict[str, Any]) -> None:
    os.environ |= {
        "RANK": str(job["rank"]),
        "WORLD_SIZE": str(job["world_size"]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(job["port"]),
        "OMP_NUM_THREADS": "1",
    }
    if job["store"] is not None:
        os.environ[STORE_FD] = str(job["store"].detach())
    torch.set_num_threads(1)
    file, name = job["scenario"]
    scenario = getattr(load(file), name)
    try:
        with join_ranks("test", accelerator="cpu") as ranks:
            job["answer"].send((scenario(ranks, *job["arguments"]), None))
    except BaseException:  # noqa: BLE001 - the test process shows it
        job["answer"].send((None, traceback.format_exc()))


main(globals()["job"])
