"""Reads back what trackers wrote, as those do who show it to people."""

import json
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2


@dataclass
class WandbFile:
    """What an offline run holds for the service."""

    project: str = ""
    entity: str = ""
    id: str = ""
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)
    """The metric that each one is drawn over, by its name or pattern."""
    exit_code: int | None = None


def wandb_files(folder: Path) -> list[WandbFile]:
    """The offline runs in a folder that have ended, in the order of their names, which begin with the time of their start."""
    deadline = time.monotonic() + 20
    while True:
        # wandb says that a run has ended a moment before its process has written that.
        found = [_read(path) for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb"))]
        if all(file.exit_code is not None for file in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def _pieces(data: bytes) -> Iterator[bytes]:
    """The records of a file of wandb, which has no reader of its own for them: LevelDB's log after a header of seven bytes."""
    position, record = 7, b""
    while position + 7 <= len(data):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def _read(path: Path) -> WandbFile:
    found, data = WandbFile(), path.read_bytes()
    for piece in _pieces(data):
        record: Any = wandb_internal_pb2.Record.FromString(piece)  # pyright: ignore[reportAttributeAccessIssue]
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                found.project, found.entity, found.id, found.name = run.project, run.entity, run.run_id, run.display_name
                found.config |= {item.key: json.loads(item.value_json) for item in run.config.update}
            case "history":
                row = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                found.rows.append(row)
            case "metric":
                found.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
            case "exit":
                found.exit_code = record.exit.exit_code
            case _:
                pass
    return found


def tensorboard_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The points of each curve in a folder, as TensorBoard draws them."""
    events: Any = EventAccumulator(str(folder)).Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def tensorboard_text(folder: Path, tag: str) -> str:
    """A text in a folder."""
    events = EventAccumulator(str(folder)).Reload()
    return events.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()
