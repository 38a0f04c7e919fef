"""A model's files: whatever is wrong with them is one sentence with file and remedy, and a pickle is never read."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from spinrun_api.spec import Model
from spinrun_protocol.exit_codes import ExitCode
from spinrun_worker.trainer.build import published_dtype, save_assets
from spinrun_worker.trainer.inputs import load_tokenizer
from spinrun_worker.trainer.model.files import ModelError, check_files
from spinrun_worker.trainer.model.policy import load_policy
from spinrun_worker.trainer.ranks.termination import describe_failure
from spinrun_worker.trainer.storage.publish import collect_assets
from support.models import smallest_llama

Damage = Callable[[Path], object]

CONFIG, GENERATION, WEIGHTS, INDEX = "config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return smallest_llama(tmp_path / "model")


def put(name: str, content: str | bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def edit(name: str, **changes: Any) -> Damage:
    return lambda folder: (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | changes))


def cut(name: str) -> Damage:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def replaced(name: str, make: Callable[[Path], object]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return damage


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


class Code:
    """Runs when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def pickled(name: str) -> Damage:
    """A pickle in place of the weights, beside which a file appears when it is read."""

    def damage(folder: Path) -> None:
        (folder / name).write_bytes(pickle.dumps(Code(folder / "UNPICKLED")))

    return damage


def then(*damages: Damage) -> Damage:
    def damage(folder: Path) -> None:
        for each in damages:
            each(folder)

    return damage


def sharded(names: tuple[str, str] = ("model-1.safetensors", "model-2.safetensors"), **index: Any) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        weight_map = {name: names[number % 2] for number, name in enumerate(sorted(tensors))}
        for shard in {name for name in names if name.endswith(".safetensors") and "/" not in name}:
            part = {name: tensors[name] for name, place in weight_map.items() if place == shard}
            save_file(part, folder / shard, metadata={"format": "pt"})
        (folder / WEIGHTS).unlink()
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map} | index))

    return damage


def with_value(value: float) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        tensors["model.norm.weight"][3] = value
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


DEEP = "[" * 100_000
ADAPTER = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"})

DAMAGED: dict[str, tuple[Damage, str]] = {
    # The configuration.
    "no config": (remove(CONFIG), "has no config.json"),
    "config null": (put(CONFIG, "null"), "config.json must hold a JSON object, and holds null"),
    "config list": (put(CONFIG, "[]"), "config.json must hold a JSON object, and holds a list"),
    "config empty": (put(CONFIG, ""), "config.json is not JSON"),
    "config cut": (cut(CONFIG), "config.json is not JSON"),
    "config deep": (put(CONFIG, DEEP), "config.json is not JSON"),
    "config not UTF-8": (put(CONFIG, b"\xff\xfe"), "config.json is not JSON"),
    "config pipe": (replaced(CONFIG, os.mkfifo), "config.json is not a regular file"),
    "config folder": (replaced(CONFIG, os.mkdir), "config.json is not a regular file"),
    "config nowhere": (
        replaced(CONFIG, lambda path: path.symlink_to("/nowhere")),
        "config.json leads to a file that is not there",
    ),
    "config loop": (replaced(CONFIG, lambda path: path.symlink_to(path)), "Too many levels of symbolic links"),
    "unknown type": (edit(CONFIG, model_type="nonsense"), "config.json: .*nonsense"),
    "type is a list": (edit(CONFIG, model_type=["llama"]), "config.json: TypeError"),
    "layers are text": (edit(CONFIG, num_hidden_layers="2"), "config.json: .*num_hidden_layers"),
    "half a unit": (edit(CONFIG, hidden_size=8.5), "config.json: .*hidden_size"),
    "no heads": (edit(CONFIG, num_attention_heads=0), "config.json: ZeroDivisionError"),
    "no such dtype": (edit(CONFIG, dtype="nonsense"), "config.json: AttributeError"),
    "no such activation": (
        edit(CONFIG, hidden_act="nonsense"),
        "cannot be loaded as a causal language model: KeyError: 'nonsense'",
    ),
    "no such rope": (edit(CONFIG, rope_parameters={"rope_type": "nonsense"}), "cannot be loaded as a causal language model"),
    "vocabulary below zero": (edit(CONFIG, vocab_size=-1), "cannot be loaded as a causal language model"),
    "another vocabulary": (edit(CONFIG, vocab_size=100), "does not match its config.json, 1 mismatched keys"),
    "another width": (edit(CONFIG, hidden_size=16), "does not match its config.json, .* mismatched keys"),
    "more layers": (edit(CONFIG, num_hidden_layers=2), "does not match its config.json, .* missing keys"),
    "quantized": (edit(CONFIG, quantization_config={"quant_method": "gptq"}), "it is quantized .*config.json"),
    # The weights.
    "no weights": (remove(WEIGHTS), "cannot be loaded as a causal language model.*model.safetensors"),
    "weights cut": (cut(WEIGHTS), "model.safetensors is not a whole safetensors file .*copy it again"),
    "weights empty": (put(WEIGHTS, ""), "model.safetensors is not a whole safetensors file"),
    "a pointer of git": (
        put(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n"),
        "model.safetensors is not a whole safetensors",
    ),
    "weights nowhere": (
        replaced(WEIGHTS, lambda path: path.symlink_to("/nowhere")),
        "model.safetensors leads to a file that is not",
    ),
    "weights pipe": (replaced(WEIGHTS, os.mkfifo), "model.safetensors is not a regular file"),
    "NaN": (with_value(float("nan")), "model.norm.weight holds values that are not finite"),
    "infinity": (with_value(float("-inf")), "model.norm.weight holds values that are not finite"),
    "a shard is missing": (then(sharded(), remove("model-2.safetensors")), "model-2.safetensors is missing"),
    "a shard is cut": (then(sharded(), cut("model-2.safetensors")), "model-2.safetensors is not a whole safetensors file"),
    "index cut": (then(sharded(), cut(INDEX)), "index.json is not JSON"),
    "index null": (then(sharded(), put(INDEX, "null")), "index.json must hold a JSON object"),
    "index without a map": (sharded(weight_map=None), "index.json must have metadata and a weight_map"),
    "index with a list": (sharded(weight_map=["x"]), "index.json must have metadata and a weight_map"),
    "index without metadata": (sharded(metadata=None), "index.json must have metadata and a weight_map"),
    "index leads out": (sharded(("model-1.safetensors", "../x.safetensors")), "names ../x.safetensors, which is outside"),
    # Pickles.
    "a pickle alone": (then(remove(WEIGHTS), pickled("pytorch_model.bin")), "pytorch_model.bin alone, .* convert it once"),
    "sharded pickles": (
        then(remove(WEIGHTS), pickled("pytorch_model-00001-of-00001.bin"), put("pytorch_model.bin.index.json", "{}")),
        "pytorch_model-00001-of-00001.bin alone",
    ),
    "another pickle": (then(remove(WEIGHTS), pickled("consolidated.00.pth")), "consolidated.00.pth alone"),
    "the index names a pickle": (
        then(sharded(("model-1.safetensors", "pytorch_model.bin")), pickled("pytorch_model.bin")),
        "names pytorch_model.bin, which is not safetensors",
    ),
    "the config names a pickle": (
        then(pickled("adapter_model.bin"), edit(CONFIG, transformers_weights="adapter_model.bin")),
        "names 'adapter_model.bin' as its weights",
    ),
    "an adapter": (
        then(put("adapter_config.json", ADAPTER), pickled("adapter_model.bin")),
        r"holds an adapter .*merge_and_unload",
    ),
    # What the end tokens are taken from.
    "generation cut": (cut(GENERATION), "generation_config.json is not JSON .*restore the file, or remove it"),
    "generation null": (put(GENERATION, "null"), "generation_config.json must hold a JSON object"),
    "generation pipe": (replaced(GENERATION, os.mkfifo), "generation_config.json is not a regular file"),
    "an end that is no id": (
        edit(GENERATION, eos_token_id="</s>"),
        "eos_token_id must be a token id or a list of them, got '</s>'",
    ),
    "what vLLM cannot read": (edit(GENERATION, early_stopping="perhaps"), "generation_config.json: .*early_stopping"),
    "what breaks its reader": (edit(GENERATION, pad_token_id="a"), "generation_config.json: TypeError"),
}


@pytest.mark.parametrize(("damage", "want"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_model_is_a_sentence_with_exit_code_2(folder: Path, damage: Damage, want: str) -> None:
    damage(folder)

    with pytest.raises(ModelError, match=f"^model.source '{folder}'.*{want}") as caught:
        load_policy(Model(source=str(folder)))

    assert describe_failure(caught.value).exit_code == ExitCode.INVALID_CONFIGURATION
    assert "\n" not in str(caught.value)
    assert not (folder / "UNPICKLED").exists()


@pytest.mark.parametrize("name", ["a pickle alone", "a shard is missing", "config null", "quantized", "generation cut"])
def test_what_files_alone_can_say_is_said_before_anything_heavy_is_read(folder: Path, name: str) -> None:
    damage, want = DAMAGED[name]
    damage(folder)
    with pytest.raises(ModelError, match=want):
        check_files(Model(source=str(folder)))


def test_what_leads_elsewhere_than_to_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ModelError, match="is a file, not a folder"):
        check_files(Model(source=str(tmp_path / "file")))
    with pytest.raises(ModelError, match="does not exist"):
        check_files(Model(source=str(tmp_path / "nowhere")))


def test_a_folder_that_may_not_be_read_is_for_the_user(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", denied)  # tests run as root, who may read everything
    with pytest.raises(ModelError, match=f"^model.source '{folder}'.*Permission denied"):
        check_files(Model(source=str(folder)))


@pytest.mark.parametrize(
    "damage",
    [sharded(), pickled("pytorch_model.bin"), pickled("training_args.bin"), put("consolidated.safetensors.index.json", "{")],
    ids=["shards", "a pickle beside safetensors", "what a trainer leaves", "an index of others"],
)
def test_what_is_beside_safetensors_does_not_matter(folder: Path, damage: Damage) -> None:
    whole = load_policy(Model(source=str(folder))).state()
    damage(folder)
    loaded = load_policy(Model(source=str(folder))).state()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in whole.items())
    assert not (folder / "UNPICKLED").exists()


ODD = {
    "sampling parameters without sampling": {"eos_token_id": 3, "temperature": 0.9, "top_p": 0.6},
    "greedy with a temperature": {"eos_token_id": 3, "do_sample": False, "temperature": 1e-6},
    "beam search of one": {"eos_token_id": 3, "num_beams": 1, "length_penalty": 0.6},
    "no padding, said as -1": {"eos_token_id": [3, 1], "pad_token_id": -1},
    "a temperature in words": {"temperature": "warm"},
    "what only its author knows": {"eos_token_id": None, "of_mine": {"deep": [1, None]}},
    "nothing": {},
}


@pytest.mark.parametrize("settings", ODD.values(), ids=ODD.keys())
def test_an_odd_generation_config_is_taken_into_versions_as_it_is(folder: Path, settings: dict[str, Any]) -> None:
    content = json.dumps(settings, indent=3).encode()
    (folder / GENERATION).write_bytes(content)
    assert assets_of(folder)[GENERATION] == content


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.9, "num_beams": 4, "early_stopping": True, "top_k": 0}])
def test_without_a_generation_config_versions_say_what_the_config_says(folder: Path, settings: dict[str, Any]) -> None:
    (folder / GENERATION).unlink()
    edit(CONFIG, **settings)(folder)
    assert json.loads(assets_of(folder)[GENERATION])["eos_token_id"] == 3


def assets_of(folder: Path) -> dict[str, bytes]:
    model = Model(source=str(folder))
    policy, tokenizer = load_policy(model), load_tokenizer(model)
    return collect_assets(lambda to: save_assets(model, policy, tokenizer, to), dtype=published_dtype(model))
