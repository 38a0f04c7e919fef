"""The estimate of a run, as a person and as a program reads it."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from pydantic.alias_generators import to_camel
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from spinrun_cli.estimate.memory import Memory
from spinrun_cli.estimate.result import Estimate, Finding, gigabytes
from spinrun_cli.show.text import duration

PHASES = ("publish", "activate", "generate", "score", "checkpoint", "reference", "train")
WIDTHS = (24, 8)
"""Of the first two columns, so that those of all tables are below each other."""
SIGNS = {"problem": "✗", "limit": "·", "advice": "→"}
STYLES = {"problem": "bold red", "limit": "", "advice": ""}


def document(estimate: Estimate, notes: Sequence[str]) -> dict[str, Any]:
    """For programs: bytes, seconds and shares as plain numbers.

    Args:
        estimate: The estimate.
        notes: What else is to be said.
    """
    return {
        "name": estimate.name,
        "fits": estimate.fits,
        "hardware": estimate.hardware.name,
        "layout": _camel(asdict(estimate.layout)),
        "model": {**_camel(asdict(estimate.shape)), "parameters": estimate.shape.parameters, "trained": estimate.work.trained},
        "memory": {
            "rank": _memory(estimate.rank),
            "loading": _memory(estimate.loading),
            "rollout": {
                **_memory(estimate.rollout.memory),
                "cacheBytes": estimate.rollout.cache,
                "sequences": estimate.rollout.sequences,
                "longestSequences": estimate.rollout.longest_sequences,
            },
        },
        "window": {
            **{f"{phase}Seconds": getattr(estimate.window, phase) for phase in PHASES},
            "seconds": estimate.window.total,
            "outside": estimate.window.outside,
            "tokensPerSecond": estimate.generation.tokens_per_second,
        },
        "boundary": {
            "versionBytes": estimate.work.version_bytes,
            "writtenBytes": estimate.boundary_written,
            "readBytes": estimate.boundary_read,
        },
        "disk": {**_camel(asdict(estimate.disk)), "total": estimate.disk.total},
        "run": {"windows": estimate.windows, "seconds": estimate.seconds},
        "findings": [asdict(finding) for finding in estimate.findings],
        "assumptions": [asdict(assumption) for assumption in estimate.assumptions],
        "notes": list(notes),
    }


def _camel(values: dict[str, Any]) -> dict[str, Any]:
    return {to_camel(name): value for name, value in values.items()}


def _memory(memory: Memory) -> dict[str, Any]:
    return {
        "bytes": memory.total,
        "limit": memory.limit or None,
        "excess": memory.excess,
        "parts": {part.name: part.bytes for part in memory.parts},
    }


def text(estimate: Estimate, notes: Sequence[str]) -> RenderableType:
    """For people.

    Args:
        estimate: The estimate.
        notes: What else is to be said.
    """
    parts: list[RenderableType] = [_head(estimate)]
    parts += [Text(f"note: {note}") for note in notes]
    parts += [
        _memory_table("memory of a rank", estimate.rank),
        Text(f"while it loads, {gigabytes(estimate.loading.total)} of main memory in each rank", style="dim"),
        _memory_table(
            "memory of a rollout's GPU" if estimate.hardware.is_gpu else "memory of a rollout", estimate.rollout.memory
        ),
        Text(_sequences(estimate), style="dim"),
        _window_table(estimate),
        _bytes_table(estimate),
        _findings(estimate.findings),
        _assumptions(estimate),
    ]
    return Group(*parts)


def _head(estimate: Estimate) -> Text:
    work, shape, layout = estimate.work, estimate.shape, estimate.layout
    windows = "an unknown number of windows" if estimate.windows is None else f"{estimate.windows} windows"
    where = f"{layout.gpus} × {estimate.hardware.name}" if layout.gpus else estimate.hardware.name
    trained = f", {work.adapters / 1e6:.3g} M of adapters trained" if work.adapters else ""
    return Text(
        f"{estimate.name}: {windows} of {work.steps} steps on {where} ({_count(layout.ranks, 'rank')}, "
        f"{_count(layout.rollouts, 'rollout')})\n"
        f"{shape.parameters / 1e9:.3g} B weights: {shape.layers} layers of {shape.hidden}, vocabulary {shape.vocabulary}{trained}"
        f"; trained in {work.compute_dtype}, published in {'float32' if work.adapters else work.published_dtype}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _sequences(estimate: Estimate) -> str:
    rollout, generation = estimate.rollout, estimate.generation
    return (
        f"room for {rollout.sequences:,.0f} answers of average length at once, {rollout.longest_sequences:,.0f} of the longest; "
        f"{generation.batch:,.0f} are asked for, {generation.tokens_per_second:,.0f} tokens/s, bound by {generation.bound}"
    )


def _memory_table(title: str, memory: Memory) -> Table:
    table = _table(title, "", "")
    for part in memory.parts:
        if part.bytes:
            table.add_row(part.name, gigabytes(part.bytes), part.how)
    limit = f"of {gigabytes(memory.limit)}" if memory.limit else ""
    over = f": {gigabytes(memory.excess)} too much" if memory.excess else ""
    table.add_row(
        Text("together", style="bold"), Text(gigabytes(memory.total), style="bold red" if over else "bold"), limit + over
    )
    return table


def _window_table(estimate: Estimate) -> Table:
    seconds, table = estimate.window, _table("a window", "seconds", "")
    how = {
        "checkpoint": "while the rollouts answer, on the same cores"
        if estimate.work.shares_cores
        else "while the rollouts answer",
        "score": "" if estimate.work.score_seconds is not None else "not known: another model says it",
        "reference": "" if estimate.work.reference_pass else "the trainer computes none",
        "generate": "while the trainer trains" if estimate.work.overlap else "",
    }
    for phase in PHASES:
        table.add_row(phase, f"{getattr(seconds, phase):.1f}", how.get(phase, ""))
    run = "" if estimate.seconds is None else f"the run in {duration(estimate.seconds)}"
    table.add_row(
        Text("together", style="bold"),
        Text(f"{seconds.total:.1f}", style="bold"),
        f"{seconds.outside:.0%} outside generate and train" + (f"; {run}" if run else ""),
    )
    return table


def _bytes_table(estimate: Estimate) -> Table:
    disk, work, table = estimate.disk, estimate.work, _table("bytes", "", "")
    table.add_row("version", gigabytes(work.version_bytes), "written at each boundary")
    table.add_row("", gigabytes(estimate.boundary_read), f"read by {_count(work.rollouts, 'rollout')}")
    table.add_row("checkpoint", gigabytes(work.checkpoint_bytes), f"{work.checkpoints:.3g} a window")
    table.add_row("disk: versions", gigabytes(disk.versions), f"{disk.num_versions} at most")
    table.add_row(
        "disk: checkpoints", gigabytes(disk.checkpoints), f"{disk.num_checkpoints} at most, one of them about to be deleted"
    )
    table.add_row("disk: samples", "?" if disk.samples is None else gigabytes(disk.samples), "of all windows, never deleted")
    table.add_row(
        Text("together", style="bold"),
        Text(gigabytes(disk.total), style="bold"),
        f"in pods, {gigabytes(disk.scratch)} of scratch space in each rollout too",
    )
    return table


def _findings(findings: Iterable[Finding]) -> RenderableType:
    table = _table("what limits it", "")
    for finding in findings:
        table.add_row(SIGNS[finding.kind], Text(finding.text, style=STYLES[finding.kind]))
    return table


def _assumptions(estimate: Estimate) -> Table:
    table = _table("assumed (--assume NAME=VALUE)", "", "")
    for assumption in estimate.assumptions:
        table.add_row(assumption.name, _number(assumption.value), assumption.why)
    return table


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1e4 else f"{value:.3g}".replace("e+", "e").replace("e0", "e")


def _table(title: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    is_wide = len(others) > 1
    table.add_column(title, no_wrap=is_wide, min_width=WIDTHS[0] if is_wide else None)
    for heading in others[:-1]:
        table.add_column(heading, justify="right", no_wrap=True, min_width=WIDTHS[1])
    table.add_column(others[-1], overflow="fold")
    return table
