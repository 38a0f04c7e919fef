"""What an attempt needs before it can begin, and what it says when that is not there."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from spinrun_api.documents import parse_run
from spinrun_protocol.environment import ROLLOUTS, TOKEN_FILE
from spinrun_protocol.exit_codes import ExitCode
from spinrun_protocol.ledger import RunRecord
from spinrun_protocol.wire import Progress
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.ledger import LedgerWriter
from spinrun_worker.trainer.build import PROCESSOR_FILES, connect_rollouts, resolve_truncated, save_assets
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


@pytest.mark.parametrize(
    ("rule", "earlier", "want"),
    [
        pytest.param({"kind": "gsm8k"}, None, "zero", id="a new run has the default of its rule"),
        pytest.param({"kind": "regex", "pattern": "1"}, None, "score", id="which is another one here"),
        pytest.param({"kind": "gsm8k"}, {"kind": "gsm8k"}, "score", id="a run from before there was the field keeps scoring all"),
        pytest.param({"kind": "gsm8k"}, {"kind": "gsm8k", "truncated": "zero"}, "zero", id="a later attempt of a new run"),
        pytest.param({"kind": "gsm8k"}, {"kind": "gsm8k", "truncated": "score"}, "score", id="a later attempt of an old run"),
        pytest.param({"kind": "gsm8k", "truncated": "drop"}, {"kind": "gsm8k"}, "drop", id="what the spec says"),
    ],
)
@pytest.mark.parametrize("block", ["rule", "groundTruth"])
def test_a_run_continues_with_cut_off_answers_as_it_began(
    tmp_path: Path, block: str, rule: dict[str, Any], earlier: dict[str, Any] | None, want: str
) -> None:
    run = parse_run(with_rule(block, rule))
    with closing(LedgerWriter(tmp_path, "uid", 2)) as ledger:
        ledger.claim()
        if earlier is not None:
            ledger.write_run_record(record_of(with_rule(block, earlier)))
        settled = resolve_truncated(run, ledger)
    assert settled.spec.preference.scoring is not None
    assert settled.spec.preference.scoring.truncated == want
    assert settled.spec.preference.scoring.resolved_truncated == want
    assert settled.to_document()["spec"]["model"] == run.to_document()["spec"]["model"]


def test_a_run_without_a_rule_has_nothing_to_say_of_cut_off_answers(tmp_path: Path) -> None:
    document = letters_run("letters", model={"source": "/none"})
    document["spec"]["preference"] = {"judge": {"url": "http://judge/v1", "model": "wise"}}
    run = parse_run(document)
    assert resolve_truncated(run, LedgerWriter(tmp_path, "uid", 1)) is run


def with_rule(block: str, rule: dict[str, Any]) -> dict[str, Any]:
    document = letters_run("letters", model={"source": "/none"})
    document["spec"]["preference"] = {"rule": rule} if block == "rule" else {"groundTruth": {"rule": rule}}
    document["spec"]["method"] = {"name": "onlineDPO" if block == "rule" else "spin"}
    return document


def record_of(document: dict[str, Any]) -> RunRecord:
    return RunRecord(
        run=document, versions={}, machine={}, compute_dtype="float32", published_dtype="float32", attempt=1, world_size=1
    )


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
