"""Runs the small runs of tools/curves, one after the other, and draws the pictures of docs/reading-the-curves.md from them.

python tools/curves.py --model .cache/models/smollm2-135m-instruct             all of them
python tools/curves.py --model … healthy length                                some
python tools/curves.py --draw                                                  the pictures alone, of what runs/curves holds
"""

import argparse
import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter
from PIL import Image

from spinrun_cli.local.run_data import load_run_data
from spinrun_cli.show.charts import PANELS, Palette, Panel, panels, picture
from spinrun_cli.show.run_data import RunData
from spinrun_worker.ledger import Layout, read_samples

ROOT = Path(__file__).resolve().parents[1]
SPECS = ROOT / "tools" / "curves"
PICTURES = ROOT / "docs" / "images"
NAMES = ("healthy", "all-ties", "length", "too-fast")
SHOWN = ("Held-out accuracy", "Reward", "Loss", "Margins", "What became of the prompts", "Response length")
DPI, NUM_COLOURS = 80, 64
"""Small files: what a person sees on a page."""


def main() -> int:
    """Run what is asked for and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}; all when none is given")
    parser.add_argument("--model", type=Path, help="folder of SmolLM2-135M-Instruct, as `spinrun model smollm2` makes it")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "curves", help="folder of the runs")
    parser.add_argument("--draw", action="store_true", help="run nothing")
    options = parser.parse_args()
    names = options.names or NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"there is no {', '.join(sorted(unknown))}: choose from {', '.join(NAMES)}")
    if not options.draw and options.model is None:
        parser.error("--model is needed to run, or --draw to draw alone")
    for name in names:
        folder = options.output / name
        if not options.draw:
            run(name, options.model.resolve(), folder)
        draw(name, folder)
    return 0


def run(name: str, model: Path, folder: Path) -> None:
    """One run to its end. One that ends because it learns nothing is what one of the pictures is about."""
    command = [sys.executable, "-m", "spinrun_cli.main", "local", str(SPECS / f"{name}.yaml"), "--output", str(folder), "--again"]
    command += ["--set", f"spec.model.source={model}"]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": str(SPECS)}, check=False)


def draw(name: str, folder: Path) -> None:
    """The picture of a run."""
    data = load_run_data(folder)
    chosen = [panel for panel in panels(data) if panel.title in SHOWN]
    if is_graded_otherwise(data):
        chosen[0] = right_answers(folder)
    path = PICTURES / f"curves-{name}.png"
    with Image.open(io.BytesIO(picture(data, chosen, dpi=DPI))) as image:
        image.convert("RGB").quantize(NUM_COLOURS).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1024:.0f} KiB, {data.learning}")


def is_graded_otherwise(data: RunData) -> bool:
    """Whether the run's own reward does not say which answers are right."""
    return data.document["spec"]["preference"]["rule"]["kind"] == "python"


def right_answers(folder: Path) -> Panel:
    """The run's held-out accuracy, which is its mean reward, beside the share of held-out answers with the right number."""
    (usual,) = (panel for panel in PANELS if panel.title == SHOWN[0])

    def drawn(axes: Axes, data: RunData, palette: Palette) -> None:
        versions = [line.version for line in data.evaluations]
        curves = {
            "the run's own (its reward)": [line.values["accuracy"] for line in data.evaluations],
            "right numbers": [share_of_right(folder, version) for version in versions],
        }
        for (label, values), colour in zip(curves.items(), palette.series, strict=False):
            axes.plot(versions, values, color=colour, linewidth=1.8, marker="o", markersize=4, label=label)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_ylim(-0.02, 1.05)
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=2,
            borderaxespad=0.2,
            frameon=False,
            labelcolor=palette.text,
            fontsize=8.5,
            handlelength=1.2,
            columnspacing=1.2,
        )
        axes.set_xlabel("version")

    return Panel(usual.title, usual.caption, drawn, usual.has_data)


def share_of_right(folder: Path, version: int) -> float:
    """Share of a version's held-out answers whose last number is the true one."""
    groups = read_samples(Layout(folder / "ledger").evaluation(version) / "samples.parquet")
    rights = [last_number(sample.text) == group.prompt.answer for group in groups for sample in group.samples]
    return sum(rights) / len(rights)


def last_number(text: str) -> str | None:
    """The last whole number of a text."""
    numbers: Sequence[str] = re.findall(r"-?\d+", text)
    return numbers[-1] if numbers else None


if __name__ == "__main__":
    sys.exit(main())
