"""An answer to a write or to a question for one object is that object, or is refused."""

from typing import Any

import pytest

from spinrun_kube.answers import InvalidAnswerError
from spinrun_kube.api import _read_object

Json = dict[str, Any]
METADATA: Json = {"name": "a", "namespace": "team", "uid": "u", "resourceVersion": "1"}


def test_an_object_is_taken() -> None:
    assert _read_object({"metadata": METADATA, "spec": {}}) == {"metadata": METADATA, "spec": {}}


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"kind": "List", "metadata": {"resourceVersion": "1"}, "items": []}, id="a list"),
        pytest.param({"metadata": 7}, id="metadata that is a number"),
        pytest.param({"metadata": METADATA | {"uid": None}}, id="no uid"),
        pytest.param({"metadata": METADATA | {"uid": {}}}, id="a uid that is not text"),
    ],
)
def test_what_is_not_an_object_is_refused(answer: Json) -> None:
    with pytest.raises(InvalidAnswerError):
        _read_object(answer)
