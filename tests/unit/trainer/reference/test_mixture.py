"""A mixture on several ranks; `test_window.py` has its place in a run."""

from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from spinrun_protocol.ledger import Manifest
from spinrun_worker.trainer.ranks.distributed import Distributed
from spinrun_worker.trainer.reference.mixture import mix_reference
from spinrun_worker.trainer.schedule import Schedule
from spinrun_worker.trainer.storage.store import Publication, RunStore
from unit.trainer.reference.test_older import Run, folder

__all__ = ["folder"]


def mixed(ranks: Distributed, folder: str) -> dict[str, Any]:
    run = Run(ranks, folder)
    weights, policy = run.publish(1), run.weights()
    store = RunStore(
        run.ledger,
        ranks,
        Schedule(9, 1, 1, mixes_references=True),
        model=run.policy,
        optimizer=run.learner.optimizer,
        publication=Publication(run.policy.state, torch.bfloat16, {"config.json": b"{}"}, file=None),
        keep_checkpoints=1,
    )
    mixture = mix_reference(store, weights, run.reference, share=0.25)

    def loaded(manifest: Manifest) -> dict[str, Tensor]:
        directory = run.ledger.layout.path(manifest.kind, manifest.number)
        parts = [load_file(directory / file.path) for file in manifest.files if file.path.endswith(".safetensors")]
        return {name: tensor for part in parts for name, tensor in part.items()}

    one, other, found = loaded(weights), loaded(run.reference), loaded(mixture)
    return {
        "verified": run.ledger.verify("reference", 1) == mixture,
        "lineage": (mixture.parent, mixture.reference and mixture.reference.digest) == (weights.digest, run.reference.digest),
        "all": found.keys() == one.keys(),
        "in fp32": {tensor.dtype for tensor in found.values()} == {torch.float32},
        "mixed": all(
            torch.allclose(tensor, 0.25 * one[name].float() + 0.75 * other[name].float(), rtol=1e-6, atol=1e-8)
            for name, tensor in found.items()
        ),
        "policy is back": all(torch.equal(tensor, policy[name]) for name, tensor in run.weights().items()),
    }


def test_ranks_mix_what_is_in_the_ledger_and_have_the_policy_back(run_ranks: Any, folder: str) -> None:
    for outcome in run_ranks(2, mixed, folder):
        assert outcome == dict.fromkeys(outcome, True)
