"""`spinrun ledger ls` and `spinrun ledger verify`."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

import pytest

from spinrun_worker.ledger import LedgerWriter
from unit.cli.shell import Shell

OTHER_UID = "ffffffff-0000-4000-8000-000000000002"


class Ended(NamedTuple):
    """How a command ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


@pytest.fixture
def spinrun_ledger(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """`spinrun ledger ARGUMENTS`."""
    spinrun = Shell(capsys, monkeypatch)
    return lambda *arguments: Ended(*spinrun("ledger", *map(str, arguments)))


@pytest.fixture
def full(writer: LedgerWriter, put) -> LedgerWriter:
    parent = put(writer, "weights", 0, step=0).digest
    put(writer, "weights", 1, step=16)
    put(writer, "window", 0, step=0, parent=parent)
    put(writer, "checkpoint", 16, version=1)
    return writer


def test_listing_shows_each_directory(full, spinrun_ledger):
    three_hours_ago = time.time() - 3 * 3600
    os.utime(full.layout.weights(0) / "MANIFEST.json", (three_hours_ago, three_hours_ago))
    (full.begin("checkpoint", 32) / "half").write_bytes(b"x" * 2048)

    result = spinrun_ledger("ls", full.root)

    assert result.exit_code == 0
    rows = [line.split() for line in result.output.splitlines()]
    assert rows[0] == ["KIND", "NUMBER", "VERSION", "STEP", "ATTEMPT", "SIZE", "STATE", "AGE"]
    assert rows[1][:5] == ["weights", "0", "0", "0", "1"]
    assert rows[1][6:] == ["KiB", "committed", "3h"]
    assert [row[:5] for row in rows[2:5]] == [
        ["weights", "1", "1", "16", "1"],
        ["window", "0", "0", "0", "1"],
        ["checkpoint", "16", "1", "16", "1"],
    ]
    assert rows[5][:5] == ["checkpoint", "32", "2", "KiB", "torn"]


def test_listing_for_programs(full, spinrun_ledger):
    result = spinrun_ledger("ls", full.root, "--output", "json")

    rows = json.loads(result.output)
    assert [(row["kind"], row["number"], row["version"], row["step"], row["attempt"], row["state"]) for row in rows] == [
        ("weights", 0, 0, 0, 1, "committed"),
        ("weights", 1, 1, 16, 1, "committed"),
        ("window", 0, 0, 0, 1, "committed"),
        ("checkpoint", 16, 1, 16, 1, "committed"),
    ]
    assert rows[0]["path"] == str(full.layout.weights(0))
    assert rows[0]["digest"] == full.manifest("weights", 0).digest
    assert rows[0]["size"] > 1280
    assert abs(datetime.fromisoformat(rows[0]["modified"]).timestamp() - time.time()) < 600


def test_listing_of_a_volume_names_the_runs(full, tmp_path, put, spinrun_ledger):
    other = LedgerWriter(tmp_path / "volume" / "other" / "run-ffffffff", OTHER_UID, 1)
    other.claim()
    put(other, "weights", 0)

    result = spinrun_ledger("ls", tmp_path / "volume")

    assert result.exit_code == 0
    lines = [line.strip() for line in result.output.splitlines()]
    assert lines[0] == "other/run-ffffffff"
    assert lines[2].startswith("weights")
    assert lines[3] == "team/run-0a1b2c3d"
    assert len(lines) == 9


@pytest.mark.parametrize("output", ["table", "json"])
def test_sound_ledger_verifies_with_exit_code_0(full, output, spinrun_ledger):
    result = spinrun_ledger("verify", full.root, "--output", output)

    assert result.exit_code == 0
    assert ("5 committed in " in result.output) if output == "table" else json.loads(result.output)["sound"]


@pytest.mark.parametrize("output", ["table", "json"])
def test_what_is_not_sound_is_named_and_gives_exit_code_1(full, root, uid, tmp_path, put, output, spinrun_ledger):
    file = full.layout.window(0) / "model.safetensors"
    file.write_bytes(b"X" + file.read_bytes()[1:])
    (full.begin("checkpoint", 32) / "half").write_bytes(b"x")
    other = LedgerWriter(tmp_path / "other", OTHER_UID, 1)
    other.claim()
    put(other, "weights", 2)
    other.layout.weights(2).rename(full.layout.weights(2))
    second = LedgerWriter(root, uid, 2)
    second.claim()
    put(second, "weights", 0, step=0)

    result = spinrun_ledger("verify", root, "-o", output)

    assert result.exit_code == 1
    if output == "json":
        document = json.loads(result.output)
        assert not document["sound"]
        found = {(finding["state"], finding["path"]): finding["detail"] for finding in document["findings"]}
    else:
        assert "3 committed, 1 superseded, 1 foreign, 2 torn in " in result.output
        found = {tuple(line.split()[:2]): line for line in result.output.splitlines()[:-1]}
    assert "has different content" in found["torn", str(file if output == "table" else file.parent)]
    assert "no MANIFEST.json" in found["torn", str(full.layout.checkpoint(32))]
    assert f"belongs to run {OTHER_UID}" in found["foreign", str(full.layout.weights(2))]
    assert "a newer attempt resumed" in found["superseded", str(full.layout.weights(1))]


@pytest.mark.parametrize("command", ["ls", "verify"])
@pytest.mark.parametrize("name", ["", "missing"])
def test_path_without_a_ledger_gives_exit_code_2(tmp_path, command, name, spinrun_ledger):
    result = spinrun_ledger(command, tmp_path / name)

    assert result.exit_code == 2
    assert "holds no ledger: name a run's folder on the volume" in result.stderr
    assert result.stdout == ""


def test_names_on_a_volume_cannot_command_the_terminal(full, spinrun_ledger):
    (full.root / "weights" / "\x1b[2J[red]evil").mkdir()

    result = spinrun_ledger("verify", full.root)

    assert result.exit_code == 1
    assert "\x1b" not in result.output
    assert "[red]evil does not have a name that SpinRun gives" in result.output


def test_volume_that_cannot_be_read_is_named(full, tmp_path, monkeypatch, spinrun_ledger):
    from spinrun_worker.ledger import LedgerUnavailableError

    def refuse(*_: object, **__: object) -> None:
        raise LedgerUnavailableError("Cannot list /volume: Stale file handle. Remount the network volume")

    monkeypatch.setattr("spinrun_cli.local.ledger.verify_tree", refuse)
    result = spinrun_ledger("verify", full.root)

    assert result.exit_code == 1
    assert "Stale file handle" in result.stderr


def test_without_the_workers_packages_the_command_says_what_to_install(tmp_path, monkeypatch, spinrun_ledger):
    monkeypatch.setitem(sys.modules, "spinrun_worker.ledger", None)
    monkeypatch.delitem(sys.modules, "spinrun_cli.local.ledger", raising=False)

    result = spinrun_ledger("verify", tmp_path)

    assert result.exit_code == 1
    assert "pip install 'spinrun[worker]'" in result.stderr


def test_command_loads_neither_torch_nor_pyarrow(full):
    code = (
        "import sys; from spinrun_cli.commands.ledger import app\n"
        "assert 'spinrun_worker' not in sys.modules\n"
        "app(['verify', sys.argv[1]], standalone_mode=False)\n"
        "print(sorted({'torch', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, full.root], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"
