"""What an upgrade of the operator does to a run from before the settings of a loss had a block."""

from typing import Any

import pytest

from spinrun_api.documents import parse_stored_run
from spinrun_api.run import SpinRun
from spinrun_operator.children.trainer_job import trainer_revision
from support.documents import method_before
from unit.operator.test_reconcile import running_world
from unit.operator.world import run_of

Json = dict[str, Any]


def stored_before(run: SpinRun, **method: Any) -> SpinRun:
    """The run as a newer operator reads it that was stored before."""
    document = run.to_document()
    return parse_stored_run(document | {"spec": document["spec"] | {"method": method_before(**method)}})


@pytest.mark.parametrize(
    ("method", "before", "restarts"),
    [
        ({}, "99bff42db04364e0", False),
        ({"loss": "ipo"}, "9b6a7eff8d1bb657", False),
        ({"loss": "robust"}, "c4e09388abf55301", False),
        ({"loss": "cringe", "cringe": {}}, "7193511ba234398a", False),
        ({"name": "sppo", "loss": "sppo"}, "a551429e0b0de05d", False),
        ({"name": "sppo", "loss": "sppoAdvantage"}, "bbda29d69c3ac067", False),
        # The image of the trainer that runs cannot read where they stand now.
        ({"loss": "ipo", "ipoAverage": False}, "b87f32033d531478", True),
        ({"labelSmoothing": 0.1}, "ca5224e2288f7225", True),
    ],
    ids=str,
)
def test_trainer_of_a_run_from_before_its_settings_moved_starts_again_only_where_some_are_set(
    method: Json, before: str, restarts: bool
) -> None:
    assert (trainer_revision(stored_before(run_of(), **method)) != before) == restarts


def test_trainer_that_starts_again_is_not_counted_as_failed() -> None:
    world = running_world()
    world.run = stored_before(world.run, loss="ipo", ipoAverage=False)
    world.step()
    assert world.jobs() == []
    world.trainer_pod(phase="Failed", ended={"exitCode": 3})
    world.settle()
    assert world.jobs() == ["demo-trainer-2"]
    assert world.run.status is not None
    assert not world.run.status.failed_attempts
