"""Which run a command means: the folder of a local run, or a run of a cluster by its name."""

import re
from pathlib import Path

from spinrun_cli.errors import InvalidInputError

MARKS = ("run.yaml", "ledger", "OWNER.json", "run.json", "metrics.jsonl")
"""Any of them makes a folder that of a local run, or a ledger."""


def local_folder(target: str, *, in_cluster: bool) -> Path | None:
    """The folder that is meant; None for a run of the cluster.
    A folder here takes precedence over a run of the same name.

    Args:
        target: What the user wrote.
        in_cluster: Whether the user has named a context or a namespace.

    Raises:
        InvalidInputError: It is neither.
    """
    # The models load pydantic, which `spinrun --help` shall not wait for.
    from spinrun_api.run import NAME_PATTERN

    path = Path(target).expanduser()
    is_name = re.fullmatch(NAME_PATTERN, target) is not None
    if in_cluster and not is_name:
        raise InvalidInputError(f"{target} is not the name of a run: --context and -n select runs of a cluster; remove them")
    if in_cluster or (is_name and not holds_run(path)):
        return None
    if not path.is_dir():
        raise InvalidInputError(
            f"there is no folder {target}: name the folder of a local run, or a run of the cluster by its name"
        )
    if not holds_run(path):
        raise InvalidInputError(f"{target} holds neither a local run nor a ledger: name a folder with run.yaml or run.json in it")
    return path


def holds_run(path: Path) -> bool:
    """Whether a folder is that of a local run, or a ledger."""
    return any((path / mark).exists() for mark in MARKS)


def ledger_of(folder: Path) -> Path:
    """The ledger of a local run's folder, or the folder itself where it is a ledger."""
    return folder / "ledger" if (folder / "ledger").is_dir() else folder
