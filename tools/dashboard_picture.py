"""Draws the Run dashboard as Grafana would show it, from what a Prometheus has recorded of its newest run.

python tools/dashboard_picture.py http://127.0.0.1:9090 docs/images/run-dashboard.png
"""

import argparse
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, PercentFormatter
from PIL import Image

DASHBOARD = Path(__file__).resolve().parents[1] / "charts" / "spinrun" / "files" / "dashboards" / "run.json"
WIDTH, UNIT_HEIGHT, COLUMNS, DPI = 1400, 25, 24, 100
"""Pixels of the picture and of a unit of Grafana's grid, and columns of that grid."""
LOOK_BACK_SECONDS, LOOK_STEP = 24 * 3600, 10
POINTS = 400
MAX_NAMES = 8
"""Of a legend; Grafana shows the rest of a longer one when it is scrolled."""
NUM_COLORS = 96
"""Of the picture: a third of the size, and no difference to see."""
COLORS = ("#3274d9", "#e0752d", "#56a64b", "#a352cc", "#e02f44", "#37a2a8", "#b8860b", "#7f7f7f", "#c15c9a", "#4b5a6a")
GREY, FRAME, NUMBER = "#6b7280", "#d8dce3", "#1f60c4"

Json = dict[str, Any]


@dataclass(frozen=True)
class Recording:
    """What a Prometheus has of one run."""

    client: httpx.Client
    namespace: str
    run: str
    start: float
    end: float

    def filled(self, expr: str) -> str:
        """A query as Grafana sends it."""
        # Grafana takes four collections and more; here they are a second apart.
        seconds = {"__rate_interval": max(20.0, 4 * self.step), "__range": self.end - self.start}
        values = {name: f"{value:.0f}s" for name, value in seconds.items()} | {"namespace": self.namespace, "run": self.run}
        return re.sub(r"\$(\w+)", lambda name: values[name[1]], expr)

    @property
    def step(self) -> float:
        """Seconds between two points of a curve."""
        return max(1.0, (self.end - self.start) / POINTS)

    def curves(self, target: Json) -> list[tuple[str, list[float], list[float]]]:
        """Name, minutes since the start and values of each series."""
        query = {"query": self.filled(target["expr"]), "start": self.start, "end": self.end, "step": self.step}
        return [
            (
                _name(target, series),
                [(float(at) - self.start) / 60 for at, _ in series["values"]],
                [float(value) for _, value in series["values"]],
            )
            for series in ask(self.client, "query_range", query)
        ]

    def last(self, target: Json) -> list[tuple[str, float]]:
        """Name and value of each series at the end."""
        found = ask(self.client, "query", {"query": self.filled(target["expr"]), "time": self.end})
        return [(_name(target, series), float(series["value"][1])) for series in found]


def ask(client: httpx.Client, path: str, parameters: Json) -> list[Json]:
    """The series of a query."""
    response = client.get(f"/api/v1/{path}", params=parameters)
    response.raise_for_status()
    return response.json()["data"]["result"]


def newest_run(client: httpx.Client) -> Recording:
    """The run that was collected from last, from its first step to its last moment."""
    now = time.time()
    query = "sum by (namespace, run) (spinrun_trainer_step_number)"
    found = ask(client, "query_range", {"query": query, "start": now - LOOK_BACK_SECONDS, "end": now, "step": LOOK_STEP})
    if not found:
        raise SystemExit(f"{client.base_url} knows no run of the last day")
    newest = max(found, key=lambda series: series["values"][-1][0])
    labels, times = newest["metric"], [float(at) for at, _ in newest["values"]]
    return Recording(client, labels["namespace"], labels["run"], times[0], times[-1])


def _name(target: Json, series: Json) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda label: series["metric"].get(label[1], ""), target["legendFormat"])


def text_of(value: float, unit: str, now: float) -> str:
    """A number as Grafana writes it."""
    if unit == "dateTimeFromNow":
        seconds = max(0.0, value / 1000 - now)
        return f"in {seconds / 60:.0f} min" if seconds > 120 else f"in {seconds:.0f} s"
    if unit == "percentunit":
        return f"{100 * value:.1f} %"
    return f"{value:.0f}" if value == int(value) else f"{value:.3f}"


def draw_figure(axes: Axes, panel: Json, recording: Recording) -> None:
    """A number or a word in large type."""
    axes.axis("off")
    found = recording.last(panel["targets"][0])
    defaults = panel["fieldConfig"]["defaults"]
    text, size, color = defaults["noValue"], 8.0, GREY
    if found:
        name, value = found[0]
        is_word = panel["options"].get("textMode") == "name"
        text, size, color = name if is_word else text_of(value, defaults["unit"], recording.end), 17.0, NUMBER
    axes.text(0.5, 0.45, text, ha="center", va="center", fontsize=size, color=color, transform=axes.transAxes)


def draw_curves(axes: Axes, panel: Json, recording: Recording) -> None:
    """Lines, or areas on top of one another."""
    defaults = panel["fieldConfig"]["defaults"]
    found = [curve for target in panel["targets"] for curve in recording.curves(target)]
    if not found:
        axes.axis("off")
        axes.text(0.5, 0.5, defaults["noValue"], ha="center", va="center", fontsize=8, color=GREY, transform=axes.transAxes)
        return
    if defaults.get("custom", {}).get("stacking", {}).get("mode") == "normal":
        minutes = sorted({at for _, times, _ in found for at in times})
        values = [[dict(zip(times, each, strict=True)).get(at, 0.0) for at in minutes] for _, times, each in found]
        axes.stackplot(minutes, values, labels=[name for name, _, _ in found], colors=COLORS, alpha=0.75)
    else:
        for number, (name, times, values) in enumerate(found):
            axes.plot(times, values, label=name, color=COLORS[number % len(COLORS)], linewidth=1.1)
    _dress(axes, defaults)


def _dress(axes: Axes, defaults: Json) -> None:
    unit = defaults["unit"]
    suffix = unit.partition(": ")[2]
    if unit == "percentunit":
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.set_ylim(0, 1)
    elif unit in ("bytes", "Bps"):
        axes.yaxis.set_major_formatter(EngFormatter("B" if unit == "bytes" else "B/s", places=0))
    elif unit == "s":
        axes.yaxis.set_major_formatter("{x:g} s")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if suffix:
        axes.text(0, 1.02, suffix, fontsize=6.5, color=GREY, transform=axes.transAxes)
    axes.set_xlim(left=0)
    axes.set_axisbelow(True)
    axes.grid(color="#eceff3", linewidth=0.7)
    axes.tick_params(labelsize=6.5, length=0, colors=GREY)
    for spine in axes.spines.values():
        spine.set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    axes.legend(
        handles[:MAX_NAMES],
        names[:MAX_NAMES],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.12),
        ncols=min(len(names), 4 if sum(map(len, names[:4])) < 50 else 2),
        fontsize=6.5,
        frameon=False,
        handlelength=1,
        columnspacing=1,
        borderaxespad=0.2,
    )


@dataclass(frozen=True)
class Place:
    """Where a panel stands, in pixels from the lower left corner of a picture of this height."""

    x: float
    y: float
    width: float
    height: float
    of_picture: float

    def at(self, right: float, down: float) -> tuple[float, float]:
        """A point by its distance to the upper left corner, in shares of the picture."""
        return (self.x + right) / WIDTH, (self.y + self.height - down) / self.of_picture

    def within(self, *, left: float, bottom: float, right: float, top: float) -> tuple[float, float, float, float]:
        """A box by its distance to each side, in shares of the picture."""
        width, height = self.width - left - right, self.height - bottom - top
        return (self.x + left) / WIDTH, (self.y + bottom) / self.of_picture, width / WIDTH, height / self.of_picture


def place_of(panel: Json, height: float) -> Place:
    """Where Grafana puts a panel."""
    grid, unit = panel["gridPos"], WIDTH / COLUMNS
    bottom = height - (grid["y"] + grid["h"]) * UNIT_HEIGHT
    return Place(grid["x"] * unit, bottom, grid["w"] * unit, grid["h"] * UNIT_HEIGHT, height)


def draw(dashboard: Json, recording: Recording) -> Figure:
    """The whole dashboard."""
    height = UNIT_HEIGHT * max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    picture = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI, facecolor="#f4f5f7")
    for panel in dashboard["panels"]:
        place = place_of(panel, height)
        if panel["type"] == "row":
            picture.text(*place.at(8, place.height / 2), panel["title"], fontsize=10, fontweight="bold", va="center")
            continue
        frame = picture.add_axes(place.within(left=3, bottom=3, right=3, top=3), facecolor="white", xticks=[], yticks=[])
        for spine in frame.spines.values():
            spine.set_color(FRAME)
        picture.text(*place.at(10, 14), panel["title"], fontsize=8, va="center")
        if panel["type"] == "stat":
            draw_figure(picture.add_axes(place.within(left=6, bottom=6, right=6, top=22)), panel, recording)
        else:
            draw_curves(picture.add_axes(place.within(left=54, bottom=52, right=14, top=36)), panel, recording)
    return picture


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the Prometheus")
    parser.add_argument("output", type=Path, help="PNG to write")
    arguments = parser.parse_args()
    with httpx.Client(base_url=arguments.url, timeout=60, trust_env=False) as client:
        picture = draw(json.loads(DASHBOARD.read_text()), newest_run(client))
    canvas = FigureCanvasAgg(picture)
    canvas.draw()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    pixels.quantize(NUM_COLORS, dither=Image.Dither.NONE).save(arguments.output, optimize=True)


if __name__ == "__main__":
    main()
