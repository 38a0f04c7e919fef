"""How every process of SpinRun logs: lines of JSON where programs read them, plain lines where people do.

{"time": "…", "level": "INFO", "logger": "…", "message": "…", "component": "trainer", "namespace": "team", "run": "demo",
 "attempt": 1, "rank": 0, "window": 3, "step": 12}
2026-11-21 13:55:54,117 INFO rank 0 window 3 step 12 spinrun_worker.trainer.coordinator: …
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from spinrun_api.redaction import redacted, redacted_text

if TYPE_CHECKING:
    # For those who log before, or without, a run.
    from spinrun_api.run import SpinRun

LOG_FORMAT = "SPINRUN_LOG_FORMAT"
"""Environment variable with the format, json or text. Absent: text. The operator's own is that of the pods that it makes."""

FACTS = ("namespace", "run", "attempt", "node", "rank", "window", "step")
"""What a line may say of its run, in the order in which a plain line says it."""

NAMES = {"levelname": "level", "name": "logger", "exc_info": "exception", "stack_info": "stack"}
"""What Python calls otherwise than the field."""


class Facts(logging.Filter):
    """Adds to each line what its process knows of its run. A line that says something else itself keeps it."""

    def __init__(self, component: str) -> None:
        super().__init__()
        self.always: dict[str, object] = {"component": component}
        """What holds for all lines, and so stands in those of JSON alone."""
        self.now: Callable[[], Mapping[str, object]] = dict
        """What holds at this moment. It may be called from any thread."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every line through, with the facts as its attributes."""
        for name, value in {**self.always, **self.now()}.items():
            if not hasattr(record, name):
                setattr(record, name, value)
        record.facts = _shown({name: value for name, value in vars(record).items() if name not in self.always})
        return True


def log_to_stderr(component: str, *, level: int | str = logging.INFO, environment: Mapping[str, str] = os.environ) -> Facts:
    """Let all of this process' loggers write to stderr, in the format of the environment. The facts may be filled in later.

    Args:
        component: trainer, launcher, agent, scorer or operator.
        level: The least that is written.
        environment: Where LOG_FORMAT is read. An unknown format is reported, and plain lines are written.

    Returns:
        The facts that every line has.
    """
    facts = Facts(component)
    wanted = environment.get(LOG_FORMAT, "text")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(json_lines() if wanted == "json" else plain_lines())
    handler.addFilter(facts)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    if wanted not in ("json", "text"):
        logging.getLogger(__name__).warning("%s must be json or text, got %r: these lines are text", LOG_FORMAT, wanted)
    return facts


def facts_of(run: "SpinRun", **further: object) -> dict[str, object]:
    """What tells the lines of a run from those of others."""
    return {"namespace": run.metadata.namespace or "default", "run": run.metadata.name, **further}


class _JsonLines(JsonFormatter):
    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        """The line's fields without secrets."""
        return redacted(log_data)


class _PlainLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """The line, and the exception below it, without secrets."""
        return redacted_text(super().format(record))


def json_lines() -> logging.Formatter:
    """One object a line, with whatever the caller gave as `extra`, but for secrets."""
    fields, ours = ["levelname", "name", "message"], [*RESERVED_ATTRS, "facts"]
    return _JsonLines(fields, rename_fields=NAMES, timestamp="time", json_ensure_ascii=False, reserved_attrs=ours)


def plain_lines() -> logging.Formatter:
    """For people, without secrets."""
    return _PlainLines("%(asctime)s %(levelname)s %(facts)s%(name)s: %(message)s")


def plain(line: str) -> str:
    """A line of JSON as a plain one, in local time, with what tells the moment of a run; any other line as it is."""
    try:
        fields: dict[str, Any] = json.loads(line)
        time = datetime.fromisoformat(fields["time"]).astimezone()
        head = f"{time:%Y-%m-%d %H:%M:%S},{time.microsecond // 1000:03} {fields['level']}"
        shown = _shown({name: value for name, value in fields.items() if name not in ("namespace", "run", "attempt")})
        text = f"{head} {shown}{fields['logger']}: {fields['message']}"
    except (ValueError, TypeError, KeyError):
        return line
    return "\n".join([text, *(str(fields[name]) for name in ("exception", "stack") if name in fields)])


def _shown(fields: Mapping[str, object]) -> str:
    return "".join(f"{name} {fields[name]} " for name in FACTS if name in fields)
