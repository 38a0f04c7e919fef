"""Staging: nothing reaches vLLM that the manifest does not vouch for, or that vLLM could not load."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from spinrun_protocol.ledger import Manifest
from spinrun_worker.ledger.ledger import Ledger
from spinrun_worker.rollout.staging import (
    Shapes,
    StagingCancelled,
    StagingError,
    Weights,
    remove_all_but,
    stage,
    staging_path,
)
from support.rollouts import VOCABULARY, Files, Publisher, model_files, tensors
from support.small_disk import small_disk

SHAPES: Shapes = {"embed.weight": (VOCABULARY, 4), "norm.weight": (4,)}


@pytest.fixture(params=["one file system", "two"])
def scratch(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Beside the ledger, or as if it were elsewhere."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    if request.param == "two":
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "scratch"
    path.mkdir()
    return path


def staged(publisher: Publisher, manifest: Manifest, scratch: Path, **options: Any) -> Weights:
    options = {"expected": None, "cancelled": lambda: False, "read": lambda _: None} | options
    return stage(manifest, Ledger(publisher.writer.root, manifest.uid), scratch, **options)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()  # it may have a second name
    path.write_bytes(data)


def test_a_version_is_taken_whole(publisher: Publisher, scratch: Path) -> None:
    manifest = publisher.publish(7)
    sizes: list[int] = []
    weights = staged(publisher, manifest, scratch, read=sizes.append)
    assert (weights.version, weights.digest, weights.shapes, weights.vocabulary_size) == (7, manifest.digest, SHAPES, VOCABULARY)
    assert weights.path == scratch / f"v000007-{manifest.digest[:8]}"
    assert {path.name: path.read_bytes() for path in weights.path.iterdir()} == {
        entry.path: (publisher.path(7) / entry.path).read_bytes() for entry in manifest.files
    }
    assert sum(sizes) == sum(entry.size for entry in manifest.files)


def test_full_scratch_space_says_so_and_is_tried_again(publisher: Publisher, tmp_path: Path) -> None:
    manifest = publisher.publish(7)
    with small_disk(tmp_path / "scratch", "1m") as disk:
        disk.fill()
        with pytest.raises(StagingError, match=f"No space left on device: {disk.folder}. Free space there or enlarge it"):
            staged(publisher, manifest, disk.folder)
        disk.resize("16m")
        assert staged(publisher, manifest, disk.folder).version == 7


def test_a_version_outlives_its_end_in_the_ledger_and_what_stands_there_next(publisher: Publisher, scratch: Path) -> None:
    weights = staged(publisher, publisher.publish(7), scratch)
    content = {path.name: path.read_bytes() for path in weights.path.iterdir()}
    remove(publisher.path(7))
    publisher.publish(7, model_files(fill=2.0))
    assert {path.name: path.read_bytes() for path in weights.path.iterdir()} == content


def test_on_one_file_system_nothing_is_copied(publisher: Publisher, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    weights = staged(publisher, publisher.publish(7), scratch)
    assert (weights.path / "config.json").samefile(publisher.path(7) / "config.json")


def unpublish(directory: Path) -> None:
    (directory / "MANIFEST.json").unlink()


def tear(directory: Path) -> None:
    os.truncate(directory / "model.safetensors", 100)


def lose(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def damage(directory: Path) -> None:
    flip(directory / "model.safetensors")


def link(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory.parent / "elsewhere")
    (directory / "model.safetensors").symlink_to(directory.parent / "elsewhere")


def pipe(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    os.mkfifo(directory / "model.safetensors")


def remove(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (unpublish, "MANIFEST.json"),
        (tear, "model.safetensors"),
        (lose, "model.safetensors"),
        (damage, "model.safetensors"),
        (link, "model.safetensors"),
        (pipe, "model.safetensors"),
        (remove, "v000007"),
    ],
)
def test_a_directory_that_disagrees_is_refused_by_name(
    publisher: Publisher, scratch: Path, spoil: Callable[[Path], None], named: str
) -> None:
    manifest = publisher.publish(7)
    spoil(publisher.path(7))
    with pytest.raises(StagingError, match=named):
        staged(publisher, manifest, scratch)
    assert list(scratch.iterdir()) == []


def test_a_version_written_again_with_other_content_is_refused(publisher: Publisher, scratch: Path) -> None:
    manifest = publisher.publish(7, fill=1)
    publisher.publish(7, fill=2)
    with pytest.raises(StagingError, match="holds other weights"):
        staged(publisher, manifest, scratch)


def test_another_runs_directory_is_refused(publisher: Publisher, scratch: Path) -> None:
    manifest = publisher.publish(7)
    with pytest.raises(StagingError, match="belongs to run"):
        stage(
            manifest.model_copy(update={"uid": "other"}),
            Ledger(publisher.writer.root, "other"),
            scratch,
            expected=None,
            cancelled=lambda: False,
            read=lambda _: None,
        )


def with_index(weight_map: object) -> Files:
    return {**model_files(), "model.safetensors.index.json": {"weight_map": weight_map}}


def with_tensors(**changed: np.ndarray) -> Files:
    return model_files() | {"model.safetensors": save(tensors(0) | changed)}


ALL_IN_ONE = dict.fromkeys(SHAPES, "model.safetensors")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        pytest.param({"config.json": {"vocab_size": VOCABULARY}}, "no tensors", id="no shard"),
        pytest.param(model_files() | {"model.safetensors": b""}, "not a valid safetensors", id="empty shard"),
        pytest.param(model_files() | {"model.safetensors": b"\0" * 64}, "not a valid safetensors", id="zeros"),
        pytest.param(
            model_files() | {"model.safetensors": save(tensors(0))[:-4]}, "not a valid safetensors", id="cut by the trainer"
        ),
        pytest.param(model_files() | {"model-2.safetensors": save(tensors(1))}, "a second time", id="tensor in two shards"),
        pytest.param(with_index({"embed.weight": "model.safetensors"}), "norm.weight", id="index lacks a tensor"),
        pytest.param(with_index(ALL_IN_ONE | {"ghost": "model.safetensors"}), "ghost", id="index invents a tensor"),
        pytest.param(with_index(ALL_IN_ONE | {"norm.weight": "other"}), "norm.weight", id="index names another shard"),
        pytest.param(with_index(None), "embed.weight", id="index without a map"),
        pytest.param(model_files() | {"model.safetensors.index.json": b"{"}, "not JSON", id="index torn"),
        pytest.param({"model.safetensors": save(tensors(0))}, "config.json is missing", id="no config"),
        pytest.param(model_files() | {"config.json": b"[]"}, "not a JSON object", id="config of another type"),
        pytest.param(model_files() | {"config.json": {}}, "vocab_size", id="config without vocabulary"),
        pytest.param(with_tensors(**{"norm.weight": np.zeros(5, np.float32)}), "norm.weight has shape", id="other shape"),
        pytest.param(with_tensors(extra=np.zeros(1, np.float32)), "extra has shape", id="a tensor too many"),
        pytest.param(
            model_files() | {"model.safetensors": save({"norm.weight": np.zeros(4, np.float32)})},
            "embed.weight has shape None",
            id="a tensor too few",
        ),
    ],
)
def test_weights_that_vllm_could_not_load_are_refused(publisher: Publisher, scratch: Path, files: Files, message: str) -> None:
    manifest = publisher.publish(7, files)
    with pytest.raises(StagingError, match=message):
        staged(publisher, manifest, scratch, expected=SHAPES)


def test_shards_with_an_index_are_taken(publisher: Publisher, scratch: Path) -> None:
    shards = {f"model-{name}.safetensors": save({name: tensor}) for name, tensor in tensors(0).items()}
    index = {"weight_map": {name: f"model-{name}.safetensors" for name in SHAPES}}
    config = {"text_config": {"vocab_size": 9}}
    manifest = publisher.publish(0, {"config.json": config, "model.safetensors.index.json": index, **shards})
    weights = staged(publisher, manifest, scratch, expected=SHAPES)
    assert (weights.shapes, weights.vocabulary_size) == (SHAPES, 9)


def test_an_intact_copy_is_used_again_without_the_ledger(publisher: Publisher, scratch: Path) -> None:
    manifest = publisher.publish(7)
    first = staged(publisher, manifest, scratch)
    remove(publisher.path(7))
    sizes: list[int] = []
    assert staged(publisher, manifest, scratch, read=sizes.append) == first
    assert sizes == []


def test_a_damaged_copy_is_replaced(publisher: Publisher, scratch: Path) -> None:
    manifest = publisher.publish(7)
    weights = staged(publisher, manifest, scratch)
    flip(weights.path / "model.safetensors")
    weights = staged(publisher, manifest, scratch)
    assert (weights.path / "model.safetensors").read_bytes() == (publisher.path(7) / "model.safetensors").read_bytes()


def test_a_copy_cut_short_is_started_again(publisher: Publisher, scratch: Path) -> None:
    manifest = publisher.publish(7)
    partial = staging_path(manifest, scratch).with_suffix(".partial")
    partial.mkdir()
    (partial / "config.json").write_text(json.dumps({"vocab_size": 1}))
    assert staged(publisher, manifest, scratch).vocabulary_size == VOCABULARY
    assert not partial.exists()


def test_staging_stops_once_another_version_is_wanted(publisher: Publisher, scratch: Path) -> None:
    manifest = publisher.publish(7)
    with pytest.raises(StagingCancelled):
        staged(publisher, manifest, scratch, cancelled=lambda: True)
    assert list(scratch.iterdir()) == []


def test_scratch_space_that_refuses_is_named(publisher: Publisher, tmp_path: Path) -> None:
    manifest = publisher.publish(7)
    (tmp_path / "file").write_text("")
    with pytest.raises(StagingError, match=r"cannot stage version 7.*Not a directory"):
        staged(publisher, manifest, tmp_path / "file")


def test_files_that_vanish_from_scratch_space_are_noticed(publisher: Publisher, scratch: Path) -> None:
    weights = staged(publisher, publisher.publish(7), scratch)
    weights.require_intact()
    (weights.path / "config.json").unlink()
    with pytest.raises(StagingError, match=r"config\.json"):
        weights.require_intact()


def test_only_what_an_agent_wrote_is_removed(scratch: Path) -> None:
    names = ["v000001-aaaaaaaa", "v000002-bbbbbbbb", "v000003-cccccccc.partial", "v1", "precious", "wanted.json"]
    for name in names:
        (scratch / name).mkdir()
    remove_all_but([scratch / "v000002-bbbbbbbb"], scratch)
    assert {path.name for path in scratch.iterdir()} == {"v000002-bbbbbbbb", "v1", "precious", "wanted.json"}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter_model.bin", "consolidated.00.pth", "model.pt", "model.ckpt"])
def test_a_version_with_weights_that_run_code_is_not_staged(publisher: Publisher, scratch: Path, name: str) -> None:
    manifest = publisher.publish(7, model_files() | {name: b"x"})
    with pytest.raises(StagingError, match=f"{name} would run code when it is loaded"):
        staged(publisher, manifest, scratch)
