"""Documents from before the settings of a loss had a block, at the command line."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from spinrun_api.documents import read_run as read_document
from spinrun_api.spec import Method
from spinrun_cli.compare import load
from spinrun_cli.local.adopt import Start, adopt
from spinrun_cli.local.folder import RunFolder
from spinrun_cli.overrides import read_run
from spinrun_cli.show.comparison import differences
from spinrun_cli.show.run_data import RunData
from support.documents import method_before
from unit.cli.conftest import DOCUMENT
from unit.cli.shell import Shell


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "adding")
    folder.root.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("command", ["validate", "local", "submit"])
def test_users_document_is_refused_with_the_new_places(spinrun: Shell, run_file: Path, command: str) -> None:
    document = yaml.safe_load(run_file.read_text())
    document["spec"]["method"] = {"loss": "ipo", "ipoAverage": False, "labelSmoothing": 0.0}
    run_file.write_text(yaml.safe_dump(document))

    code, out, err = spinrun(command, str(run_file))

    assert code == 2
    assert "spec.method.ipoAverage: has moved to spec.method.ipo.average: write it there" in out + err
    assert "spec.method.labelSmoothing: has moved to spec.method.sigmoid.labelSmoothing (or " in out + err


@pytest.mark.parametrize(
    ("before", "override"),
    [
        ({}, "spec.method.loss=sigmoid"),
        ({"loss": "ipo", "ipoAverage": False}, "spec.method={loss: ipo, ipo: {average: false}}"),
        ({"name": "sppo", "loss": "sppo", "eta": 1000.0}, "spec.method={name: sppo, loss: sppo, sppo: {eta: 1000}}"),
    ],
    ids=["defaults", "a setting", "a setting that is the default"],
)
def test_run_that_was_begun_before_is_resumed(folder: RunFolder, run_file: Path, before: dict[str, Any], override: str) -> None:
    begun, _ = adopt(folder, read_run(run_file, [override]), resume=False)
    document = begun.to_document()
    document["spec"]["method"] = method_before(**before)
    folder.run_file.write_text(yaml.safe_dump(document))

    resumed, start = adopt(folder, read_run(run_file, [override]), resume=True)

    assert start is Start.RESUMED
    assert resumed == begun
    assert read_document(folder.run_file) == begun


def test_block_with_the_defaults_is_the_same_run_as_no_block(folder: RunFolder, run_file: Path) -> None:
    adopt(folder, read_run(run_file), resume=False)

    assert adopt(folder, read_run(run_file, ["spec.method.sigmoid={}"]), resume=True)[1] is Start.RESUMED


def test_comparison_does_not_tell_a_run_from_before_from_one_of_today(finished_run: Path) -> None:
    today = Method.model_validate({"loss": "ipo", "ipo": {"average": False}}).to_document()
    runs: list[tuple[str, RunData]] = []
    for label, method in (("before", method_before(loss="ipo", ipoAverage=False)), ("today", today)):
        (finished_run / "run.yaml").write_text(yaml.safe_dump(DOCUMENT | {"spec": DOCUMENT["spec"] | {"method": method}}))
        runs.append((label, load(finished_run)))

    assert differences(runs) == [["field", "before", "today"]]
