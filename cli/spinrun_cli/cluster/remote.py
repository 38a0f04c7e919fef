"""`spinrun samples`, `compare` and `report` of a run in the cluster: what they show is read beside its ledger, and shown here.

What comes from there was made of files that others can write, so that it counts only as far as a model takes it.
"""

from pydantic import ValidationError

from spinrun_api.base import first_problem
from spinrun_cli.bundle import unbundle
from spinrun_cli.cluster.client import Access, Cluster, run
from spinrun_cli.cluster.ledger_pod import Arguments, output_of
from spinrun_cli.errors import CommandError
from spinrun_cli.output import echo
from spinrun_cli.queries import SamplesQuery
from spinrun_cli.show.run_data import RunData
from spinrun_cli.show.samples import ShownWindow
from spinrun_kube.kinds import SPIN_RUN


def load_samples(name: str, query: SamplesQuery, access: Access, *, image: str | None) -> ShownWindow:
    """The samples or pairs of a run.

    Raises:
        CommandError: The cluster cannot be reached, or refuses.
    """
    try:
        return ShownWindow.model_validate_json(_read(name, query.arguments, access, image=image))
    except ValidationError as error:
        why = f"incomplete, or in the form of another version of SpinRun ({first_problem(error)[:200]})"
        raise CommandError(f"the samples arrived {why}: try again, or choose another image with --image") from error


def load_report(name: str, access: Access, *, image: str | None) -> RunData:
    """What the report of a run shows.

    Raises:
        CommandError: The cluster cannot be reached, or refuses.
    """
    return unbundle(fetch(name, lambda ledger: ["report", ledger, "--bundle"], access, image=image))


def fetch(name: str, arguments: Arguments, access: Access, *, image: str | None) -> bytes:
    """All that a `spinrun` command prints that runs beside the ledger, after a word to who waits for it.

    Raises:
        CommandError: The cluster cannot be reached, or refuses.
    """
    return _read(name, arguments, access, image=image, word=f"reading the ledger of {name} in a pod ...")


def _read(name: str, arguments: Arguments, access: Access, *, image: str | None, word: str | None = None) -> bytes:
    async def read(cluster: Cluster) -> bytes:
        document = await cluster.request("GET", SPIN_RUN, cluster.namespace, name)
        if word is not None:
            echo(word, err=True)
        return await output_of(cluster, document, arguments, image=image)

    return run(access, read)
