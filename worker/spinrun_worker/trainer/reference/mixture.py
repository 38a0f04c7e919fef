"""A reference that follows the policy slowly: at each change, a mixture of the policy's weights and the reference before.

Source: TR-DPO, arXiv 2404.09656, its soft update.
"""

import torch

from spinrun_protocol.ledger import Manifest
from spinrun_worker.trainer.reference.older import in_place_of_policy, local_part
from spinrun_worker.trainer.storage.publish import distinct, publish, with_dtype
from spinrun_worker.trainer.storage.store import RunStore
from spinrun_worker.trainer.storage.windows import as_reference

DTYPE = torch.float32
"""Of a mixture: in bfloat16 a small share of what has changed since the one before is lost, and it would stand still."""


@torch.no_grad()
def mix_reference(store: RunStore, weights: Manifest, before: Manifest, *, share: float) -> Manifest:
    """Write the mixture of a version and the reference before to the ledger; returns its manifest.

    All ranks call it together, with the policy as that version was published, which it is again afterwards, bit for bit. What is
    mixed is weights as they are in the ledger, so that any attempt makes the same.

    Args:
        store: Holds the policy and the ledger.
        weights: The version.
        before: The reference before, from `RunStore.ingredients`.
        share: The version's share.

    Raises:
        TornError: On all ranks, when the reference before is not what its manifest says.
        LedgerUnavailableError: On all ranks, when the volume refuses any of them.
    """
    tensors, dtype = store.publication.tensors(), store.publication.dtype
    parts = {name: local_part(tensors[name].detach()) for name in store.ranks.from_rank0(lambda: distinct(tensors))}
    published = {name: part.to("cpu", dtype, copy=True) for name, part in parts.items()}
    with in_place_of_policy(store.ledger, store.ranks, tensors, before):
        for name, part in parts.items():
            part.mul_(1 - share).add_(published[name].to(part), alpha=share)
        return publish(
            store.ledger,
            store.ranks,
            tensors,
            version=weights.version,
            step=weights.step,
            dtype=DTYPE,
            assets=with_dtype(store.publication.assets, DTYPE) if store.ranks.is_rank0 else {},
            kind="reference",
            parent=weights.digest,
            reference=as_reference(before),
        )
