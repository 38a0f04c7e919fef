import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from spinrun_protocol.ledger import Manifest
from spinrun_worker.ledger import LedgerUnavailableError, LedgerWriter, TensorSpec, durable
from spinrun_worker.trainer.ranks.distributed import Distributed
from spinrun_worker.trainer.storage.publish import collect_assets, distinct, plan_shards, publish

ASSETS = {"config.json": b"{}\n", "tokenizer/vocabulary.txt": b"a b c\n"}


class Toy(nn.Module):
    """Layers whose sizes no number of ranks divides, a scalar, and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(33, 10)
        self.layers = nn.ModuleList([nn.Linear(10, 10), nn.Linear(10, 10)])
        self.scale = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(10, 33, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = hidden + layer(hidden).tanh()
        return self.head(hidden) * self.scale


def toy(*, sharded: bool) -> Toy:
    torch.manual_seed(0)
    model = Toy()
    if sharded:
        for layer in model.layers:
            fully_shard(layer)
        fully_shard(model)
    return model


def tensors_of(model: nn.Module) -> Mapping[str, Tensor]:
    return model.state_dict()


def read(directory: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def published(folder: str, number: int = 1) -> Path:
    return Path(folder) / "weights" / f"v{number:06d}"


def publish_toy(ranks: Distributed, folder: str, *, version: int = 1, **changes: Any) -> Manifest:
    ledger = LedgerWriter(Path(folder), "uid", attempt=1)
    ranks.from_rank0(ledger.claim)
    options: dict[str, Any] = {"version": version, "step": 16, "dtype": torch.bfloat16, "assets": ASSETS} | changes
    return publish(ledger, ranks, tensors_of(toy(sharded=ranks.world_size > 1)), **options)


def test_version_holds_every_tensor_in_the_published_type(alone: Distributed, tmp_path: Path) -> None:
    manifest = publish_toy(alone, str(tmp_path))
    written = read(published(str(tmp_path)))
    want = {name: tensor.to(torch.bfloat16) for name, tensor in toy(sharded=False).state_dict().items() if name != "head.weight"}
    assert written.keys() == want.keys()
    assert all(torch.equal(written[name], want[name]) for name in want)
    assert (manifest.kind, manifest.number, manifest.version, manifest.step) == ("weights", 1, 1, 16)
    assert [entry.path for entry in manifest.files] == ["config.json", "model.safetensors", "tokenizer/vocabulary.txt"]
    assert LedgerWriter(tmp_path, "uid", attempt=1).verify("weights", 1) == manifest


def test_same_weights_have_the_same_digest(alone: Distributed, tmp_path: Path) -> None:
    first = publish_toy(alone, str(tmp_path))
    again = publish_toy(alone, str(tmp_path))
    other = publish_toy(alone, str(tmp_path / "other"))
    assert first.digest == again.digest == other.digest


def test_large_models_have_several_files_and_an_index(alone: Distributed, tmp_path: Path) -> None:
    publish_toy(alone, str(tmp_path), max_shard_bytes=300)
    directory = published(str(tmp_path))
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in directory.glob("*.safetensors"))
    assert len(files) > 1
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert sorted(set(index["weight_map"].values())) == files
    assert {name: (directory / file).name for name, file in index["weight_map"].items()} == {
        name: file for file in files for name in load_file(directory / file)
    }


def publish_variously(ranks: Distributed, folder: str) -> list[str]:
    manifests = [publish_toy(ranks, folder, version=version) for version in (1, 1, 2)]
    manifests.append(publish_toy(ranks, folder, version=3, max_shard_bytes=300, dtype=torch.float32))
    return [manifest.digest for manifest in manifests]


def test_two_ranks_write_what_one_would(run_ranks: Any, tmp_path: Path) -> None:
    first, second = run_ranks(2, publish_variously, str(tmp_path))
    assert first == second, "every rank knows the manifest"
    assert first[0] == first[1], "the same bytes at the second publication"
    want = {name: tensor for name, tensor in toy(sharded=False).state_dict().items() if name != "head.weight"}
    for version, dtype in ((2, torch.bfloat16), (3, torch.float32)):
        directory = published(str(tmp_path), version)
        written = read(directory)
        assert written.keys() == want.keys()
        assert all(torch.equal(written[name], want[name].to(dtype)) for name in want)
        assert (directory / "model.safetensors.index.json").exists()
    assert sorted(path.name for path in published(str(tmp_path), 2).glob("*.safetensors")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    ]


@contextmanager
def volume_full(operation: str, name: str) -> Generator[None]:
    """The volume refuses an operation on files whose name contains a text."""

    def refuse(observed: str, path: Path) -> None:
        if observed == operation and name in path.name:
            raise LedgerUnavailableError(f"Cannot {operation} {path.name}: No space left on device")

    durable.observe = refuse
    try:
        yield
    finally:
        durable.observe = None


def publish_to_a_full_volume(ranks: Distributed, folder: str) -> list[str]:
    """What each rank raises when the volume is full at a rank's shard, at rank 0's manifest, at its new directory."""
    messages: list[str] = []
    for operation, name in (("write", "-00002-of-"), ("write", "-00001-of-"), ("replace", "MANIFEST"), ("mkdir", "v000001")):
        try:
            with volume_full(operation, name):
                publish_toy(ranks, folder)
        except LedgerUnavailableError as error:
            messages.append(str(error))
        if operation == "replace":
            ranks.from_rank0(lambda: LedgerWriter(Path(folder), "uid", attempt=1).delete("weights", 1))
    publish_toy(ranks, folder)
    return messages


def test_full_volume_stops_all_ranks_and_leaves_no_version(run_ranks: Any, tmp_path: Path) -> None:
    first, second = run_ranks(2, publish_to_a_full_volume, str(tmp_path))
    assert first == second
    assert [message.split(":")[0].removeprefix("Cannot ") for message in first] == [
        "write model-00002-of-00002.safetensors",
        "write model-00001-of-00002.safetensors",
        "replace MANIFEST.json",
        "mkdir v000001",
    ]
    LedgerWriter(tmp_path, "uid", attempt=1).verify("weights", 1)


def test_version_loads_as_a_model(alone: Distributed, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from support.models import tiny_llama

    source = tiny_llama(tmp_path / "source")
    model = AutoModelForCausalLM.from_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    model.config.quantization_config = {"quant_method": "gguf"}

    def save(folder: Path) -> None:
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    assets = collect_assets(save, dtype=torch.bfloat16)
    ledger = LedgerWriter(tmp_path / "ledger", "uid", attempt=1)
    ledger.claim()
    publish(ledger, alone, model.state_dict(), version=1, step=0, dtype=torch.bfloat16, assets=assets, max_shard_bytes=200_000)

    directory = ledger.layout.weights(1)
    loaded = AutoModelForCausalLM.from_pretrained(directory)
    assert loaded.dtype == torch.bfloat16
    assert json.loads((directory / "config.json").read_text())["dtype"] == "bfloat16"
    want = {name: parameter.to(torch.bfloat16) for name, parameter in model.named_parameters()}
    got = dict(loaded.named_parameters())
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert "lm_head.weight" not in json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    assert AutoTokenizer.from_pretrained(directory)("12 + 3")["input_ids"] == tokenizer("12 + 3")["input_ids"]


def test_assets_say_the_published_type_in_every_part() -> None:
    config = {
        "torch_dtype": "float16",
        "text_config": {"dtype": "float32", "x": 1},
        "vision_config": {"x": 2},
        "quantization_config": {},
    }
    assets = collect_assets(lambda folder: (folder / "config.json").write_text(json.dumps(config)), dtype=torch.float32)  # type: ignore[arg-type]
    assert json.loads(assets["config.json"]) == {
        "dtype": "float32",
        "text_config": {"dtype": "float32", "x": 1},
        "vision_config": {"x": 2},
    }


def test_assets_without_a_configuration_are_refused() -> None:
    with pytest.raises(ValueError, match=r"config\.json"):
        collect_assets(lambda _: None, dtype=torch.float32)


def test_tied_weights_are_one_tensor() -> None:
    shared = torch.ones(3, 2)
    tensors = {
        "a": shared,
        "b": shared.detach(),
        "view": shared.view(2, 3),
        "c": torch.ones(3, 2),
        "e": torch.empty(0),
        "f": torch.empty(0),
    }
    assert distinct(tensors) == ["a", "view", "c", "e", "f"]


specs = st.lists(st.integers(1, 5000), min_size=1, max_size=40).map(
    lambda sizes: [TensorSpec(f"layer.{index}", torch.bfloat16, (size,)) for index, size in enumerate(sizes)]
)


@settings(deadline=None, max_examples=50)
@given(specs=specs, world_size=st.integers(1, 6), max_bytes=st.integers(100, 20_000))
def test_shards_hold_each_tensor_once_and_are_balanced(specs: list[TensorSpec], world_size: int, max_bytes: int) -> None:
    shards = plan_shards(specs, world_size, max_bytes)
    assert shards == plan_shards(specs, world_size, max_bytes)
    written = [spec.name for shard in shards for spec in shard.tensors]
    assert sorted(written) == sorted(spec.name for spec in specs)
    assert all(len(shard.tensors) == 1 or sum(spec.num_bytes for spec in shard.tensors) <= max_bytes for shard in shards)
    loads = [
        sum(spec.num_bytes for shard in shards if shard.rank == rank for spec in shard.tensors) for rank in range(world_size)
    ]
    assert max(loads) - min(loads) <= max(spec.num_bytes for spec in specs)
    assert len({shard.file for shard in shards}) == len(shards)
    order = [spec.name for spec in specs]
    assert all(
        [spec.name for spec in shard.tensors] == sorted((s.name for s in shard.tensors), key=order.index) for shard in shards
    )


def test_one_file_has_the_plain_name() -> None:
    assert [shard.file for shard in plan_shards([TensorSpec("a", torch.float32, (2, 2))], 4)] == ["model.safetensors"]
