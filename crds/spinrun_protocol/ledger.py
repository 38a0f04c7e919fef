"""The ledger's files: what stands in each JSON document on the volume."""

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from spinrun_api.base import Count, Record

Kind = Literal["weights", "window", "evaluation", "base", "checkpoint", "merged", "reference"]

MANIFEST = "MANIFEST.json"
"""Name of the manifest in its directory."""

# Of a version that is an adapter: the names by which peft and vLLM look for them.
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"


def _inside(path: str) -> str:
    """The path, once it is sure to name a file below its directory: a manifest comes from a volume or a network."""
    if path == MANIFEST or not path.isprintable() or "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"{path!r} is not the plain relative name of a file of the directory")
    return path


class FileEntry(Record):
    """One file of a committed directory."""

    path: Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_inside)]
    """Name relative to the directory, with forward slashes; never absolute and without `..`, so it may be joined to a folder."""

    size: int = Field(ge=0)
    """Bytes."""

    xxh3_128: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", alias="xxh3_128")]
    """xxh3-128 of the content, hexadecimal."""


def _sorted_by_path(files: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
    for one, other in pairwise(files):
        if one.path >= other.path:
            raise ValueError(f"{other.path!r} stands after {one.path!r}: files are sorted by path, each named once")
    return files


class Reference(Record):
    """Weights that pairs are compared with."""

    version: int = Field(ge=0)
    """Their version."""

    kind: Literal["reference"] | None = None
    """What their directory holds: a mixture. Absent: the version itself."""

    digest: str
    """Digest of their manifest."""


class Drawn(Record):
    """The prompts of a window, by their positions in the stream of prompts."""

    start: int = Field(ge=0)
    """Position of the first one."""

    stop: int = Field(ge=0)
    """Position after the last one, where the next window begins."""

    skipped: int = Field(default=0, ge=0)
    """Positions between the two whose prompts were left out because of their pass rates."""


class Manifest(Record):
    """MANIFEST.json: a directory counts once this file does, and its content is what this file says."""

    format: Literal[1] = 1
    """Version of this document."""

    kind: Kind
    """What the directory holds."""

    number: int = Field(ge=0)
    """Version of weights, also of merged ones, and of a mixed reference the one that was mixed in last; window of a window and an
    evaluation, and of base answers the one that draws their prompts first; step of a checkpoint."""

    uid: str
    """Run that the directory belongs to."""

    version: int = Field(ge=0)
    """Version of the weights: of these weights, or those that the window, evaluation or base answers were sampled from, or the
    newest published at the checkpoint."""

    step: int = Field(ge=0)
    """Optimizer steps done when it was written."""

    attempt: int = Field(ge=1)
    """Attempt that wrote it."""

    parent: str | None = None
    """Digest of the weights that a window, evaluation or base answers were sampled from, of the adapter that is merged, or of the
    weights that a reference took in last. Absent for weights and checkpoints."""

    reference: Reference | None = None
    """The weights that a window's pairs are compared with; of a reference that is a mixture, the one before it. Absent for all
    else, for windows of a loss that compares with none, and for windows from before it was written down, whose reference is the
    version that they were sampled from."""

    drawn: Drawn | None = None
    """The prompts of a window that asked until it had enough pairs, or left prompts out because of their pass rates. Absent for
    all else, and where the spec says which prompts a window has."""

    files: Annotated[tuple[FileEntry, ...], AfterValidator(_sorted_by_path)]
    """Every file of the directory but this one, sorted by path."""

    digest: str
    """xxh3-128 over kind, number, uid and every file's path, size and hash: the identity of the content. The attempt is not
    part of it, so that a repeated publication of the same weights has the same digest."""


class Owner(Record):
    """OWNER.json: which attempt may write."""

    uid: str
    """Run that the ledger belongs to."""

    attempt: int = Field(ge=1)
    """Newest attempt; an older one stops at its next write."""


class RunRecord(Record):
    """run.json: how the run was made, for those who want to repeat or judge it."""

    run: dict[str, Any]
    """The SpinRun with every default filled in."""

    versions: dict[str, str]
    """Version of Python and of every library that has a say in the result."""

    machine: dict[str, Any]
    """Processor or GPU, cores, and the measurement that chose the dtype."""

    compute_dtype: str
    """Dtype of the trainer's arithmetic."""

    published_dtype: str
    """Dtype of the published weights."""

    base_digest: str | None = None
    """xxh3-128 of the source's weights where adapters are trained beside them. Absent where they are trained themselves."""

    source_revision: str | None = None
    """Git commit of the code, where the image or checkout says it."""

    attempt: Count
    """Attempt that wrote this record."""

    world_size: Count
    """Ranks of that attempt."""


class MetricsLine(Record):
    """One line of metrics.jsonl. A later attempt repeats the steps after its checkpoint: the last line of a number counts."""

    event: Literal["step", "window", "evaluation"]
    """What the line is about."""

    attempt: Count
    """Attempt that wrote the line."""

    time: float = Field(ge=0, le=1e11, allow_inf_nan=False)
    """Seconds since 1970-01-01 UTC."""

    window: Count
    """Window, from 0."""

    step: Count
    """Optimizer steps done."""

    version: Count
    """Version that the window samples from."""

    values: dict[str, float]
    """Figures by name, as METHODS calls them: loss, rewards/margins, reward/mean, timing/train_seconds …"""
