"""`spinrun samples`, `compare` and `report` of a run in the cluster: the same commands, beside its ledger."""

import codecs
from pathlib import Path

from spinrun_cli.bundle import unbundle
from spinrun_cli.cluster.client import Access, Cluster, run
from spinrun_cli.cluster.ledger_pod import Arguments, output_of, run_beside_ledger
from spinrun_cli.output import echo
from spinrun_kube.kinds import SPIN_RUN


def show_samples(name: str, arguments: Arguments, access: Access, *, image: str | None) -> None:
    """Prints what a `spinrun` command prints that runs beside the ledger.

    Raises:
        CommandError: The cluster cannot be reached, or refuses.
    """
    # Pieces may end inside a character.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def write(piece: bytes) -> None:
        echo(decoder.decode(piece), end="")

    async def show(cluster: Cluster) -> None:
        document = await cluster.request("GET", SPIN_RUN, cluster.namespace, name)
        await run_beside_ledger(cluster, document, arguments, write, image=image)

    run(access, show)
    echo(decoder.decode(b"", final=True), end="")


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
        echo(f"reading the ledger of {name} in a pod ...", err=True)
        return await output_of(cluster, document, arguments, image=image)

    return run(access, read)
