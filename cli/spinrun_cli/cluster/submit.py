"""`spinrun submit`: files are checked here, applied by the API server, and followed to their end if wanted."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from spinrun_api.documents import InvalidDocumentError, Problem, parse_run, read_documents
from spinrun_api.run import API_VERSION, GROUP, KIND, PLURAL
from spinrun_cli.cluster.client import Access, Cluster, ConflictError, NotFoundError, run
from spinrun_cli.cluster.follow import ProgressPrinter, follow
from spinrun_cli.cluster.status import is_finished, outcome, status_of
from spinrun_cli.errors import CommandError, InvalidInputError
from spinrun_cli.output import echo
from spinrun_cli.overrides import merge, parse_override, relative_paths
from spinrun_kube.api import APPLY
from spinrun_kube.kinds import SPIN_RUN

Json = dict[str, Any]

FIELD_MANAGER = "spinrun"
"""Under which name the API server remembers what the files have set."""

STANDARD_INPUT = Path("/dev/stdin")
USERS_METADATA = ("name", "namespace", "labels", "annotations", "finalizers", "ownerReferences")
"""Fields of the metadata that a user sets. A file made by `get -o yaml` holds others, which the API server would refuse."""


@dataclass(frozen=True)
class Submission:
    """How to submit."""

    namespace: str | None = None
    """Namespace that the user named beside the files."""

    dry_run: bool = False
    force_conflicts: bool = False
    wait: bool = False
    timeout: float | None = None
    """Seconds to wait at most."""


def submit_files(files: Sequence[Path], overrides: Sequence[str], access: Access, submission: Submission) -> int:
    """Submits every SpinRun of the files.

    Returns:
        The exit code: 1 when a run that was waited for failed.

    Raises:
        InvalidInputError: The message names every problem; nothing has been sent.
        CommandError: The cluster cannot be reached, or refuses.
    """
    documents = read_runs([STANDARD_INPUT if path == Path("-") else path for path in files], overrides)
    return run(access, partial(_submit, documents, submission))


# --- what is sent --------------------------------------------------------------------------------------------------


def read_runs(files: Sequence[Path], overrides: Sequence[str]) -> list[Json]:
    """Every SpinRun of the files as it is to be sent.

    Raises:
        InvalidInputError: The message names every problem of every file.
    """
    changes = [parse_override(override) for override in overrides]
    runs: list[Json] = []
    problems: list[str] = []
    for path in files:
        try:
            found = _of_our_kind(path)
        except InvalidDocumentError as error:
            problems.append(str(error))
            continue
        for source, document in found:
            try:
                runs.append(_checked(document, source, changes))
            except InvalidDocumentError as error:
                problems.append(str(error))
    if problems:
        raise InvalidInputError("\n".join(problems))
    return runs


def _of_our_kind(path: Path) -> list[tuple[str, Json]]:
    """The SpinRuns of a file and where they stand. Of others it says that they are not sent. Raises InvalidDocumentError when
    there is none."""
    documents = read_documents(path)
    ours: list[tuple[str, Json]] = []
    for number, document in enumerate(documents, 1):
        source = f"{path} (document {number})" if len(documents) > 1 else str(path)
        if document.get("kind", KIND) == KIND:
            ours.append((source, document))
        else:
            echo(f"{source}: skipping the {document['kind']}: apply it with kubectl", err=True)
    if not ours:
        raise InvalidDocumentError(str(path), [Problem("kind", f"the file has no document of kind {KIND}: add one")])
    return ours


def _checked(document: Json, source: str, changes: Sequence[Json]) -> Json:
    """The document with the changes, without what only the API server sets. Raises InvalidDocumentError."""
    for change in changes:
        document = merge(document, change)
    parse_run(document, source)
    local = [".".join(map(str, keys)) for keys, _ in relative_paths(document)]
    if local:
        message = "names a file on this machine, which pods cannot see: use a Hub id, or an absolute path on the ledger's volume"
        raise InvalidDocumentError(source, [Problem(path, message) for path in local])
    metadata = {key: document["metadata"][key] for key in USERS_METADATA if key in document["metadata"]}
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": document["spec"]}


# --- sending -------------------------------------------------------------------------------------------------------


async def _submit(documents: Sequence[Json], submission: Submission, cluster: Cluster) -> int:
    applied = [await _apply(_placed(document, submission, cluster), submission, cluster) for document in documents]
    if submission.dry_run or not submission.wait:
        return 0
    with ProgressPrinter() as printer:
        wait = partial(follow, cluster, listener=printer, until=is_finished, timeout=submission.timeout, goal="over")
        results = await asyncio.gather(*map(wait, applied), return_exceptions=True)
    return max(map(_exit_code, results))


def _exit_code(result: Json | BaseException) -> int:
    """0 for a run that is complete. Why another could not be followed is said. Raises what is not a CommandError."""
    if isinstance(result, CommandError):
        echo(f"error: {result}", err=True)
        return result.exit_code
    if isinstance(result, BaseException):
        raise result
    end = outcome(status_of(result))
    return 0 if end is not None and end.type == "Complete" else 1


def _placed(document: Json, submission: Submission, cluster: Cluster) -> Json:
    """The document with the namespace that is meant, by kubectl's rules. Raises InvalidInputError."""
    named, wanted = document["metadata"].get("namespace"), submission.namespace
    if named and wanted and named != wanted:
        name = document["metadata"]["name"]
        raise InvalidInputError(f"{name}: metadata.namespace is {named} and -n is {wanted}: remove one of them")
    return document | {"metadata": document["metadata"] | {"namespace": named or cluster.namespace}}


async def _apply(document: Json, submission: Submission, cluster: Cluster) -> Json:
    """Applies a run and says what came of it. Server-side: what the file no longer has goes, and what others have set
    is not overwritten unless asked for. Raises CommandError."""
    name, namespace = document["metadata"]["name"], document["metadata"]["namespace"]
    query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
    query |= {"dryRun": "All"} if submission.dry_run else {}
    query |= {"force": "true"} if submission.force_conflicts else {}
    try:
        before = await cluster.request("GET", SPIN_RUN, namespace, name)
    except NotFoundError:
        before = None
    try:
        after = await cluster.request("PATCH", SPIN_RUN, namespace, name, query=query, body=document, content_type=APPLY)
    except ConflictError as error:
        raise ConflictError(f"{error}; to take these fields over, use --force-conflicts") from error
    _tell(before, after, submission)
    return after


def _tell(before: Json | None, after: Json, submission: Submission) -> None:
    name, namespace = after["metadata"]["name"], after["metadata"]["namespace"]
    change = "created" if before is None else "unchanged" if _content(before) == _content(after) else "configured"
    echo(f"{PLURAL}.{GROUP}/{name} {change}{' (server dry run)' if submission.dry_run else ''}")
    if submission.dry_run or submission.wait:
        return
    if (end := outcome(status_of(after))) is not None:
        echo(f"  it is already {end.type}: to train again, delete it first, or submit it under another name")
    else:
        echo(f"  to follow it: spinrun watch {name} -n {namespace}")


def _content(run: Json) -> list[Any]:
    """What a user sets."""
    return [run["spec"], run["metadata"].get("labels"), run["metadata"].get("annotations")]
