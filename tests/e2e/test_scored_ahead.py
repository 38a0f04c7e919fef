"""Rollouts a window ahead of their trainer, and a reward model in pods of the run's own: each of the three is killed in one run.

Each test needs the run at work and leaves it at work; the last one ends it and looks at what it has written.
"""

from pathlib import Path

import pytest

from e2e.runs import LONG, SHELL, Attempts, Runs, tiny_run
from spinrun_worker.ledger import read_samples
from support.models import tiny_classifier

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

NAME = "ahead"
MODEL = "/ledger/models/classifier"
SAMPLES_A_WINDOW = 2 * 16 * 4


@pytest.fixture(scope="module")
def ahead(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The namespace with the run, which has just been created."""
    classifier = tiny_classifier(tmp_path_factory.mktemp("model") / "classifier", seed=5)
    runs.kubectl("cp", str(classifier), f"{SHELL}:/shared/models/classifier")
    method = {"refUpdateFreq": 2, "overlap": 1}
    scorer = {"engineArgs": {"kv-cache-memory-bytes": 64 << 20}}
    run = tiny_run(NAME, preference={"rewardModel": {"source": MODEL}}, method=method, scorer=scorer, duration=LONG)
    runs.create(run)
    return runs


def test_a_reward_model_that_is_away_is_waited_for(ahead: Runs) -> None:
    attempts = ahead.at_work(NAME)
    (pod,) = ahead.pods("scorer", NAME)
    ahead.kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")
    ahead.until("another scorer has come", lambda: uids(ahead) - {pod["metadata"]["uid"]})

    assert Attempts.of(ahead.until_continued(NAME)) == attempts, "the trainer waited"


def uids(runs: Runs) -> set[str]:
    """Of the scorers that are there."""
    return {pod["metadata"]["uid"] for pod in runs.pods("scorer", NAME)}


def test_rollouts_that_are_ahead_answer_again_what_a_killed_trainer_has_lost(ahead: Runs) -> None:
    attempts = ahead.at_work(NAME)
    ahead.kill_trainer(NAME, "train")

    status = ahead.until_continued(NAME, attempt=attempts.total + 1)

    assert Attempts.of(status) == attempts.after(total=1, failed=1)


def test_a_rollout_that_was_ahead_is_waited_for(ahead: Runs) -> None:
    attempts = ahead.at_work(NAME)
    ahead.kubectl("delete", "pod", ahead.pod_names("rollout", NAME)[0], "--grace-period=0", "--force")

    assert Attempts.of(ahead.until_continued(NAME)) == attempts, "the trainer waited"


def test_at_its_end_every_window_was_sampled_once_and_has_the_rewards_of_the_model(ahead: Runs, tmp_path: Path) -> None:
    ahead.at_work(NAME)
    ahead.finish(NAME)

    ledger = ahead.ledger(NAME, tmp_path)
    ledger.assert_whole(ahead=1)
    for window in ledger.manifests["windows"]:
        groups = read_samples(tmp_path / NAME / "windows" / f"{window:06d}" / "samples.parquet")
        rewards = [reward for group in groups for reward in group.rewards]
        assert len(rewards) == SAMPLES_A_WINDOW
        assert None not in rewards
        assert 0.0 not in rewards
        assert len(set(rewards)) > len(rewards) / 2, "the model tells answers apart"
