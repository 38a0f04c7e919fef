"""What models, data sets, files and servers wrote reaches no terminal raw, whichever command prints it."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.live import Live
from rich.table import Table
from rich.text import Text

import spinrun_cli
from spinrun_cli.console import Console
from spinrun_cli.local.reporter import LineReporter, QuietReporter
from spinrun_cli.log_lines import LineWriter
from spinrun_cli.output import echo, echo_json, echo_yaml
from spinrun_cli.show.text import printable, table
from spinrun_cli.terminal import documents

HOSTILE = {
    "colour": "\x1b[31m",
    "title": "\x1b]0;owned\x07",
    "C1": "\x9b31m\x85\x90",
    "delete": "\x7f\x08\r",
    "bidi": "\u202egpj.exe\u2066\u061c",
    "lines": "\u2028\u2029\x0b\x0c\x1c",
    "half a character": "\ud800",
    "tags": "\U000e0041\ufeff\u200b",
}
ALLOWED = "naïve 日本語 العربية 👨\u200d👩\u200d👧 can\u200cnot 9\u202f500 9\xa0500 漢\u3000字 a\tb"


def is_raw(text: str) -> bool:
    """Whether a text has something that a terminal obeys."""
    return any(not each.isprintable() and each not in "\n\t\u200d\u200c\u202f\xa0\u3000" for each in text)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("err", [False, True])
def test_echo_replaces_what_commands_a_terminal(capsys: pytest.CaptureFixture[str], text: str, err: bool) -> None:
    echo(f"before {text} after", err=err)

    out, error = capsys.readouterr()
    printed = error if err else out
    assert not is_raw(printed)
    assert printed.startswith("before �")
    assert printed.endswith(" after\n")


def test_what_people_write_stays_as_it_is() -> None:
    assert printable(ALLOWED) == ALLOWED
    assert printable("a\nb\tc", keep="") == "a�b�c"


@pytest.mark.parametrize("text", [*HOSTILE.values(), ALLOWED], ids=[*HOSTILE, "allowed"])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_escapes_it_and_holds_the_same(capsys: pytest.CaptureFixture[str], text: str, indent: int | None) -> None:
    echo_json({"text": text, text: [1]}, indent=indent)

    printed = capsys.readouterr().out
    assert not is_raw(printed)
    assert json.loads(printed) == {"text": text, text: [1]}


def test_json_keeps_letters_of_all_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    echo_json({"text": "日本語 😀"})
    assert capsys.readouterr().out == '{"text": "日本語 😀"}\n'


@pytest.mark.parametrize("text", [each for each in HOSTILE.values() if "\ud800" not in each])
def test_yaml_escapes_it_and_holds_the_same(capsys: pytest.CaptureFixture[str], text: str) -> None:
    echo_yaml({"text": f"é{text}", "items": [1]})

    printed = capsys.readouterr().out
    assert not is_raw(printed)
    assert yaml.safe_load(printed) == {"text": f"é{text}", "items": [1]}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("as_json", [False, True])
def test_lines_of_logs_are_printed_so(capsys: pytest.CaptureFixture[str], text: str, as_json: bool) -> None:
    write = LineWriter(as_json=as_json, expected=2)
    write("trainer", f"plain {text}.")
    write(f"pod {text}", json.dumps({"time": "2026-01-01T00:00:00Z", "level": "INFO", "logger": text, "message": text}))

    assert not is_raw(capsys.readouterr().out)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_messages_of_local_runs_are_printed_so(capsys: pytest.CaptureFixture[str], text: str) -> None:
    QuietReporter().warn(f"died: {text}")
    LineReporter(0.0).say(f"says: {text}")

    out, err = capsys.readouterr()
    assert not is_raw(out + err)
    assert "says: " in out
    assert "died: " in err


@pytest.mark.parametrize("text", [each for each in HOSTILE.values() if "\ud800" not in each])
@pytest.mark.parametrize("terminal", [False, True])
def test_rich_draws_it_so(text: str, terminal: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=terminal)
    drawn = Table("heading", title=f"title {text}")
    drawn.add_row(f"cell {text}")

    console.print(f"line {text}", markup=False)
    console.print(Text(f"text {text}"))
    console.print(drawn)
    with Live(drawn, console=console, auto_refresh=False, transient=True) as live:
        live.update(Text(f"live {text}"), refresh=True)
    with console.status(f"status {text}"):
        pass

    # rich's own: styles, and the moves of its cursor.
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "", file.getvalue())
    assert not is_raw(shown)
    assert "�" in shown
    assert "\x1b[31m" not in file.getvalue()


def test_cell_of_a_table_is_one_line() -> None:
    assert table([["A", "B"], ["two\nlines\x85more", "\x1b[31m\tx"]]).splitlines() == [
        "A                B",
        "two lines more   �[31m x",
    ]


def test_watched_documents_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    from spinrun_cli.show.snapshot import Snapshot

    documents()(Snapshot("adding", "Running", trouble="\x9b31m\x1b[31m"))

    assert not is_raw(capsys.readouterr().out)


PRINTS = re.compile(
    r"typer\.echo\(|(?<![\w.])print\(|sys\.std(?:out|err)\.|click\.|secho|from rich import|rich\.print|"
    r"rich\.console import (?:\(|.*\bConsole\b)"
)
PRINTERS = ("output.py", "console.py")
# What a parent process reads.
OTHERS: dict[str, Any] = {"local/machine.py": "print(json.dumps(asdict(measure())))"}


def test_one_place_prints() -> None:
    root = Path(spinrun_cli.__file__).parent
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        if name in PRINTERS:
            continue
        found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if PRINTS.search(line)]
        assert found == ([OTHERS[name]] if name in OTHERS else []), f"{name}: print with spinrun_cli.output"
