"""The cluster's commands: names, options and help. What a command does is imported when it is called."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from spinrun_cli.commands.options import Context, Namespace, Overrides


class DryRun(StrEnum):
    """How far a submission goes."""

    NONE = "none"
    SERVER = "server"


class Output(StrEnum):
    """How runs are shown."""

    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


def _seconds(text: str) -> float:
    """Seconds of a duration as kubectl takes it: 90, 90s, 10m or 2h. Raises BadParameter."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no duration: write 90s, 10m or 2h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the SpinRun.", show_default=False)]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout", metavar="DURATION", parser=_seconds, help="Longest wait, such as 90s or 2h.", show_default="for ever"
    ),
]


def _check_wait(wait: bool, timeout: float | None) -> None:
    if timeout is not None and not wait:
        raise typer.BadParameter("--timeout is about --wait: add that")


def submit(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="YAML files with SpinRuns; - reads stdin.", show_default=False)
    ],
    overrides: Overrides = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the runs to their end; exit with 1 if one fails.")] = False,
    timeout: Timeout = None,
    dry_run: Annotated[DryRun, typer.Option("--dry-run", help="server: the API server checks, and keeps nothing.")] = DryRun.NONE,
    force_conflicts: Annotated[
        bool, typer.Option("--force-conflicts", help="Also overwrite fields that somebody else has set.")
    ] = False,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Check SpinRun files and create or change the runs, as `kubectl apply` does."""
    _check_wait(wait, timeout)
    if wait and dry_run is not DryRun.NONE:
        raise typer.BadParameter("--dry-run keeps nothing that --wait could follow: use one of them")
    from spinrun_cli.cluster.client import Access
    from spinrun_cli.cluster.submit import Submission, submit_files

    submission = Submission(
        namespace=namespace,
        dry_run=dry_run is DryRun.SERVER,
        force_conflicts=force_conflicts,
        wait=wait,
        timeout=timeout,
    )
    raise typer.Exit(submit_files(files, overrides or [], Access(context, namespace), submission))


def get(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One run, in full. Without it: all.", show_default=False)
    ] = None,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Runs of all namespaces.")] = False,
    output: Annotated[Output | None, typer.Option("--output", "-o", help="Form of the result.", show_default=False)] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on, with a row for each change.")] = False,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Show the runs of a namespace, or one of them with its conditions, pods and events."""
    if name is not None and all_namespaces:
        raise typer.BadParameter("NAME is of one namespace: use -n instead of -A")
    if watch and output not in (None, Output.WIDE):
        raise typer.BadParameter("--watch prints rows: use it without -o, or with -o wide")
    from spinrun_cli.cluster.client import Access
    from spinrun_cli.cluster.get import Question, get_runs

    get_runs(Question(name, all_namespaces, output and output.value, watch), Access(context, namespace))


def suspend(
    name: Name,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until no pod is left.")] = False,
    timeout: Timeout = None,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Pause a run: its trainer writes a checkpoint, its pods go, its ledger stays."""
    _check_wait(wait, timeout)
    from spinrun_cli.cluster import lifecycle
    from spinrun_cli.cluster.client import Access

    lifecycle.suspend(name, Access(context, namespace), wait=wait, timeout=timeout)


def resume(
    name: Name,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until trainer and rollouts are ready.")] = False,
    timeout: Timeout = None,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Let a suspended run go on from its checkpoint."""
    _check_wait(wait, timeout)
    from spinrun_cli.cluster import lifecycle
    from spinrun_cli.cluster.client import Access

    lifecycle.resume(name, Access(context, namespace), wait=wait, timeout=timeout)


def delete(
    name: Name,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until no pod is left.")] = False,
    timeout: Timeout = None,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Delete a run and its pods. What it has learned stays on its volume unless storage.retain is false."""
    _check_wait(wait, timeout)
    from spinrun_cli.cluster import lifecycle
    from spinrun_cli.cluster.client import Access

    lifecycle.delete(name, Access(context, namespace), wait=wait, timeout=timeout)


def register(app: typer.Typer) -> None:
    """Adds the cluster's commands to a command line."""
    for command in (submit, get, suspend, resume, delete):
        app.command()(command)
