"""What cannot run says why: in a condition that `kubectl describe spinrun` shows."""

import pytest

from e2e.runs import Json, Runs, tiny_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def template(container: str, **settings: object) -> Json:
    """A pod template that changes one container."""
    return {"spec": {"containers": [{"name": container, **settings}]}}


def test_what_keeps_pods_from_starting_is_named(runs: Runs) -> None:
    secret = {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "no-such-secret", "key": "token"}}}
    wrong = {
        "image": {"image": "localhost/no-such-image:1"},
        "secret": {"template": template("trainer", env=[secret])},
        "huge": {"template": template("trainer", resources={"requests": {"cpu": "1000"}})},
    }
    for name, trainer in wrong.items():
        # No rollouts: three vLLMs would only take time.
        run = tiny_run(name, trainer={"promptsPerStep": 16, **trainer})
        run["spec"]["rollout"]["template"] = template("vllm", resources={"requests": {"cpu": "1000"}})
        runs.create(run)
    want = {"image": "localhost/no-such-image:1", "secret": "no-such-secret", "huge": "cpu"}
    for name, word in want.items():
        runs.until(f"{name} names {word}", lambda name=name, word=word: word in trainer_trouble(runs, name))
        assert want[name] in runs.kubectl("describe", "spinrun", name)


def trainer_trouble(runs: Runs, name: str) -> str:
    """What the run's conditions say is wrong."""
    return " ".join(
        each["message"] for each in runs.status(name).get("conditions", ()) if each["type"] in ("Degraded", "Failed", "Ready")
    )


def test_a_model_that_does_not_exist_ends_the_run_with_its_name(runs: Runs) -> None:
    runs.create(tiny_run("nomodel", model={"source": "/ledger/models/no-such-model", "dtype": "float32"}))

    runs.until_phase("nomodel", "Failed")

    assert "/ledger/models/no-such-model" in runs.condition("nomodel", "Failed")["message"]
