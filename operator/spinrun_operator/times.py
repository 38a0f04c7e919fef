"""Times as the Kubernetes API writes them."""

from datetime import UTC, datetime, timedelta


def to_text(time: datetime) -> str:
    """RFC 3339, whole seconds, UTC."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def from_text(text: str) -> datetime:
    """Reads RFC 3339. Raises ValueError."""
    return datetime.fromisoformat(text)


def seconds_between(earlier: datetime, later: datetime) -> float:
    """Seconds from one to the other, never negative: clocks of two machines may disagree."""
    return max(0.0, (later - earlier) / timedelta(seconds=1))
