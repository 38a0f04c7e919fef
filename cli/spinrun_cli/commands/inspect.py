"""The commands that inspect a run, in a folder or in the cluster."""

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spinrun_cli.commands.options import Context, Namespace, OutputFormat, drawing_installed, worker_installed
from spinrun_cli.errors import InvalidInputError
from spinrun_cli.output import echo, echo_json
from spinrun_cli.queries import LogsQuery, SamplesQuery
from spinrun_cli.target import local_folder

if TYPE_CHECKING:
    from spinrun_cli.show.run_data import RunData

Target = Annotated[
    str,
    typer.Argument(
        metavar="NAME|PATH", help="Name of a run in the cluster, or folder of a local run or ledger.", show_default=False
    ),
]
Output = Annotated[OutputFormat, typer.Option("--output", "-o", help="Output format.")]
Image = Annotated[
    str | None,
    typer.Option("--image", metavar="IMAGE", help="Image of the pod that reads the ledger.", show_default="the operator's"),
]


def _folder(target: str, context: str | None, namespace: str | None) -> Path | None:
    """The folder that is meant; None for a run of the cluster."""
    return local_folder(target, in_cluster=context is not None or namespace is not None)


def watch(target: Target, output: Output = OutputFormat.TEXT, context: Context = None, namespace: Namespace = None) -> None:
    """Follow a run until it ends: a live view on a terminal, otherwise a line for each change.

    Exits with 0 if the run is complete, otherwise with 1. Ctrl-C ends the view, not the run.
    """
    folder = _folder(target, context, namespace)
    from spinrun_cli.terminal import shown

    if folder is not None:
        with worker_installed():
            from spinrun_cli.local.watch import watch_folder
        follow = partial(watch_folder, folder)
    else:
        from spinrun_cli.cluster.client import Access
        from spinrun_cli.cluster.watch import watch_run

        follow = partial(watch_run, target, Access(context, namespace))
    with shown(as_json=output is OutputFormat.JSON) as show:
        last = follow(show)
    raise typer.Exit(0 if last.outcome is not None and last.outcome.result == "Complete" else 1)


class Role(StrEnum):
    """Kinds of processes of a run."""

    TRAINER = "trainer"
    AGENT = "agent"
    VLLM = "vllm"
    SCORER = "scorer"


def logs(
    target: Target,
    role: Annotated[Role | None, typer.Option("--role", help="Only processes of this kind.", show_default="all")] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", help="Only the trainer's process with this rank.", show_default="all", min=0)
    ] = None,
    pod: Annotated[
        str | None,
        typer.Option("--pod", metavar="NAME", help="Only this pod, or this process of a local run.", show_default="all"),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing new lines until the run has ended.")] = False,
    previous: Annotated[
        bool,
        typer.Option(
            "--previous", "-p", help="Show the previous attempt of the trainer, or the previous instance of a container."
        ),
    ] = False,
    tail: Annotated[int | None, typer.Option("--tail", help="Lines to show from the end.", show_default="all", min=0)] = None,
    output: Output = OutputFormat.TEXT,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Print the logs of a run's processes; where there are several, each line is prefixed with its process."""
    if rank is not None and role not in (None, Role.TRAINER):
        raise typer.BadParameter("--rank can only be combined with --role trainer")
    if follow and previous:
        raise typer.BadParameter("--follow and --previous are mutually exclusive")
    wanted = Role.TRAINER if rank is not None else role
    query = LogsQuery(role=wanted, rank=rank, pod=pod, follow=follow, previous=previous, tail=tail)
    as_json = output is OutputFormat.JSON
    if (folder := _folder(target, context, namespace)) is not None:
        from spinrun_cli.local.logs import show_logs

        show_logs(folder, query, as_json=as_json)
        return
    from spinrun_cli.cluster import logs as cluster_logs
    from spinrun_cli.cluster.client import Access

    cluster_logs.show_logs(target, query, Access(context, namespace), as_json=as_json)


def events(target: Target, output: Output = OutputFormat.TEXT, context: Context = None, namespace: Namespace = None) -> None:
    """List the Kubernetes Events of a run and its children, the newest last."""
    if (folder := _folder(target, context, namespace)) is not None:
        raise InvalidInputError(f"{folder} is a local run, which has no Events: see `spinrun logs {folder}`")
    from spinrun_cli.cluster.client import Access
    from spinrun_cli.cluster.events import show_events

    show_events(target, Access(context, namespace), as_json=output is OutputFormat.JSON)


def samples(
    target: Target,
    window: Annotated[
        int | None, typer.Option("--window", "-w", help="Window, counted from 0.", show_default="the newest", min=0)
    ] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="Show the pairs that were trained on instead of the samples.")] = False,
    limit: Annotated[int, typer.Option("--limit", help="Maximum number of prompts or pairs; 0 shows all.", min=0)] = 10,
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="ID", help="Only this prompt.", show_default=False)] = None,
    output: Output = OutputFormat.TEXT,
    image: Image = None,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Show the answers that were sampled in a window with their rewards, or the pairs made of them."""
    query = SamplesQuery(window=window, pairs=pairs, prompt=prompt, limit=limit)
    if (folder := _folder(target, context, namespace)) is not None:
        with worker_installed():
            from spinrun_cli.local.samples import load_samples
        found = load_samples(folder, query)
    else:
        from spinrun_cli.cluster import remote
        from spinrun_cli.cluster.client import Access

        found = remote.load_samples(target, query, Access(context, namespace), image=image)
    from spinrun_cli.show import samples as shown

    if output is OutputFormat.JSON:
        echo_json(shown.document(found), indent=2)
    else:
        echo(shown.text(found))


def report(
    target: Target,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Output folder.", show_default="the folder itself; reports/NAME"),
    ] = None,
    bundle: Annotated[bool, typer.Option("--bundle", hidden=True, help="Print what it shows as one JSON document.")] = False,
    image: Image = None,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Write report.html and curves.png for a run, finished or not."""
    if (folder := _folder(target, context, namespace)) is None:
        from spinrun_cli.cluster import remote
        from spinrun_cli.cluster.client import Access

        data = remote.load_report(target, Access(context, namespace), image=image)
    else:
        with worker_installed():
            from spinrun_cli.local.run_data import load_run_data
        data = load_run_data(folder)
    if bundle:
        from spinrun_cli.bundle import bundled

        echo(bundled(data))
        return
    from spinrun_cli.report import write_report

    with drawing_installed():
        written = write_report(data, output or folder or Path("reports") / target)
    if data.learning is not None:
        echo(data.learning)
    for path in written:
        echo(path)


def explain(
    target: Target,
    output: Output = OutputFormat.TEXT,
    image: Image = None,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Say what a run is doing, what limits it and what to change, from its figures."""
    if (folder := _folder(target, context, namespace)) is not None:
        with worker_installed():
            from spinrun_cli.local.explain import load_explained
        explained = load_explained(folder)
    else:
        from spinrun_cli.cluster import explain as of_cluster
        from spinrun_cli.cluster.client import Access

        explained = of_cluster.load_explained(target, Access(context, namespace), image=image)
    from spinrun_cli.show import explanation

    if output is OutputFormat.JSON:
        echo_json(explanation.document(explained), indent=2)
    else:
        echo(explanation.text(explained))


def compare(
    targets: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME|PATH...", help="Names of runs in the cluster, or folders of local runs.", show_default=False
        ),
    ],
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the curves as an HTML page.", show_default=False)
    ] = None,
    output: Output = OutputFormat.TEXT,
    image: Image = None,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Compare runs side by side: accuracy, reward, loss, response length, pairs."""
    folders = [_folder(target, context, namespace) for target in targets]
    from spinrun_cli import compare as comparison

    if len(targets) > comparison.MOST_RUNS:
        raise typer.BadParameter(f"at most {comparison.MOST_RUNS} runs can be compared")
    with worker_installed():
        runs = [
            (target.rstrip("/"), comparison.load(folder) if folder else _fetched(target, context, namespace, image))
            for target, folder in zip(targets, folders, strict=True)
        ]
    with drawing_installed():
        comparison.show(runs, as_json=output is OutputFormat.JSON, page=html)


def _fetched(name: str, context: str | None, namespace: str | None, image: str | None) -> "RunData":
    """A run of the cluster, from its ledger."""
    from spinrun_cli.cluster import remote
    from spinrun_cli.cluster.client import Access
    from spinrun_cli.compare import from_document

    def arguments(ledger: str) -> list[str]:
        return ["compare", ledger, "--output", "json"]

    return from_document(remote.fetch(name, arguments, Access(context, namespace), image=image))


def register(app: typer.Typer) -> None:
    """Adds the commands to an app."""
    for command in (watch, explain, logs, events, samples, compare, report):
        app.command()(command)
