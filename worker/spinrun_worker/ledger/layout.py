"""Where everything is below a run's folder."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from spinrun_protocol.ledger import Kind

KINDS: tuple[Kind, ...] = get_args(Kind)

_FOLDERS: dict[Kind, str] = {
    "weights": "weights",
    "window": "windows",
    "evaluation": "evaluations",
    "base": "base",
    "checkpoint": "checkpoints",
    "merged": "merged",
    "reference": "references",
}
_PREFIXES: dict[Kind, str] = {
    "weights": "v",
    "window": "",
    "evaluation": "",
    "base": "",
    "checkpoint": "step-",
    "merged": "v",
    "reference": "v",
}


@dataclass(frozen=True)
class Layout:
    """Paths of a ledger. Pure: it reads nothing."""

    root: Path
    """The run's own folder."""

    @property
    def metrics(self) -> Path:
        """One line of JSON per step, per window and per evaluation."""
        return self.root / "metrics.jsonl"

    @property
    def run_record(self) -> Path:
        """How the run was made."""
        return self.root / "run.json"

    @property
    def owner(self) -> Path:
        """Which attempt may write."""
        return self.root / "OWNER.json"

    def folder(self, kind: Kind) -> Path:
        """The folder that holds all directories of a kind."""
        return self.root / _FOLDERS[kind]

    def path(self, kind: Kind, number: int) -> Path:
        """The directory of a kind and number."""
        return self.folder(kind) / f"{_PREFIXES[kind]}{number:06d}"

    def number(self, kind: Kind, name: str) -> int | None:
        """The number in a directory's name; None when the name is not one of that kind."""
        match = re.fullmatch(re.escape(_PREFIXES[kind]) + r"([0-9]{6,18})", name)
        number = int(match[1]) if match else None
        return number if number is not None and self.path(kind, number).name == name else None

    def weights(self, version: int) -> Path:
        """The directory of a version's weights."""
        return self.path("weights", version)

    def window(self, number: int) -> Path:
        """The directory of a window's samples and pairs."""
        return self.path("window", number)

    def evaluation(self, number: int) -> Path:
        """The directory of an evaluation's samples."""
        return self.path("evaluation", number)

    def checkpoint(self, step: int) -> Path:
        """The directory of the checkpoint after a number of steps."""
        return self.path("checkpoint", step)
