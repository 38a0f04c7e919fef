"""Safetensors files that everybody can read, written one tensor at a time."""

import json
import re
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spinrun_worker.ledger import TensorSpec, TornError, hash_file, read_safetensors, weights_index, write_safetensors
from spinrun_worker.ledger import weights as ledger_weights

DTYPES = [
    torch.float64,
    torch.int64,
    torch.float32,
    torch.int32,
    torch.bfloat16,
    torch.float16,
    torch.int16,
    torch.uint8,
    torch.int8,
    torch.bool,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


def spec_of(name: str, tensor: torch.Tensor) -> TensorSpec:
    return TensorSpec(name, tensor.dtype, tensor.shape)


def write(path: Path, tensors: dict[str, torch.Tensor]):
    return write_safetensors(path, [spec_of(*item) for item in tensors.items()], iter(tensors.values()))


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """A tensor of any bits, NaNs among them."""
    generator = torch.Generator().manual_seed(seed)
    num_bytes = torch.Size(shape).numel() * dtype.itemsize
    high = 2 if dtype == torch.bool else 256
    return torch.randint(high, (num_bytes,), dtype=torch.uint8, generator=generator).view(dtype).reshape(shape)


tensors = st.lists(
    st.tuples(
        st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
        st.sampled_from(DTYPES),
        st.lists(st.integers(0, 5), max_size=3).map(tuple),
        st.integers(0, 2**31),
    ),
    max_size=6,
    unique_by=lambda item: item[0],
).map(
    lambda items: {
        name: random_bits(shape, dtype, seed) for name, dtype, shape, seed in sorted(items, key=lambda item: -item[1].itemsize)
    }
)


@given(tensors=tensors)
@settings(max_examples=60, deadline=None)
def test_every_bit_is_read_back_by_safetensors(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"

    entry = write(path, tensors)

    assert entry == hash_file(path)
    read = load_file(path)
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert torch.equal(read[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_file_is_byte_for_byte_what_safetensors_writes(tmp_path):
    """safetensors sorts by width and name; in that order both write the same bytes."""
    tensors = {"a": torch.arange(7, dtype=torch.float32), "b.weight": torch.ones(3, 5), "c": torch.ones(3, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})

    write(tmp_path / "ours", tensors)

    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_data_start_at_a_multiple_of_eight_bytes(tmp_path):
    for length in range(1, 20):
        write(tmp_path / "x", {"n" * length: torch.zeros(2)})
        header_bytes = int.from_bytes((tmp_path / "x").read_bytes()[:8], "little")
        assert header_bytes % 8 == 0


def test_tensors_may_be_views_and_need_gradients(tmp_path):
    matrix = torch.arange(12, dtype=torch.float32).reshape(3, 4).requires_grad_()

    write(tmp_path / "x", {"transposed": matrix.T, "column": matrix[:, 1], "scalar": matrix.sum()})

    read = load_file(tmp_path / "x")
    assert torch.equal(read["transposed"], matrix.T)
    assert torch.equal(read["column"], matrix[:, 1])
    assert read["scalar"].item() == 66


def test_never_more_than_one_tensor_is_alive(tmp_path):
    alive = 0
    most = 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def produce() -> Iterator[torch.Tensor]:
        nonlocal alive, most
        for _ in range(8):
            storage = torch.ones(1000, 100)
            weakref.finalize(storage, gone)
            alive += 1
            most = max(most, alive)
            yield storage
            del storage

    write_safetensors(tmp_path / "x", [TensorSpec(f"t{i}", torch.float32, (1000, 100)) for i in range(8)], produce())

    assert most == 1
    assert alive == 0


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(2, 3), r"w should be torch.bfloat16 \(2, 3\), got torch.float32 \(2, 3\)"),
        (torch.zeros(3, 2, dtype=torch.bfloat16), r"got torch.bfloat16 \(3, 2\)"),
        (torch.zeros(6, dtype=torch.bfloat16), r"got torch.bfloat16 \(6,\)"),
    ],
    ids=["dtype", "shape", "flat"],
)
def test_tensor_that_differs_from_its_spec_is_refused(tmp_path, tensor, message):
    with pytest.raises(ValueError, match=message):
        write_safetensors(tmp_path / "x", [TensorSpec("w", torch.bfloat16, (2, 3))], [tensor])


@pytest.mark.parametrize("chunk_bytes", [8, 64, 1 << 20])
def test_tensors_of_other_dtypes_are_converted_where_that_is_asked_for(tmp_path, monkeypatch, chunk_bytes):
    """Whatever the size of a chunk: tensors are divided between chunks, and chunks hold several."""
    monkeypatch.setattr(ledger_weights, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(ledger_weights, "_SERIAL_VALUES", 3)
    tensors = {"a": torch.randn(7, 5), "b": torch.randn(()), "c": torch.randn(3, 2).T, "d": torch.empty(0, 4)}
    specs = [TensorSpec(name, torch.bfloat16, tensor.shape) for name, tensor in tensors.items()]

    entry = write_safetensors(tmp_path / "x", specs, iter(tensors.values()), convert=True)

    assert entry == hash_file(tmp_path / "x")
    read = load_file(tmp_path / "x")
    assert all(torch.equal(read[name], tensor.to(torch.bfloat16)) for name, tensor in tensors.items())


@pytest.mark.parametrize(("count", "message"), [(1, "tensor b is missing"), (3, "more tensors than the 2 specs")])
def test_number_of_tensors_must_be_that_of_the_specs(tmp_path, count, message):
    specs = [TensorSpec(name, torch.float32, (1,)) for name in "ab"]
    with pytest.raises(ValueError, match=message):
        write_safetensors(tmp_path / "x", specs, [torch.zeros(1)] * count)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([TensorSpec("a", torch.float32, (1,)), TensorSpec("a", torch.float32, (1,))], "these are not: a"),
        ([TensorSpec("__metadata__", torch.float32, (1,))], "these are not: __metadata__"),
        ([TensorSpec("a", torch.complex64, (1,))], "safetensors has no torch.complex64"),
        (
            [TensorSpec("a", torch.bfloat16, (1,)), TensorSpec("b", torch.float32, (1,))],
            "put tensors of wider dtypes first",
        ),
    ],
    ids=["same name", "reserved name", "dtype", "alignment"],
)
def test_specs_that_cannot_be_stored_are_refused_before_anything_is_written(tmp_path, specs, message):
    with pytest.raises(ValueError, match=message):
        write_safetensors(tmp_path / "x", specs, [])
    assert list(tmp_path.iterdir()) == []


def test_index_says_which_file_holds_which_tensor():
    shards = {
        "model-00001-of-00002.safetensors": [TensorSpec("b", torch.float32, (2, 3))],
        "model-00002-of-00002.safetensors": [TensorSpec("a", torch.bfloat16, (5,)), TensorSpec("c", torch.bfloat16, ())],
    }

    assert json.loads(weights_index(shards)) == {
        "metadata": {"total_size": 24 + 10 + 2},
        "weight_map": {
            "a": "model-00002-of-00002.safetensors",
            "b": "model-00001-of-00002.safetensors",
            "c": "model-00002-of-00002.safetensors",
        },
    }


def test_index_refuses_a_tensor_in_two_files():
    spec = TensorSpec("a", torch.float32, (1,))
    with pytest.raises(ValueError, match="these are not: a"):
        weights_index({"one": [spec], "two": [spec]})


def test_sharded_model_is_loaded_by_transformers_and_by_safe_open(tmp_path):
    """safe_open with get_tensor is how vLLM reads weights."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    config.save_pretrained(tmp_path)
    state = list(model.state_dict().items())
    parts = {"model-00001-of-00002.safetensors": state[:7], "model-00002-of-00002.safetensors": state[7:]}
    for name, items in parts.items():
        write(tmp_path / name, dict(items))
    index = weights_index({name: [spec_of(*item) for item in items] for name, items in parts.items()})
    (tmp_path / "model.safetensors.index.json").write_bytes(index)

    loaded, report = cast("Any", AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto", output_loading_info=True))

    assert not any(report.values())
    assert loaded.dtype == torch.bfloat16
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in state)
    for name, items in parts.items():
        with safe_open(tmp_path / name, framework="pt") as file:
            assert file.metadata() == {"format": "pt"}
            assert all(torch.equal(file.get_tensor(key), tensor) for key, tensor in items)


@given(tensors=tensors)
@settings(max_examples=60, deadline=None)
def test_every_bit_is_read_back_by_name(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    entry = write(path, tensors)

    read = dict(read_safetensors(path, entry))

    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_any_changed_byte_is_refused_when_it_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    entry = write(path, {"a": torch.arange(3, dtype=torch.float32), "b": torch.ones(2, dtype=torch.bfloat16)})
    sound = path.read_bytes()

    for position in range(len(sound)):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 1]) + sound[position + 1 :])
        with pytest.raises(TornError, match=re.escape(str(path))):
            list(read_safetensors(path, entry))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(b""), "has 0 bytes, MANIFEST.json says"),
        (lambda path: path.write_bytes(path.read_bytes() + b"0"), "bytes, MANIFEST.json says"),
        (lambda path: path.rename(path.with_name("x")) and path.symlink_to("x"), "is a link"),
    ],
    ids=["gone", "empty", "longer", "a link"],
)
def test_a_file_that_is_not_the_one_that_was_written_is_refused(tmp_path, spoil, message):
    path = tmp_path / "model.safetensors"
    entry = write(path, {"a": torch.ones(3)})
    spoil(path)

    with pytest.raises(TornError, match=message):
        list(read_safetensors(path, entry))


@pytest.mark.parametrize(
    "shape",
    [[-1, -2], [2.0], [0.5, 4], [True, 2], ["2"], "2", {"2": 1}, None, [2**40, 0], [2**63, 0], [2**40, 2**40, 0], [4], []],
    ids=str,
)
def test_shape_that_cannot_be_is_refused(tmp_path, shape):
    header = json.dumps({"__metadata__": {}, "x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 8]}}).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))

    with pytest.raises(TornError, match=r"odd\.safetensors has"):
        list(read_safetensors(path, hash_file(path)))


@pytest.mark.parametrize("shape", [[2**63, 0], [2**62, 2**62, 0], [0] * 100], ids=["int64", "product", "many"])
def test_shape_without_elements_is_read_or_refused(tmp_path, shape):
    header = json.dumps({"__metadata__": {}, "x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}}).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)

    with suppress(TornError):
        list(read_safetensors(path, hash_file(path)))


def test_deep_header_is_refused(tmp_path):
    header = b"[" * 100_000
    path = tmp_path / "deep.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)

    with pytest.raises(TornError, match="has no valid header"):
        list(read_safetensors(path, hash_file(path)))


def test_never_more_than_one_tensor_is_read_at_a_time(tmp_path):
    path = tmp_path / "x"
    entry = write(path, {f"t{number}": torch.full((1000, 100), float(number)) for number in range(8)})
    alive = most = 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    for _, tensor in read_safetensors(path, entry):
        weakref.finalize(tensor, gone)
        alive += 1
        most = max(most, alive)
        del tensor

    assert (most, alive) == (1, 0)
