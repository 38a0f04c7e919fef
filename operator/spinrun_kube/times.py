"""Times as the Kubernetes API writes them."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any


def utc_now() -> datetime:
    """The time."""
    return datetime.now(UTC)


def of_event(event: Mapping[str, Any]) -> str:
    """When an Event was last seen, by whichever of its fields says so."""
    return event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]


def to_text(time: datetime) -> str:
    """RFC 3339, whole seconds, UTC."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def from_text(text: str) -> datetime:
    """Reads RFC 3339; without an offset it is UTC.

    Raises:
        ValueError: The text is something else.
    """
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def later(time: datetime, seconds: float) -> datetime:
    """The time so many seconds later; the last one that a clock can show where that is beyond it."""
    try:
        return time + timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        return datetime.max.replace(tzinfo=UTC)


def seconds_between(earlier: datetime, later: datetime) -> float:
    """Seconds from one to the other, never negative: clocks of two machines may disagree."""
    return max(0.0, (later - earlier) / timedelta(seconds=1))
