"""What commands want to know of runs, and how to ask a command elsewhere for the same."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GetQuery:
    """What to show."""

    name: str | None
    all_namespaces: bool
    output: str | None
    """wide, json, yaml or name."""
    watch: bool


@dataclass(frozen=True)
class LogsQuery:
    """Which logs to print, and how."""

    role: str | None
    """trainer, agent or vllm, or scorer for all of its pods; None: all."""
    rank: int | None
    """Rank of the trainer whose process is meant; None: all."""
    pod: str | None
    """Name of a pod, or of a process of a local run; None: all."""
    follow: bool
    previous: bool
    """The instance before the present one."""
    tail: int | None
    """Lines of each to show from the end; None: all."""


@dataclass(frozen=True)
class SamplesQuery:
    """Which samples or pairs to show, and how."""

    window: int | None
    """None: the newest."""
    pairs: bool
    prompt: str | None
    """Id of the one prompt to show; None: all."""
    limit: int
    """Most prompts or pairs to show; 0: all."""

    def arguments(self, ledger: str) -> list[str]:
        """The arguments of `spinrun` that print the same of a ledger elsewhere as a document."""
        window = [] if self.window is None else ["--window", str(self.window)]
        prompt = [] if self.prompt is None else ["--prompt", self.prompt]
        pairs = ["--pairs"] if self.pairs else []
        return ["samples", ledger, *window, *prompt, "--limit", str(self.limit), *pairs, "--output", "json"]
