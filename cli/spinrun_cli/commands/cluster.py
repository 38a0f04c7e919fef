"""The commands that submit runs to a cluster, list, suspend, resume and delete them."""

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
        raise typer.BadParameter(f"{text!r} is not a valid duration: use 90s, 10m or 2h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the SpinRun.", show_default=False)]
Timeout = Annotated[
    float | None,
    typer.Option(
        "--timeout", metavar="DURATION", parser=_seconds, help="How long to wait, such as 90s or 2h.", show_default="no limit"
    ),
]


def _check_wait(wait: bool, timeout: float | None) -> None:
    if timeout is not None and not wait:
        raise typer.BadParameter("--timeout requires --wait")


def submit(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="YAML files with SpinRuns; - reads standard input.", show_default=False),
    ],
    overrides: Overrides = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the runs until they end; exit with 1 if one fails.")] = False,
    timeout: Timeout = None,
    dry_run: Annotated[
        DryRun, typer.Option("--dry-run", help="server: the API server validates the runs without storing them.")
    ] = DryRun.NONE,
    force_conflicts: Annotated[bool, typer.Option("--force-conflicts", help="Overwrite fields that others have set.")] = False,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Validate SpinRun files and create or update the runs, as `kubectl apply` does."""
    _check_wait(wait, timeout)
    if wait and dry_run is not DryRun.NONE:
        raise typer.BadParameter("--wait and --dry-run are mutually exclusive")
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
        str | None, typer.Argument(metavar="[NAME]", help="Run to show in full; without it, all are listed.", show_default=False)
    ] = None,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="List the runs of all namespaces.")] = False,
    output: Annotated[Output | None, typer.Option("--output", "-o", help="Output format.", show_default=False)] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="After listing, print a row for each change.")] = False,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """List the runs of a namespace, or show one with its conditions, pods and events."""
    if name is not None and all_namespaces:
        raise typer.BadParameter("NAME cannot be combined with --all-namespaces")
    if watch and output not in (None, Output.WIDE):
        raise typer.BadParameter("--watch can only be combined with -o wide")
    from spinrun_cli.cluster.client import Access
    from spinrun_cli.cluster.get import get_runs
    from spinrun_cli.queries import GetQuery

    get_runs(GetQuery(name, all_namespaces, output and output.value, watch), Access(context, namespace))


def suspend(
    name: Name,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until all pods are gone.")] = False,
    timeout: Timeout = None,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Suspend a run: the trainer saves a checkpoint, the pods are deleted, the ledger stays."""
    _check_wait(wait, timeout)
    from spinrun_cli.cluster import lifecycle
    from spinrun_cli.cluster.client import Access

    lifecycle.suspend(name, Access(context, namespace), wait=wait, timeout=timeout)


def resume(
    name: Name,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the trainer and the rollouts are ready.")] = False,
    timeout: Timeout = None,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Resume a suspended run from its checkpoint."""
    _check_wait(wait, timeout)
    from spinrun_cli.cluster import lifecycle
    from spinrun_cli.cluster.client import Access

    lifecycle.resume(name, Access(context, namespace), wait=wait, timeout=timeout)


def delete(
    name: Name,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until all pods are gone.")] = False,
    timeout: Timeout = None,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Delete a run and its pods. The ledger stays on its volume unless storage.retain is false."""
    _check_wait(wait, timeout)
    from spinrun_cli.cluster import lifecycle
    from spinrun_cli.cluster.client import Access

    lifecycle.delete(name, Access(context, namespace), wait=wait, timeout=timeout)


def register(app: typer.Typer) -> None:
    """Adds the commands to an app."""
    for command in (submit, get, suspend, resume, delete):
        app.command()(command)
