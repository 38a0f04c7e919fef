"""Whether a live object is as wanted."""

from typing import Any

import pytest

from spinrun_operator.drift import covers


@pytest.mark.parametrize(
    ("live", "wanted", "want"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({}, {"a": 1}, False),
        ({}, {"a": {}, "b": []}, True),
        (["x", "y"], ["x"], True),
        (["y", "x"], ["x"], False),
        ([{"name": "b"}, {"name": "a", "v": 1}], [{"name": "a", "v": 1}], True),
        ([{"name": "a", "v": 2}], [{"name": "a", "v": 1}], False),
        ([{"name": "a", "mountPath": "/x"}, {"name": "a", "mountPath": "/y"}], [{"name": "a", "mountPath": "/y"}], True),
        ({"cpu": "1"}, {"cpu": "1000m"}, True),
        ({"memory": "512Mi"}, {"memory": "0.5Gi"}, True),
        ({"memory": "1G"}, {"memory": "1Gi"}, False),
        ({"port": "8080"}, {"port": 8080}, True),
        ({"flag": "true"}, {"flag": True}, False),
        ({"flag": 1}, {"flag": True}, False),
        (None, {"a": 1}, False),
    ],
)
def test_covers(live: Any, wanted: Any, want: bool) -> None:
    assert covers(live, wanted) == want
