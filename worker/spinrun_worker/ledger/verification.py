"""What `spinrun ledger` reports about a run's folder or a whole volume. It changes nothing."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from spinrun_api.base import Record
from spinrun_protocol.ledger import MANIFEST, Kind, Manifest, Owner, RunRecord
from spinrun_worker.ledger import durable
from spinrun_worker.ledger.errors import ForeignError, LedgerError, LedgerUnavailableError, TornError
from spinrun_worker.ledger.files import is_directory, list_files, read_record
from spinrun_worker.ledger.layout import KINDS, Layout
from spinrun_worker.ledger.ledger import Ledger
from spinrun_worker.ledger.manifest import check_content, read_manifest, superseded
from spinrun_worker.ledger.metrics import read_metrics

State = Literal["committed", "torn", "foreign", "superseded", "unreadable"]

_STATES: dict[type[LedgerError], State] = {
    TornError: "torn",
    ForeignError: "foreign",
    LedgerUnavailableError: "unreadable",
}

# Namespace and run.
_LEDGER_DEPTH = 2


@dataclass(frozen=True)
class Finding:
    """The state of one file or directory."""

    path: Path

    state: State
    """committed: sound. torn: not whole, or not what its manifest says. foreign: not this run's. superseded: whole, but a newer
    attempt resumed from before it. unreadable: the volume does not let it be read."""

    detail: str = ""
    """What is wrong, with the file's name, and what to do."""

    kind: Kind | None = None
    """What the directory holds. None for single files."""

    number: int | None = None
    """Version, window or step of the directory."""

    manifest: Manifest | None = None
    """The directory's manifest where it can be read."""

    size: int = 0
    """Size in bytes."""

    modified: float = 0.0
    """When it was committed, or last changed: Unix time in seconds, by the file server's clock."""


def find_ledgers(root: Path) -> list[Path]:
    """The ledgers at or below a run's folder, a namespace's folder or a volume's root, sorted."""
    return _find_ledgers(root, _LEDGER_DEPTH) if is_directory(root) else []


def _find_ledgers(folder: Path, depth: int) -> list[Path]:
    if _is_ledger(folder):
        return [folder]
    if depth == 0:
        return []
    with durable.unavailable(folder, "list"):
        # The file system's own folder, which only root may read.
        inner = [path for path in sorted(folder.iterdir()) if path.name != "lost+found" and is_directory(path)]
    return [ledger for path in inner for ledger in _find_ledgers(path, depth - 1)]


def _is_ledger(folder: Path) -> bool:
    ledger = Ledger(folder, "")
    return _exists(ledger.layout.owner) or any(ledger.present(kind) for kind in KINDS)


def _exists(path: Path) -> bool:
    with durable.unavailable(path, "stat"):
        return path.exists()


def verify_tree(root: Path, *, hashes: bool = True) -> list[Finding]:
    """Everything in every ledger at or below a folder, sound or not; nothing when there is no ledger.

    Args:
        root: A run's folder, a namespace's folder or a volume's root.
        hashes: False compares names and sizes only, without reading the files.

    Raises:
        LedgerUnavailableError: A folder on the way to the ledgers cannot be read.
    """
    return [finding for ledger in find_ledgers(root) for finding in _verify_ledger(ledger, hashes=hashes)]


def _verify_ledger(root: Path, *, hashes: bool) -> list[Finding]:
    layout = Layout(root)
    findings = [_verify_record(layout.owner, Owner)]
    if _exists(layout.run_record):
        findings.append(_verify_record(layout.run_record, RunRecord))
    if _exists(layout.metrics):
        findings.append(_verify_metrics(layout.metrics))
    ledger = Ledger(root, _uid(layout))
    for kind in KINDS:
        directories = [_verify_directory(ledger, kind, number, hashes=hashes) for number in ledger.present(kind)]
        if kind in ("weights", "checkpoint"):
            directories = _mark_superseded(directories)
        else:
            directories = [_compare_parent(ledger, finding) for finding in directories]
        findings += directories + _strangers(layout, kind)
    return findings


def _uid(layout: Layout) -> str:
    """The run that a ledger belongs to; where OWNER.json does not say, the run of the first readable directory."""
    with suppress(LedgerError):
        owner = read_record(layout.owner, Owner)
        if owner is not None:
            return owner.uid
    ledger = Ledger(layout.root, "")
    for kind in KINDS:
        for number in ledger.present(kind):
            with suppress(LedgerError):
                return read_manifest(layout.path(kind, number)).uid
    return ""


def _verify_record(path: Path, model: type[Record]) -> Finding:
    try:
        if read_record(path, model) is None:
            raise TornError(f"{path} is missing: nothing says which run this ledger belongs to")
    except LedgerError as error:
        return _finding(path, error)
    return _finding(path)


def _verify_metrics(path: Path) -> Finding:
    try:
        read_metrics(path)
        with durable.unavailable(path, "read"):
            ending = path.read_bytes()[-1:]
        if ending not in (b"", b"\n"):
            raise TornError(f"{path} ends mid-line: it is being written, or its writer died; the next attempt cuts it off")
    except LedgerError as error:
        return _finding(path, error)
    return _finding(path)


def _verify_directory(ledger: Ledger, kind: Kind, number: int, *, hashes: bool) -> Finding:
    path = ledger.layout.path(kind, number)
    manifest: Manifest | None = None
    wrong: LedgerError | None = None
    try:
        manifest = ledger.manifest(kind, number)
        check_content(path, manifest.files, hashes=hashes)
    except LedgerError as error:
        wrong = error
    return replace(_finding(path, wrong), kind=kind, number=number, manifest=manifest)


def _finding(path: Path, error: LedgerError | None = None) -> Finding:
    state: State = "committed" if error is None else _STATES[type(error)]
    size, modified = 0, 0.0
    with suppress(LedgerError, OSError):
        manifest = path / MANIFEST
        modified = (manifest if manifest.is_file() else path).stat().st_mtime
        size = sum(list_files(path).values()) if is_directory(path) else path.stat().st_size
    return Finding(path, state, str(error or ""), size=size, modified=modified)


def _mark_superseded(findings: Iterable[Finding]) -> list[Finding]:
    findings = list(findings)
    committed = [finding.manifest for finding in findings if finding.state == "committed" and finding.manifest is not None]
    stale = superseded(committed)
    return [
        replace(
            finding,
            state="superseded",
            detail=f"{finding.path} was written by attempt {finding.manifest.attempt}; a newer attempt resumed from before it "
            "and will write it again",
        )
        if finding.state == "committed" and finding.number in stale and finding.manifest is not None
        else finding
        for finding in findings
    ]


def _compare_parent(ledger: Ledger, finding: Finding) -> Finding:
    """Check that a directory comes from the weights that the ledger holds under its version, while it holds them.

    That goes for windows, evaluations, merged models and mixed references. A window must also be compared with those under its
    reference's version, and a mixture be made of those under the one before it.
    """
    manifest = finding.manifest
    if finding.state != "committed" or manifest is None:
        return finding
    relation = {"merged": "was merged from", "reference": "was mixed from"}.get(manifest.kind, "was sampled from")
    sources: list[tuple[str, Kind, int, str | None]] = [(relation, "weights", manifest.version, manifest.parent)]
    if (reference := manifest.reference) is not None:
        relation = "was mixed from" if manifest.kind == "reference" else "is compared with"
        sources.append((relation, reference.kind or "weights", reference.version, reference.digest))
    for relation, kind, version, digest in sources:
        with suppress(LedgerError):
            if ledger.manifest(kind, version).digest != digest:
                detail = f"{finding.path} {relation} other weights than {ledger.layout.path(kind, version)} now holds"
                return replace(finding, state="superseded", detail=detail)
    return finding


def _strangers(layout: Layout, kind: Kind) -> list[Finding]:
    folder = layout.folder(kind)
    if not is_directory(folder):
        return []
    with durable.unavailable(folder, "list"):
        strangers = sorted(path for path in folder.iterdir() if layout.number(kind, path.name) is None)
    return [_finding(path, ForeignError(f"{path} does not have a name that SpinRun gives: move it away")) for path in strangers]
