"""`spinrun local`: from a run file to a finished run, or to one that can be resumed."""

import asyncio
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from spinrun_api.run import SpinRun
from spinrun_cli.errors import CommandError
from spinrun_cli.local.adopt import Start, adopt
from spinrun_cli.local.checks import (
    check_preference,
    check_sources,
    check_trackers,
    fit_to_model,
    for_one_machine,
    unused_fields,
)
from spinrun_cli.local.disk import disk_errors_said
from spinrun_cli.local.folder import RunFolder
from spinrun_cli.local.machine import known_without_probe
from spinrun_cli.local.reporter import reporter
from spinrun_cli.local.run_data import load_run_data
from spinrun_cli.local.supervisor import LocalResult, Supervisor
from spinrun_cli.output import echo
from spinrun_cli.overrides import read_run
from spinrun_cli.report import write_report
from spinrun_cli.show.run_data import RunData
from spinrun_cli.show.text import duration
from spinrun_protocol.child_process import adopt_orphans, kill_descendants
from spinrun_protocol.exit_codes import ExitCode
from spinrun_protocol.model_limits import lengths_that_shrank


def run_local(run_file: Path, output: Path | None, *, overrides: Sequence[str], resume: bool, again: bool, quiet: bool) -> int:
    """Run the file's SpinRun in a folder until it ends.

    Returns:
        The exit code of the command.

    Raises:
        InvalidInputError: The file, or what it names, is wrong; nothing has been started.
        CommandError: It cannot be run here; nothing has been started.
    """
    asked = read_run(run_file, overrides)
    wanted = for_one_machine(asked)
    check_sources(wanted)
    check_preference(wanted)
    check_trackers(wanted)
    wanted = fit_to_model(wanted)
    folder = RunFolder(output or Path("runs") / wanted.metadata.name)
    with disk_errors_said(folder.root), folder.locked():
        run, start = adopt(folder, wanted, resume=resume, again=again)
        if start is Start.FINISHED:
            echo(f"{folder.root} holds a run that is complete: nothing to do but its report")
            return _conclude(folder, LocalResult(ExitCode.COMPLETE, ""), seconds=None)
        folder.prepare()
        if not quiet:
            _introduce(asked, run, folder, start)
        started = time.monotonic()
        result = _supervise(run, folder, quiet=quiet)
        return _conclude(folder, result, seconds=time.monotonic() - started)


def _introduce(asked: SpinRun, run: SpinRun, folder: RunFolder, start: Start) -> None:
    verb = "resuming" if start is Start.RESUMED else "starting"
    echo(f"{verb} {asked.metadata.name} in {folder.root} (logs in {folder.logs.name}/)")
    if unused := unused_fields(asked):
        echo(f"INFO not used on one machine: {', '.join(unused)}")
    if shrunk := lengths_that_shrank(asked, run):
        echo(f"INFO {shrunk}")


def _supervise(run: SpinRun, folder: RunFolder, *, quiet: bool) -> LocalResult:
    async def supervise() -> LocalResult:
        with reporter(quiet=quiet) as where:
            return await Supervisor(run, folder, where, machine=known_without_probe(run)).run()

    adopt_orphans()
    try:
        return asyncio.run(supervise())
    finally:
        # Whatever the guards could not reach, should one have been killed itself.
        kill_descendants(os.getpid())
        shutil.rmtree(folder.scratch, ignore_errors=True)


def _conclude(folder: RunFolder, result: LocalResult, *, seconds: float | None) -> int:
    """Write the report and print how it went. Returns the exit code."""
    try:
        data = load_run_data(folder.root)
        page, _ = write_report(data, folder.root)
    except (CommandError, OSError) as error:
        # The run itself is not worse for it.
        echo(f"no report: {error}", err=True)
        data, page = None, None
    if result.exit_code == ExitCode.COMPLETE:
        echo(f"complete{_summary(data, seconds)}")
    else:
        echo(f"{'stopped' if result.exit_code > 128 else 'failed'}: {result.message}", err=True)
    if page is not None:
        echo(f"report: {page}")
    return result.exit_code


def _summary(data: RunData | None, seconds: float | None) -> str:
    parts = []
    if data is not None and data.learning is not None:
        parts.append(data.learning)
    if data is not None:
        parts.append(f"{len(data.windows)} windows, {data.num_steps} steps")
    if seconds is not None:
        parts.append(duration(seconds))
    return ": " + ", ".join(parts) if parts else ""
