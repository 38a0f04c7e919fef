"""A reward model in pods of the run's own: its numbers are the rewards, and while it is away there are none."""

from pathlib import Path

import pytest

from e2e.runs import LONG, SHELL, Runs, tiny_run
from spinrun_worker.ledger import read_samples
from support.models import tiny_classifier

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

MODEL = "/ledger/models/classifier"


def test_a_reward_model_of_the_run_is_waited_for_and_never_made_up(runs: Runs, tmp_path: Path) -> None:
    runs.kubectl("cp", str(tiny_classifier(tmp_path / "classifier", seed=5)), f"{SHELL}:/shared/models/classifier")
    scorer = {"engineArgs": {"kv-cache-memory-bytes": 64 << 20}}
    runs.create(tiny_run("scored", preference={"rewardModel": {"source": MODEL}}, scorer=scorer, duration=LONG))
    runs.until_window("scored", 2)

    (pod,) = runs.pods("scorer", "scored")
    runs.kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")
    runs.until("another scorer has come", lambda: uids(runs) - {pod["metadata"]["uid"]})

    status = runs.goes_on("scored")
    assert status["attempt"] == 1, "the trainer waited"
    runs.finish("scored")
    ledger = runs.ledger("scored", tmp_path)
    ledger.assert_whole()
    for window in ledger.manifests["windows"]:
        groups = read_samples(tmp_path / "scored" / "windows" / f"{window:06d}" / "samples.parquet")
        rewards = [reward for group in groups for reward in group.rewards]
        assert len(rewards) == 2 * 16 * 4
        assert None not in rewards
        assert 0.0 not in rewards
        assert len(set(rewards)) > len(rewards) / 2, "the model tells answers apart"


def uids(runs: Runs) -> set[str]:
    """Of the scorers that are there."""
    return {pod["metadata"]["uid"] for pod in runs.pods("scorer", "scored")}
