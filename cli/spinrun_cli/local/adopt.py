"""Whether a start of `spinrun local` begins a run in its folder, or resumes the one that is there."""

import uuid
from collections.abc import Iterator
from enum import Enum
from typing import Any

from spinrun_api import yaml_text
from spinrun_api.documents import InvalidDocumentError, read_run
from spinrun_api.redaction import for_processes
from spinrun_api.run import SpinRun
from spinrun_cli.errors import InvalidInputError
from spinrun_cli.local.folder import RunFolder, replace_text

NAMESPACE = "local"

CHANGEABLE = (("duration",), ("lifecycle",), ("telemetry",), ("rollout", "replicas"), ("scorer",))
"""Fields of the spec that a resumed run may change."""


class Start(Enum):
    """What a start finds in the folder and does with it."""

    NEW = "new"
    RESUMED = "resumed"
    FINISHED = "finished"
    """The run has ended, and no more windows are wanted."""


def adopt(folder: RunFolder, wanted: SpinRun, *, resume: bool, again: bool = False) -> tuple[SpinRun, Start]:
    """The run to train, its uid in it, written to run.yaml; and what kind of start this is.

    Raises:
        InvalidInputError: A run is there and may not be touched, or is not the same as the one wanted.
    """
    if again and folder.run_file.exists():
        _move_aside(folder)
    if not folder.run_file.exists():
        return _begin(folder, wanted), Start.NEW
    try:
        present = read_run(folder.run_file)
    except InvalidDocumentError as error:
        raise InvalidInputError(f"{error}; restore the file, or choose another folder with --output") from error
    if not resume:
        raise InvalidInputError(
            f"{folder.root} holds the run {present.metadata.name}: use --resume to continue it, --again to start from "
            "scratch, or choose another folder with --output"
        )
    if differences := changed_fields(present, wanted):
        lines = "\n".join(f"  {line}" for line in differences)
        raise InvalidInputError(
            f"{folder.root} holds a run with another spec; only these may change when it is resumed: duration, lifecycle, "
            f"telemetry, rollout.replicas and scorer:\n{lines}\nchange these back, or choose another folder with --output"
        )
    ending = folder.termination()
    if ending is not None and ending.result == "Complete" and present.spec.duration == wanted.spec.duration:
        return present, Start.FINISHED
    run = _identified(wanted, present.metadata.uid)
    _write_run(folder, run)
    return run, Start.RESUMED


def _begin(folder: RunFolder, wanted: SpinRun) -> SpinRun:
    strangers = [path.name for path in folder.root.iterdir() if path.name != "lock"]
    if strangers:
        raise InvalidInputError(
            f"{folder.root} holds other files ({', '.join(sorted(strangers)[:3])}): choose an empty folder with --output"
        )
    run = _identified(wanted, str(uuid.uuid4()))
    _write_run(folder, run)
    return run


def _write_run(folder: RunFolder, run: SpinRun) -> None:
    replace_text(folder.run_file, yaml_text.dump(for_processes(run.to_document())))


def _move_aside(folder: RunFolder) -> None:
    """Move everything but the lock, which is held, to the first of DIR.1, DIR.2, … that is free."""
    number = 1
    while (old := folder.root.with_name(f"{folder.root.name}.{number}")).exists():
        number += 1
    old.mkdir()
    # run.yaml goes last: until then, a move that is cut short leaves a run that is moved again.
    for path in sorted(folder.root.iterdir(), key=lambda path: path == folder.run_file):
        if path.name != "lock":
            path.rename(old / path.name)


def _identified(run: SpinRun, uid: str | None) -> SpinRun:
    metadata = run.metadata.model_copy(update={"namespace": NAMESPACE, "uid": uid})
    return run.model_copy(update={"metadata": metadata, "status": None})


def changed_fields(present: SpinRun, wanted: SpinRun) -> list[str]:
    """`spec.method.beta: 0.1 there, 0.2 here` for each field in which two runs differ and may not."""
    documents = [_fixed_part(run) for run in (present, wanted)]
    there, here = (dict(_leaves(document)) for document in documents)
    return [
        f"{path}: {there.get(path, 'absent')!r} there, {here.get(path, 'absent')!r} here"
        for path in sorted(there.keys() | here.keys())
        if there.get(path) != here.get(path)
    ]


def _fixed_part(run: SpinRun) -> dict[str, Any]:
    resolved = run.spec.model_copy(update={"method": run.spec.method.resolved()})
    # Without secrets, of which the folder has none: they may change.
    spec = for_processes(run.model_copy(update={"spec": resolved}).to_document())["spec"]
    for keys in CHANGEABLE:
        block = spec
        for key in keys[:-1]:
            block = block[key]
        block.pop(keys[-1], None)
    return {"metadata": {"name": run.metadata.name}, "spec": spec}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a document that is not a mapping, by its path."""
    if not isinstance(value, dict):
        yield path, value
        return
    for key, item in value.items():
        yield from _leaves(item, f"{path}.{key}" if path else key)
