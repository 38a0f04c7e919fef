"""The folder of a local run: when it is taken up, refused, or moved aside."""

import os
import stat
from pathlib import Path

import pytest

from spinrun_api import yaml_text
from spinrun_api.documents import read_run as read_document
from spinrun_api.run import SpinRun
from spinrun_cli.errors import CommandError, InvalidInputError
from spinrun_cli.local.adopt import Start, adopt
from spinrun_cli.local.folder import RunFolder
from spinrun_cli.overrides import read_run
from spinrun_protocol.termination import TerminationMessage


@pytest.fixture
def run(run_file: Path) -> SpinRun:
    return read_run(run_file)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "adding")
    folder.root.mkdir(parents=True)
    return folder


def complete(folder: RunFolder) -> None:
    words = TerminationMessage(result="Complete", reason="Completed", message="done", exit_code=0)
    folder.termination_file.write_text(words.model_dump_json(by_alias=True))


def test_a_new_run_gets_a_uid_that_it_keeps(folder: RunFolder, run: SpinRun) -> None:
    begun, start = adopt(folder, run, resume=False)
    resumed, again = adopt(folder, run, resume=True)

    assert (start, again) == (Start.NEW, Start.RESUMED)
    assert begun.metadata.namespace == "local"
    assert begun.metadata.uid == resumed.metadata.uid is not None
    assert read_document(folder.run_file) == begun


def test_resume_without_a_run_begins_one(folder: RunFolder, run: SpinRun) -> None:
    assert adopt(folder, run, resume=True)[1] is Start.NEW


def test_a_run_is_not_touched_without_resume(folder: RunFolder, run: SpinRun) -> None:
    adopt(folder, run, resume=False)
    before = folder.run_file.read_text()

    with pytest.raises(InvalidInputError, match="--resume"):
        adopt(folder, run, resume=False)

    assert folder.run_file.read_text() == before


@pytest.mark.parametrize(
    "override",
    [
        "spec.duration={windows: 9}",
        "spec.rollout.replicas=2",
        "spec.lifecycle.backoffLimit=1",
        "spec.telemetry={tensorboard: {}}",
    ],
)
def test_a_resumed_run_may_change_how_long_and_on_what_it_runs(folder: RunFolder, run_file: Path, override: str) -> None:
    adopt(folder, read_run(run_file), resume=False)

    resumed, start = adopt(folder, read_run(run_file, [override]), resume=True)

    assert start is Start.RESUMED
    assert read_document(folder.run_file).spec == resumed.spec == read_run(run_file, [override]).spec


@pytest.mark.parametrize(
    ("override", "want"),
    [
        ("spec.method.beta=0.2", "spec.method.beta: 0.1 there, 0.2 here"),
        ("spec.rollout.temperature=1.0", "spec.rollout.temperature: 0.7 there, 1.0 here"),
        ("spec.trainer.checkpointEverySteps=2", "spec.trainer.checkpointEverySteps: 'absent' there, 2 here"),
        ("metadata.name=other", "metadata.name: 'adding' there, 'other' here"),
    ],
)
def test_a_resumed_run_may_not_become_another(folder: RunFolder, run_file: Path, override: str, want: str) -> None:
    adopt(folder, read_run(run_file), resume=False)
    before = folder.run_file.read_text()

    with pytest.raises(InvalidInputError) as caught:
        adopt(folder, read_run(run_file, [override]), resume=True)

    assert want in str(caught.value)
    assert folder.run_file.read_text() == before


def test_a_complete_run_is_finished_unless_more_is_asked_for(folder: RunFolder, run_file: Path) -> None:
    adopt(folder, read_run(run_file), resume=False)
    complete(folder)

    assert adopt(folder, read_run(run_file), resume=True)[1] is Start.FINISHED
    assert adopt(folder, read_run(run_file, ["spec.rollout.replicas=2"]), resume=True)[1] is Start.FINISHED
    assert adopt(folder, read_run(run_file, ["spec.duration.windows=9"]), resume=True)[1] is Start.RESUMED


def test_again_moves_the_old_run_aside_and_begins_a_new_one(folder: RunFolder, run: SpinRun) -> None:
    uids = [adopt(folder, run, resume=False)[0].metadata.uid]
    for _ in range(2):
        (folder.root / "ledger").mkdir()
        uids.append(adopt(folder, run, resume=False, again=True)[0].metadata.uid)

    assert len(set(uids)) == 3
    for number, uid in zip((1, 2), uids, strict=False):
        old = folder.root.with_name(f"adding.{number}")
        assert read_document(old / "run.yaml").metadata.uid == uid
        assert (old / "ledger").is_dir()
    assert not (folder.root / "ledger").exists()


def test_a_folder_with_other_files_is_refused(folder: RunFolder, run: SpinRun) -> None:
    (folder.root / "thesis.tex").write_text("precious")

    with pytest.raises(InvalidInputError, match=r"holds other files \(thesis.tex\)"):
        adopt(folder, run, resume=False)


def test_a_damaged_run_file_is_named(folder: RunFolder, run: SpinRun) -> None:
    folder.run_file.write_text("kind: [")

    with pytest.raises(InvalidInputError, match=r"run\.yaml"):
        adopt(folder, run, resume=True)


def test_only_one_process_holds_a_folder(folder: RunFolder) -> None:
    with folder.locked(), pytest.raises(CommandError, match=rf"pid {os.getpid()}\)"), RunFolder(folder.root).locked():
        pass
    with folder.locked():
        pass


def test_a_held_folder_is_seen_to_be_held_without_taking_it(folder: RunFolder) -> None:
    seen = RunFolder(folder.root)
    assert not seen.is_held()
    with folder.locked():
        assert seen.is_held()
    assert not seen.is_held()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(InvalidInputError, match=r"cannot write to .*/file/run"), RunFolder(tmp_path / "file" / "run").locked():
        pass


def test_the_token_is_secret_and_stays_the_same(folder: RunFolder) -> None:
    folder.prepare()
    token = folder.token_file.read_text()
    folder.prepare()

    assert folder.token_file.read_text() == token
    assert len(token) > 32
    assert stat.S_IMODE(folder.token_file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("owner", "remembered", "want"),
    [(None, None, 1), ('{"attempt": 4}', None, 5), ('{"attempt": 4}', "6", 7), ("torn", "2", 3), ("[]", "x", 1)],
)
def test_an_attempt_is_above_all_that_came_before(
    folder: RunFolder, owner: str | None, remembered: str | None, want: int
) -> None:
    folder.prepare()
    if owner is not None:
        (folder.ledger / "OWNER.json").write_text(owner)
    if remembered is not None:
        (folder.root / "attempt").write_text(remembered)

    assert [folder.next_attempt(), folder.next_attempt()] == [want, want + 1]


def with_secret(run: SpinRun, secret: str) -> SpinRun:
    """The same run with a secret in a pod template and in an argument of vLLM."""
    template = {"spec": {"containers": [{"name": "trainer", "env": [{"name": "A", "value": secret}]}]}}
    trainer = run.spec.trainer.model_copy(update={"template": template})
    rollout = run.spec.rollout.model_copy(update={"engine_args": {"gateway-token": secret, "max-num-seqs": 8}})
    return run.model_copy(update={"spec": run.spec.model_copy(update={"trainer": trainer, "rollout": rollout})})


def test_the_folder_keeps_no_secret_and_the_run_resumes_with_another(folder: RunFolder, run: SpinRun) -> None:
    begun, _ = adopt(folder, with_secret(run, "s3cr3t"), resume=False)
    assert "s3cr3t" not in folder.run_file.read_text()
    assert begun.spec.rollout.engine_args["gateway-token"] == "s3cr3t", "vLLM is started with it"

    resumed, start = adopt(folder, with_secret(run, "an0ther"), resume=True)
    assert start is Start.RESUMED
    assert resumed.spec.rollout.engine_args["gateway-token"] == "an0ther"


def test_a_folder_of_an_earlier_version_that_holds_secrets_resumes_and_loses_them(folder: RunFolder, run: SpinRun) -> None:
    begun, _ = adopt(folder, with_secret(run, "s3cr3t"), resume=False)
    folder.run_file.write_text(yaml_text.dump(begun.to_document()))
    assert "s3cr3t" in folder.run_file.read_text()
    assert adopt(folder, with_secret(run, "s3cr3t"), resume=True)[1] is Start.RESUMED
    assert "s3cr3t" not in folder.run_file.read_text()
