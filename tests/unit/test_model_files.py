"""Models of the Hub, as they lie in its cache: the same is refused there as in a folder."""

import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from spinrun_api.spec import Model
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.model_files import find_file
from spinrun_worker.trainer.model.policy import load_policy
from support.models import smallest_llama

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of org/tiny in the cache, of a machine that must not ask the Hub."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "cache" / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    return smallest_llama(repository / "snapshots" / COMMIT)


def test_a_file_of_the_cache_is_found_and_another_is_not(cached: Path) -> None:
    assert find_file("org/tiny", None, "config.json") == cached / "config.json"
    assert find_file("org/tiny", None, "adapter_config.json") is None
    assert find_file("org/none", None, "config.json") is None
    assert find_file("not/an/id", None, "config.json") is None


def test_a_model_of_the_cache_loads(cached: Path) -> None:
    content = b'{"eos_token_id": 3, "temperature": 0.1}'
    (cached / "generation_config.json").write_bytes(content)
    assert load_policy(Model(source="org/tiny")).generation_config == content


def test_pickles_of_the_hub_are_not_loaded(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cached / "model.safetensors").rename(cached / "pytorch_model.bin")
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda *_, **__: [path.name for path in cached.iterdir()])
    with pytest.raises(ConfigurationError, match=r"org/tiny has its weights in pytorch_model\.bin alone"):
        load_policy(Model(source="org/tiny"))


def test_an_index_of_the_hub_that_names_a_pickle_is_refused(cached: Path) -> None:
    shutil.move(cached / "model.safetensors", cached / "pytorch_model.bin")
    index = '{"metadata": {}, "weight_map": {"model.norm.weight": "pytorch_model.bin"}}'
    (cached / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ConfigurationError, match=r"index\.json names pytorch_model\.bin, which is not safetensors"):
        load_policy(Model(source="org/tiny"))


def test_a_model_that_is_nowhere_is_for_the_user_where_the_hub_must_not_be_asked(cached: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^model\.source 'org/none' cannot be loaded"):
        load_policy(Model(source="org/none"))
