"""Merging pod templates."""

from typing import Any

import pytest

from spinrun_operator.merge import merge

BASE: dict[str, Any] = {
    "replicas": 1,
    "labels": {"a": "1"},
    "containers": [{"name": "main", "image": "x:1", "env": [{"name": "A", "value": "1"}], "args": ["p", "q"]}],
}


@pytest.mark.parametrize(
    ("over", "want"),
    [
        pytest.param({}, BASE, id="nothing"),
        pytest.param({"labels": {"b": "2"}}, BASE | {"labels": {"a": "1", "b": "2"}}, id="objects-are-merged"),
        pytest.param({"labels": {"a": None}}, BASE | {"labels": {}}, id="null-removes"),
        pytest.param({"new": [1]}, BASE | {"new": [1]}, id="new-field"),
        pytest.param(
            {"containers": [{"name": "main", "image": "y:2"}]},
            BASE | {"containers": [BASE["containers"][0] | {"image": "y:2"}]},
            id="entry-of-the-same-name",
        ),
        pytest.param(
            {"containers": [{"name": "side", "image": "z"}]},
            BASE | {"containers": [*BASE["containers"], {"name": "side", "image": "z"}]},
            id="entry-of-another-name",
        ),
        pytest.param(
            {"containers": [{"name": "main", "args": ["r"]}]},
            BASE | {"containers": [BASE["containers"][0] | {"args": ["r"]}]},
            id="list-without-names-is-replaced",
        ),
        pytest.param(
            {"containers": [{"name": "main", "env": [{"name": "A", "valueFrom": {"fieldRef": {}}}]}]},
            BASE | {"containers": [BASE["containers"][0] | {"env": [{"name": "A", "valueFrom": {"fieldRef": {}}}]}]},
            id="value-from-replaces-value",
        ),
        pytest.param({"containers": "none"}, BASE | {"containers": "none"}, id="wrong-type-is-left-to-the-api-server"),
        pytest.param(
            {"containers": [{"name": ["odd"]}, 7]},
            BASE | {"containers": [*BASE["containers"], {"name": ["odd"]}, 7]},
            id="odd-entries",
        ),
    ],
)
def test_merge(over: Any, want: Any) -> None:
    assert merge(BASE, over) == want


def test_arguments_stay_as_they_were() -> None:
    over = {"containers": [{"name": "main", "env": [{"name": "B", "value": "2"}]}]}
    before = repr((BASE, over))
    merge(BASE, over)["containers"][0]["env"].append("changed")
    assert repr((BASE, over)) == before
