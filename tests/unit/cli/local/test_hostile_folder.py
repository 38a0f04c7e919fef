"""A run's folder that others can write to: whatever stands in a file's place, a command ends at once, with a sentence."""

import json
import math
import os
import socket
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from spinrun_cli.bundle import by_event
from spinrun_cli.local.files import open_regular, open_to_append, open_to_update, read_record, replace_file
from spinrun_cli.local.folder import RunFolder
from spinrun_cli.local.run_data import load_run_data
from spinrun_cli.report import write_report
from spinrun_cli.show.charts import picture
from spinrun_cli.show.comparison import render_comparison, tables
from spinrun_cli.show.page import render
from spinrun_cli.show.render import line, sparkline
from spinrun_cli.show.run_data import RunData
from spinrun_cli.show.snapshot import Snapshot
from spinrun_cli.show.text import age, clock, duration
from spinrun_protocol.ledger import MetricsLine, RunRecord
from spinrun_protocol.termination import TerminationMessage
from spinrun_protocol.wire import Progress
from unit.cli.conftest import DOCUMENT, answers, metrics
from unit.cli.shell import Shell

Make = Callable[[Path], object]


def make_socket(path: Path) -> None:
    """A socket by a short name: that of a socket has a limit of its own."""
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(before)


STRANGERS: dict[str, Make] = {
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link": lambda path: path.symlink_to("/etc/passwd"),
    "loop": lambda path: path.symlink_to(path.name),
    "folder": Path.mkdir,
    "socket": make_socket,
}


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("run.yaml", "watch"),
        ("run.yaml", "compare"),
        ("ledger/run.json", "compare"),
        ("ledger/metrics.jsonl", "compare"),
        ("ledger/metrics.jsonl", "watch"),
        ("logs/trainer.log", "logs"),
    ],
)
@pytest.mark.timeout(30)
def test_what_stands_in_a_files_place_is_named(
    spinrun: Shell, finished_run: Path, stranger: str, name: str, command: str
) -> None:
    path = finished_run / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    STRANGERS[stranger](path)

    code, out, err = spinrun(command, str(finished_run))

    assert "/bin/" not in out + err, "another file's content"
    assert (code, out) == (1 if command == "logs" else 2, "")
    assert err.startswith("error: ")
    assert str(path) in err


@pytest.mark.parametrize("stranger", STRANGERS)
@pytest.mark.timeout(30)
def test_small_files_that_are_none_are_taken_for_missing(tmp_path: Path, stranger: str) -> None:
    folder = RunFolder(tmp_path)
    folder.prepare()
    for path in (folder.termination_file, folder.progress_file, tmp_path / "attempt", folder.ledger / "OWNER.json"):
        STRANGERS[stranger](path)

    assert (folder.termination(), folder.progress(), folder.attempt()) == (None, None, 0)


@pytest.mark.parametrize("stranger", ["pipe", "device", "link", "loop", "socket"])
@pytest.mark.timeout(30)
def test_nothing_is_read_or_written_through_it(tmp_path: Path, stranger: str) -> None:
    path = tmp_path / "file"
    STRANGERS[stranger](path)
    for opened in (open_regular, open_to_update, open_to_append):
        with pytest.raises(OSError, match=r"link|not a regular file"):
            opened(path)
    assert read_record(path, Progress) is None


def test_report_replaces_links_and_leaves_what_they_lead_to(finished_run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("precious")
    for name in ("report.html", "curves.png", ".report.html.partial", ".curves.png.partial", "other"):
        (finished_run / name).symlink_to(mine)

    for path in write_report(load_run_data(finished_run), finished_run):
        assert not path.is_symlink()
    replace_file(finished_run / "other", b"new")

    assert mine.read_text() == "precious"


ODD_RECORDS: dict[str, Any] = {
    "a list": [],
    "a number": 1e308,
    "nothing": None,
    "a run that is a list": {"run": []},
    "a machine that is text": {"machine": "x"},
    "versions that are numbers": {"versions": {"torch": 2}},
    "a negative attempt": {"attempt": -1},
    "a large attempt": {"attempt": 10**400},
    "a nested run": {"run": {"a": json.loads("[" * 150 + "]" * 150)}},
    "no finite number": {"run": {"a": math.inf}},
}


@pytest.mark.parametrize("odd", ODD_RECORDS)
@pytest.mark.parametrize("command", ["report", "compare"])
def test_odd_run_json_is_named(spinrun: Shell, finished_run: Path, odd: str, command: str) -> None:
    path = finished_run / "ledger" / "run.json"
    record = json.loads(path.read_text())
    change = ODD_RECORDS[odd]
    path.write_text(json.dumps(record | change if isinstance(change, dict) else change))

    code, out, err = spinrun(command, str(finished_run))

    assert (code, out) == (2, "")
    assert err.startswith(f"error: {path}")
    assert "Traceback" not in err


@pytest.mark.parametrize("text", ["spec: [1]", "metadata: [x]\nspec: 3", "metadata: {name: [1]}", "metadata:\nspec: {method: 1}"])
@pytest.mark.parametrize("command", ["watch", "compare"])
def test_run_yaml_of_another_shape_is_shown_as_far_as_it_goes(
    spinrun: Shell, finished_run: Path, text: str, command: str
) -> None:
    (finished_run / "run.yaml").write_text(text)

    code, out, err = spinrun(command, str(finished_run))

    assert (code, err) == (0, "")
    assert "0.822" in out or "5 windows" in out


@pytest.mark.parametrize("text", ["a: [", "[1]", "", "a: 1\na: 2", "a: .nan"])
@pytest.mark.parametrize("command", ["watch", "compare"])
def test_damaged_run_yaml_is_named(spinrun: Shell, finished_run: Path, text: str, command: str) -> None:
    (finished_run / "run.yaml").write_text(text)

    code, out, err = spinrun(command, str(finished_run))

    assert (code, out) == (2, "")
    assert err.startswith(f"error: {finished_run / 'run.yaml'}: ")


# --- figures -------------------------------------------------------------------------------------------------------

ODD_FIGURES = (1e308, -1e308, 1e31, math.nan, math.inf, -math.inf)


def with_figures(figure: float) -> RunData:
    """A run every third figure of which is one, in every line a few."""
    lines: list[MetricsLine] = []
    for index, each in enumerate(metrics()):
        values = {name: figure if (index + place) % 3 == 0 else value for place, (name, value) in enumerate(each.values.items())}
        lines.append(each.model_copy(update={"values": values}))
    steps, windows, evaluations = by_event(lines)
    return RunData("demo", DOCUMENT, steps=steps, windows=windows, evaluations=evaluations)


@pytest.mark.parametrize("figure", ODD_FIGURES)
def test_figures_beyond_all_measure_are_left_out_and_counted(figure: float) -> None:
    data = with_figures(figure)
    page = render(data)
    assert "figures are left out: they are not finite, or beyond 1e+30" in page
    assert picture(data).startswith(b"\x89PNG")
    assert render_comparison([("one", data), ("other", data)])
    assert max(len(cell) for rows in tables([("one", data)]) for row in rows for cell in row) < 30


@pytest.mark.parametrize("number", [-1, 2**53 + 1, 10**400])
@pytest.mark.parametrize("name", ["window", "step", "version", "attempt"])
def test_numbers_that_nobody_can_calculate_with_are_refused(spinrun: Shell, finished_run: Path, name: str, number: int) -> None:
    path = finished_run / "ledger" / "metrics.jsonl"
    row = json.loads(path.read_text().splitlines()[0]) | {name: number}
    path.write_text(f"{json.dumps(row)}\n{path.read_text()}")

    code, _, err = spinrun("compare", str(finished_run))

    assert (code, f"{path}, line 1," in err) == (2, True)


def test_numbers_at_their_limits_are_drawn() -> None:
    last = 2**53
    values = {"accuracy": 1e30, "loss": -1e30, "reward/mean": 1e30, "pairs": 1e30, "ties": 1e30, "timing/train_seconds": 1e30}
    lines = [MetricsLine(event="step", attempt=1, time=0, window=0, step=0, version=0, values=values)]
    lines += [each.model_copy(update={"window": last, "step": last, "version": last, "time": 1e11}) for each in lines]
    data = RunData("demo", {}, steps=lines, windows=lines, evaluations=lines)
    assert render(data)
    assert picture(data).startswith(b"\x89PNG")


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf, -math.inf, 1e308, 1e11])
def test_times_beyond_all_measure_are_short(seconds: float) -> None:
    assert max(len(shown(seconds)) for shown in (age, clock, duration)) < 30


@pytest.mark.parametrize("value", ODD_FIGURES)
def test_progress_beyond_all_measure_fits_a_line(value: float) -> None:
    progress = Progress.model_validate(
        {"uid": "u", "attempt": 1, "activity": "train", "window": 2**53, "windows": 2**53, "step": 2**53, "totalSteps": 1}
        | {"etaSeconds": value, "metrics": {"loss": value, "accuracy": value, "samplesPerSecond": value}}
    )
    assert len(line(Snapshot("demo", "Running", progress=progress))) < 300
    assert len(sparkline([value, 1.0, 2.0, value])) in (2, 4)


# --- markup --------------------------------------------------------------------------------------------------------

ATTACKS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</svg></title></style><script>",
    "$\\frac{$",
    "]]>-->{{ 7 * 7 }}",
)


class Markup(HTMLParser):
    """What a page holds that only an attack puts there."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [tag] if tag in ("script", "img", "iframe", "object", "link", "base", "form") else []
        self.found += [name for name, _ in attrs if name.startswith("on") or name in ("src", "action", "formaction")]


def test_nothing_of_a_run_becomes_markup_wherever_it_stands() -> None:
    evil = " ".join(ATTACKS)
    document = {
        "metadata": {"name": evil},
        "spec": {
            "model": {"source": evil},
            "data": {"prompts": {"source": evil, "config": evil}},
            "method": {"name": evil, "loss": evil},
            evil: [evil, {evil: evil}],
        },
    }
    record = RunRecord(
        run=document,
        versions={evil: evil},
        machine={evil: {evil: [evil]}},
        compute_dtype=evil,
        published_dtype=evil,
        source_revision=evil,
        attempt=1,
        world_size=1,
    )
    said = TerminationMessage(result="Failed", reason=evil, message=evil, exit_code=1)
    lines = [each.model_copy(update={"values": each.values | {evil: 1.0, f"timing/{evil}_seconds": 1.0}}) for each in metrics()]
    steps, windows, evaluations = by_event(lines)
    data = RunData(
        evil,
        document,
        record=record,
        termination=said,
        steps=steps,
        windows=windows,
        evaluations=evaluations,
        before=answers(0, text=evil),
        after=answers(5, text=evil),
        notes=[evil],
    )

    assert Markup(render(data)).found == []
    assert Markup(render_comparison([(evil, data), ("other", RunData("other"))])).found == []
    assert picture(data).startswith(b"\x89PNG"), "a name between dollars is not a formula"


def test_page_stays_small_whatever_is_in_the_record() -> None:
    many = {f"{number}": "x" * 10_000 for number in range(1000)}
    record = RunRecord(
        run={"a": "x" * 3_000_000}, versions=many, machine=many, compute_dtype="f", published_dtype="f", attempt=1, world_size=1
    )
    assert len(render(RunData("demo", record.run, record=record))) < 1_000_000


def test_long_run_is_drawn_with_the_points_that_can_be_told_apart() -> None:
    values = {"pairs": 1.0, "timing/train_seconds": 1.0}
    lines = [MetricsLine(event="window", attempt=1, time=n, window=n, step=n, version=n, values=values) for n in range(50_000)]
    assert len(render(RunData("demo", {}, windows=lines))) < 3_000_000
