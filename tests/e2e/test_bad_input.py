"""What cannot run says why: in a condition that `kubectl describe spinrun` shows. All of it is tried at once, in one wait."""

import pytest

from e2e.runs import Json, Runs, tiny_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def template(container: str, **settings: object) -> Json:
    """A pod template that changes one container."""
    return {"spec": {"containers": [{"name": container, **settings}]}}


TOO_MUCH = {"requests": {"cpu": "1000"}}
SECRET = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "no-such-secret", "key": "token"}}}
# Enough for Python, and not for what it imports.
TOO_LITTLE = {"limits": {"memory": "300Mi"}}
WRONG: dict[str, Json] = {
    "image": {"trainer": {"image": "localhost/no-such-image:1"}},
    "secret": {"trainer": {"template": template("trainer", env=[SECRET])}},
    "huge": {"trainer": {"template": template("trainer", resources=TOO_MUCH)}},
    "nomodel": {"model": {"source": "/ledger/models/no-such-model", "dtype": "float32"}},
    "oom": {"trainer": {"template": template("trainer", resources=TOO_LITTLE)}, "lifecycle": {"backoffLimit": 0}},
}


@pytest.fixture(scope="module")
def wrong(runs: Runs) -> Runs:
    """The namespace with a run for each mistake."""
    for name, spec in WRONG.items():
        run = tiny_run(name, **spec | {"trainer": {"promptsPerStep": 16, **spec.get("trainer", {})}})
        # No rollouts: so many vLLMs would only take time.
        run["spec"]["rollout"]["template"] = template("vllm", resources=TOO_MUCH)
        runs.create(run)
    return runs


@pytest.mark.parametrize(
    ("name", "word"), [("image", "localhost/no-such-image:1"), ("secret", "no-such-secret"), ("huge", "cpu")]
)
def test_what_keeps_pods_from_starting_is_named(wrong: Runs, name: str, word: str) -> None:
    wrong.until(f"{name} names {word}", lambda: word in trainer_trouble(wrong, name))
    assert word in wrong.kubectl("describe", "spinrun", name)


def trainer_trouble(runs: Runs, name: str) -> str:
    """What the run's conditions say is wrong."""
    return " ".join(
        each["message"] for each in runs.status(name).get("conditions", ()) if each["type"] in ("Degraded", "Failed", "Ready")
    )


def test_a_model_that_does_not_exist_ends_the_run_with_its_name(wrong: Runs) -> None:
    wrong.until_phase("nomodel", "Failed")

    assert "/ledger/models/no-such-model" in wrong.condition("nomodel", "Failed")["message"]


def test_a_trainer_out_of_memory_is_reported_as_such(wrong: Runs) -> None:
    status = wrong.until_phase("oom", "Failed")

    assert status["failedAttempts"] == 1
    assert "container trainer reached its memory limit of 300Mi: raise" in wrong.condition("oom", "Failed")["message"]
