"""A run to be explained, from its folder or its ledger."""

from pathlib import Path

from spinrun_cli.local.folder import RunFolder
from spinrun_cli.local.run_data import load_run_data
from spinrun_cli.local.watch import look
from spinrun_cli.show.explanation import Explained


def load_explained(path: Path) -> Explained:
    """A local run, or a ledger.

    Args:
        path: Its folder.

    Raises:
        InvalidInputError: It is neither, or one of its files is damaged.
        CommandError: It cannot be read.
    """
    data = load_run_data(path)
    folder = RunFolder(path)
    if not folder.run_file.exists():
        return Explained(None, data)
    snapshot = look(folder)
    trouble = snapshot.progress.trouble if snapshot.progress is not None and snapshot.outcome is None else ""
    return Explained(snapshot, data, obstacles=[trouble] if trouble else [])
