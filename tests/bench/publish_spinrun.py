"""A contender: publications, in turn with plain writes of the same bytes, each right after a train step as in a run.

Memory makes the difference: what the page cache takes may have been in use a moment ago, or must first be found, by a virtual
machine even on its host. So both come after a step, and after the memory that it has freed was given back.
"""

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed.device_mesh import init_device_mesh

from bench import raw_disk, workload
from spinrun_api.spec import Method, Model, Trainer
from spinrun_worker.ledger import LedgerWriter, durable
from spinrun_worker.records import Pair
from spinrun_worker.trainer.model.learner import Learner
from spinrun_worker.trainer.model.memory import return_freed_memory
from spinrun_worker.trainer.model.optimizer import make_optimizer
from spinrun_worker.trainer.model.policy import load_policy, shard_policy
from spinrun_worker.trainer.ranks.distributed import join_ranks
from spinrun_worker.trainer.storage.publish import publish


@contextmanager
def phases(found: dict[str, float]) -> Generator[None]:
    """Seconds from each change to the volume until the next one, by what was changed; converting and hashing are in `write`."""
    current, since = "begin", time.perf_counter()

    def observe(operation: str, _: Path) -> None:
        nonlocal current, since
        now = time.perf_counter()
        found[current] += now - since
        current, since = operation, now

    durable.observe = observe
    try:
        yield
    finally:
        observe("end", Path())
        durable.observe = None


def main() -> None:
    """Prints seconds of each publication and of each plain write, and where the publications' time goes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True, help="of the published weights")
    parser.add_argument("--folder", required=True)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    assets = {path.name: path.read_bytes() for path in Path(options.model).iterdir() if path.suffix != ".safetensors"}
    published: list[float] = []
    writes: list[float] = []
    parts: list[dict[str, float]] = []
    with join_ranks("bench") as ranks, tempfile.TemporaryDirectory(dir=options.folder) as folder:
        policy = load_policy(Model(source=options.model))
        shard_policy(policy, mesh=init_device_mesh("cpu", (1,)), compute_dtype=torch.bfloat16)
        settings = Trainer(learning_rate=workload.LEARNING_RATE, tokens_per_micro_batch=workload.TOKENS_PER_MICRO_BATCH)
        optimizer = make_optimizer(policy.parameters(), settings)
        learner = Learner(policy, optimizer, method=Method(beta=workload.BETA), trainer=settings, control=ranks.control)
        tokens = tuple(range(1000, 1044))  # as many as a question of the demo has
        pair = Pair("prompt", tokens, tokens[:12], tokens[12:24], 1.0, 0.0, reference_chosen=0.0, reference_rejected=0.0)
        pairs = [pair] * workload.PROMPTS_PER_STEP
        ledger = LedgerWriter(Path(folder) / "ledger", "bench", attempt=1)
        ledger.claim()

        def publication(version: int, found: dict[str, float]) -> int:
            return_freed_memory()
            with phases(found):
                manifest = publish(
                    ledger,
                    ranks,
                    dict(policy.named_parameters(remove_duplicate=False)),
                    version=version,
                    step=version,
                    dtype=getattr(torch, options.dtype),
                    assets=assets,
                )
            return sum(file.size for file in manifest.files)

        chunk, size = os.urandom(raw_disk.CHUNK), 0
        for repeat in range(options.repeats):
            for plain in (False, True):
                learner.step(pairs, learning_rate=workload.LEARNING_RATE)
                started = time.perf_counter()
                if plain:
                    return_freed_memory()
                    started = time.perf_counter()
                    raw_disk.write(Path(folder) / f"plain-{repeat}", size, chunk)
                    writes.append(time.perf_counter() - started)
                else:
                    found: dict[str, float] = defaultdict(float)
                    size = publication(repeat, found)
                    published.append(time.perf_counter() - started)
                    parts.append(dict(found))
        peak = workload.peak_bytes()
    workload.tell(publish=published, writes=writes, phases=parts, bytes=size, peak_bytes=peak)


if __name__ == "__main__":
    main()
