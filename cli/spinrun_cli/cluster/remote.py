"""`spinrun samples`, `compare` and `report` of a run in the cluster: the same commands, beside its ledger."""

import sys
from pathlib import Path

import typer

from spinrun_cli.bundle import unbundle
from spinrun_cli.cluster.client import Access, Cluster, run
from spinrun_cli.cluster.ledger_pod import Arguments, output_of, run_beside_ledger
from spinrun_kube.kinds import SPIN_RUN


def show_samples(name: str, arguments: Arguments, access: Access, *, image: str | None) -> None:
    """Prints what a `spinrun` command prints that runs beside the ledger.

    Raises:
        CommandError: The cluster cannot be reached, or refuses.
    """

    def write(piece: bytes) -> None:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()

    async def show(cluster: Cluster) -> None:
        document = await cluster.request("GET", SPIN_RUN, cluster.namespace, name)
        await run_beside_ledger(cluster, document, arguments, write, image=image)

    run(access, show)


def write_report(name: str, output: Path, access: Access, *, image: str | None) -> tuple[str | None, list[Path]]:
    """Makes the report of a run beside its ledger and writes it here.

    Returns:
        What the run has learned, and the files.

    Raises:
        CommandError: The cluster cannot be reached, or refuses.
    """
    return unbundle(fetch(name, lambda ledger: ["report", ledger, "--bundle"], access, image=image), output)


def fetch(name: str, arguments: Arguments, access: Access, *, image: str | None) -> bytes:
    """All that a `spinrun` command prints that runs beside the ledger.

    Raises:
        CommandError: The cluster cannot be reached, or refuses.
    """

    async def read(cluster: Cluster) -> bytes:
        document = await cluster.request("GET", SPIN_RUN, cluster.namespace, name)
        typer.echo(f"reading the ledger of {name} in a pod ...", err=True)
        return await output_of(cluster, document, arguments, image=image)

    return run(access, read)
