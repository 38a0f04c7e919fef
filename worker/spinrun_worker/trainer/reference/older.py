"""A published version in the policy's place, for as long as its log-probs are asked for.

The policy waits in main memory meanwhile. On a GPU this takes no memory but that of one tensor at a time, on CPUs as much as the
gradients do in a step, of which there are none now. A module of its own for the reference would take more, and on the GPU.
"""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from spinrun_protocol.ledger import Manifest
from spinrun_worker.ledger import Ledger, TornError, read_safetensors
from spinrun_worker.trainer.model.memory import trim_memory
from spinrun_worker.trainer.ranks.distributed import Distributed
from spinrun_worker.trainer.storage.publish import distinct


@contextmanager
def in_place_of_policy(ledger: Ledger, ranks: Distributed, tensors: Mapping[str, Tensor], weights: Manifest) -> Generator[None]:
    """Put a version into the policy's tensors for the length of the block, and then the policy again, bit for bit.

    All ranks enter and leave it together. tensors: as for `publish`. Every rank reads the version's files, compares all bytes
    with the manifest and keeps its own part of each tensor. Raises TornError, on all ranks and with the policy in its place,
    when a file is not what the manifest says or the model has other tensors.
    """
    parameters = {name: tensors[name].detach() for name in ranks.from_rank0(lambda: distinct(tensors))}
    aside = {name: local_part(tensor).to("cpu", copy=True) for name, tensor in parameters.items()}
    try:
        ranks.agree(lambda: _load(ledger.layout.path(weights.kind, weights.number), weights, parameters))
        yield
    finally:
        for name, tensor in aside.items():
            local_part(parameters[name]).copy_(tensor)
        del aside
        trim_memory()


def _load(directory: Path, weights: Manifest, parameters: Mapping[str, Tensor]) -> None:
    missing = set(parameters)
    for entry in weights.files:
        path = directory / entry.path
        if path.suffix != ".safetensors":
            continue
        for name, whole in read_safetensors(path, entry):
            if name not in missing or parameters[name].shape != whole.shape:
                raise TornError(f"{path} holds {name} {tuple(whole.shape)}, for which this model has no place")
            missing.remove(name)
            _fill(parameters[name], whole)
            del whole  # before the next one is read
    if missing:
        raise TornError(f"{directory} lacks {min(missing)}, which this model has")


def _fill(tensor: Tensor, whole: Tensor) -> None:
    """Put this rank's part of a whole tensor into a tensor; narrower dtypes widen exactly."""
    if isinstance(tensor, DTensor):
        # Without a source rank each rank cuts its own part out of what it has itself.
        whole = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None).to_local()
    local_part(tensor).copy_(whole)


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
