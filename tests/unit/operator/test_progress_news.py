"""Which progress is worth a status write."""

from typing import Any

import pytest

from spinrun_api.status import Best, Metrics
from spinrun_operator.progress import Target, is_news
from spinrun_protocol.wire import Progress

BASE = {"uid": "u", "attempt": 1, "activity": "train", "window": 1, "windows": 4, "step": 20, "total_steps": 64}


def progress(**fields: Any) -> Progress:
    """What rank 0 says."""
    return Progress.model_validate(BASE | fields)


@pytest.mark.parametrize(
    ("change", "at_once", "in_time"),
    [
        ({}, False, False),
        ({"eta_seconds": 5.0}, False, False),
        ({"prompts_done": 5}, False, False),
        ({"step": 21}, False, True),
        ({"activity": "generate"}, False, True),
        ({"metrics": Metrics(loss=0.5)}, False, True),
        ({"window": 2}, True, True),
        ({"version": 1}, True, True),
        ({"attempt": 2}, True, True),
        ({"activity": "finished"}, True, True),
        ({"trouble": "the judge is down"}, True, True),
        ({"best": Best(window=1, version=1, accuracy=0.9)}, True, True),
    ],
    ids=str,
)
def test_milestones_are_written_at_once_and_figures_in_time(change: dict[str, Any], at_once: bool, in_time: bool) -> None:
    assert is_news(progress(), progress(**change), may_wait=True) == at_once
    assert is_news(progress(), progress(**change), may_wait=False) == in_time


def test_first_progress_is_news() -> None:
    assert is_news(None, progress(), may_wait=True)


@pytest.mark.parametrize(
    ("host", "want"), [("10.0.0.1", "http://10.0.0.1:8200/progress"), ("fd00::1", "http://[fd00::1]:8200/progress")]
)
def test_address_of_either_family_is_asked(host: str, want: str) -> None:
    assert Target(host, "u", 1).url == want
