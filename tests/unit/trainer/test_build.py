"""What an attempt needs before it can begin, and what it says when that is not there."""

from pathlib import Path
from typing import Any

import pytest

from spinrun_api.documents import parse_run
from spinrun_protocol.environment import ROLLOUTS, TOKEN_FILE
from spinrun_protocol.exit_codes import ExitCode
from spinrun_protocol.wire import Progress
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.trainer.build import PROCESSOR_FILES, connect_rollouts, save_assets
from spinrun_worker.trainer.model.policy import load_policy
from spinrun_worker.trainer.ranks.termination import describe_failure
from spinrun_worker.trainer.reporting.board import ProgressBoard
from support.documents import letters_run
from support.models import tiny_tokenizer
from unit.trainer.model.test_policy import FAMILIES, saved


def connect(monkeypatch: pytest.MonkeyPatch, environment: dict[str, Any]) -> ConfigurationError:
    for name in (ROLLOUTS, TOKEN_FILE):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    board = ProgressBoard(Progress(uid="u", attempt=1, activity="starting", window=0, windows=1, step=0, total_steps=1))
    with (
        pytest.raises(ConfigurationError) as raised,
        connect_rollouts(parse_run(letters_run("letters", model={"source": "/none"})), board),
    ):
        pass
    return raised.value


@pytest.mark.parametrize("content", [None, b"", b"\xff"], ids=["missing", "empty", "not UTF-8"])
def test_a_token_file_that_cannot_be_read_is_a_wrong_configuration_and_never_retried(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    if content is not None:
        token.write_bytes(content)
    error = connect(monkeypatch, {ROLLOUTS: "http://127.0.0.1:1", TOKEN_FILE: token})
    assert f"{TOKEN_FILE}={token}" in str(error)
    assert describe_failure(error).exit_code == ExitCode.INVALID_CONFIGURATION


def test_a_trainer_that_is_not_told_where_the_rollouts_are_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ROLLOUTS in str(connect(monkeypatch, {}))


@pytest.mark.parametrize(("family", "has_processor"), [("gemma3 with images", True), ("llama", False)])
def test_a_version_of_a_model_for_images_has_what_vllm_needs_to_see_them(family: str, has_processor: bool, tmp_path: Path):
    model = saved(FAMILIES[family](), tmp_path / "model")
    for name in PROCESSOR_FILES:
        (tmp_path / "model" / name).write_text(name)
    (tmp_path / "version").mkdir()

    save_assets(model, load_policy(model), tiny_tokenizer(), tmp_path / "version")

    for name in PROCESSOR_FILES:
        assert (tmp_path / "version" / name).exists() is has_processor
        assert not has_processor or (tmp_path / "version" / name).read_text() == name
