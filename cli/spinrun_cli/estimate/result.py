"""What an estimate says."""

from dataclasses import dataclass

from spinrun_cli.estimate.hardware import Hardware
from spinrun_cli.estimate.memory import Memory, RolloutMemory
from spinrun_cli.estimate.shape import Shape
from spinrun_cli.estimate.window import Generation, Window
from spinrun_cli.estimate.work import Work


@dataclass(frozen=True)
class Assumption:
    """A number that the spec does not say."""

    name: str
    value: float
    why: str
    given: bool = False
    """Whether the user gave it."""


@dataclass(frozen=True)
class Layout:
    """Where the processes are."""

    gpus: int
    """In all; 0 on CPUs."""
    ranks: int
    rollouts: int
    tensor_parallel: int
    scorers: int
    """GPUs of scorers."""
    shared: int = 0
    """vLLM servers that share a GPU with a rank, on the GPU that has most of them; 0: every process has its own."""


@dataclass(frozen=True)
class Disk:
    """Bytes on the ledger's volume at the run's fullest moment."""

    versions: float
    num_versions: int
    checkpoints: float
    num_checkpoints: int
    samples: float | None
    """Of all windows; None where their number is not known."""
    scratch: float
    """Of each rollout in pods, for two versions; `spinrun local` links them."""

    @property
    def total(self) -> float:
        """On the volume, as far as it is known."""
        return self.versions + self.checkpoints + (self.samples or 0.0)


@dataclass(frozen=True)
class Finding:
    """What limits the run, and what to set."""

    kind: str
    """problem: it will not run so. limit: what costs most. advice: what could be set."""
    text: str


@dataclass(frozen=True)
class Estimate:
    """All of it."""

    name: str
    shape: Shape
    work: Work
    hardware: Hardware
    layout: Layout
    rank: Memory
    loading: Memory
    rollout: RolloutMemory
    generation: Generation
    window: Window
    windows: int | None
    """Of the run; None where it depends on the size of its data."""
    boundary_written: float
    """Bytes of a version and a checkpoint."""
    boundary_read: float
    """Bytes that all rollouts read of a version."""
    disk: Disk
    findings: tuple[Finding, ...]
    assumptions: tuple[Assumption, ...]

    @property
    def fits(self) -> bool:
        """Whether it can run so."""
        return not any(finding.kind == "problem" for finding in self.findings)

    @property
    def seconds(self) -> float | None:
        """Of all windows."""
        return None if self.windows is None else self.windows * self.window.total


def gigabytes(number: float) -> str:
    """Bytes for people, in thousands: as data sheets and `df -H` count."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number < 1000 * size else f"{number / size:,.0f} {unit}"
    return f"{number / 1e3:.3g} kB"
