"""`spinrun ledger`: look at what is on a volume. Nothing here changes it."""

import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from spinrun_cli.console import Console
from spinrun_cli.errors import CommandError, InvalidInputError
from spinrun_cli.output import echo_json
from spinrun_cli.show.text import age, printable
from spinrun_worker.ledger import Finding, LedgerError, verify_tree

_STYLES = {"committed": "green", "torn": "red", "foreign": "red", "superseded": "yellow", "unreadable": "red"}


def list_ledger(path: Path, *, as_json: bool) -> None:
    """Prints every directory of the ledgers below a path.

    Raises:
        InvalidInputError: There is no ledger.
        CommandError: It cannot be read.
    """
    path = path.absolute()
    directories = [finding for finding in _findings(path, hashes=False) if finding.kind is not None]
    if as_json:
        echo_json([_document(finding) for finding in directories], indent=2)
        return
    ledgers = groupby(directories, key=lambda finding: finding.path.parent.parent)
    for ledger, inside in ledgers:
        Console().print(_table(inside, title="" if ledger == path else _one_line(str(ledger.relative_to(path)))))


def verify_ledger(path: Path, *, as_json: bool) -> bool:
    """Reads every file of the ledgers below a path and prints what is not sound.

    Returns:
        Whether all is sound.

    Raises:
        InvalidInputError: There is no ledger.
        CommandError: It cannot be read.
    """
    findings = _findings(path, hashes=True)
    unsound = [finding for finding in findings if finding.state != "committed"]
    if as_json:
        echo_json({"sound": not unsound, "findings": [_document(finding) for finding in findings]}, indent=2)
    else:
        console = Console(soft_wrap=True, highlight=False)
        for finding in unsound:
            console.print(f"[{_STYLES[finding.state]}]{finding.state:<10}[/] {escape(_one_line(finding.detail))}")
        counts = Counter(finding.state for finding in findings)
        console.print(", ".join(f"{count} {state}" for state, count in counts.items()) + f" in {escape(_one_line(str(path)))}")
    return not unsound


def _findings(path: Path, *, hashes: bool) -> list[Finding]:
    """What is in the ledgers below a path. Raises InvalidInputError if there are none, CommandError if they cannot be read."""
    try:
        findings = verify_tree(path, hashes=hashes)
    except LedgerError as error:
        raise CommandError(_one_line(str(error))) from error
    if not findings:
        raise InvalidInputError(
            f"{_one_line(str(path))} holds no ledger: name a run's folder on the volume, or the volume's root"
        )
    return findings


def _document(finding: Finding) -> dict[str, object]:
    manifest = finding.manifest
    return {
        "path": str(finding.path),
        "kind": finding.kind,
        "number": finding.number,
        "version": manifest.version if manifest else None,
        "step": manifest.step if manifest else None,
        "attempt": manifest.attempt if manifest else None,
        "digest": manifest.digest if manifest else None,
        "size": finding.size,
        "state": finding.state,
        "detail": finding.detail,
        "modified": datetime.fromtimestamp(finding.modified, UTC).isoformat(timespec="seconds"),
    }


def _table(directories: Iterable[Finding], *, title: str) -> Table:
    """One row a directory."""
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=None, header_style="bold")
    for name in ("KIND", "NUMBER", "VERSION", "STEP", "ATTEMPT", "SIZE", "STATE", "AGE"):
        table.add_column(name, justify="left" if name in ("KIND", "STATE") else "right", no_wrap=True)
    now = time.time()
    for finding in directories:
        manifest = finding.manifest
        table.add_row(
            finding.kind,
            str(finding.number),
            *([str(manifest.version), str(manifest.step), str(manifest.attempt)] if manifest else ["", "", ""]),
            _size(finding.size),
            f"[{_STYLES[finding.state]}]{finding.state}[/]",
            age(now - finding.modified),
        )
    return table


def _size(num_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.4g} TiB"


def _one_line(text: str) -> str:
    return printable(text, keep="")
