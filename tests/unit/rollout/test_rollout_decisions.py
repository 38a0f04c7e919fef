"""What the activation loop does next, as a table."""

import pytest

from spinrun_worker.rollout.activation import NextAction, backoff_seconds, next_action
from spinrun_worker.vllm.engine import LOADING, EngineStatus


def engine(label: str, *, paused: bool = False) -> EngineStatus:
    return EngineStatus(label, paused, max_model_len=64, models=frozenset({"policy"}))


@pytest.mark.parametrize(
    ("wanted", "staged", "status", "want"),
    [
        pytest.param(None, set(), None, NextAction.WAIT, id="nothing wanted, no vLLM"),
        pytest.param(None, set(), engine("default"), NextAction.WAIT, id="nothing wanted"),
        pytest.param("1-b", set(), None, NextAction.STAGE, id="stages while vLLM starts"),
        pytest.param("1-b", set(), engine("default"), NextAction.STAGE, id="stages before it switches"),
        pytest.param("1-b", {"0-a"}, engine("0-a"), NextAction.STAGE, id="stages while the old version serves"),
        pytest.param("1-b", {"1-b"}, None, NextAction.WAIT, id="waits for vLLM"),
        pytest.param("1-b", {"0-a", "1-b"}, engine("0-a"), NextAction.SWITCH, id="switches to a newer version"),
        pytest.param("0-a", {"0-a", "1-b"}, engine("1-b"), NextAction.SWITCH, id="switches to an older version"),
        pytest.param("1-c", {"1-c"}, engine("1-b"), NextAction.SWITCH, id="switches to other weights of the same number"),
        pytest.param("1-b", {"1-b"}, engine("default"), NextAction.SWITCH, id="switches a vLLM that was restarted"),
        pytest.param("1-b", {"1-b"}, engine(LOADING, paused=True), NextAction.SWITCH, id="repeats a switch that was cut short"),
        pytest.param("1-b", {"0-a", "1-b"}, engine("0-a", paused=True), NextAction.SWITCH, id="switches a vLLM left paused"),
        pytest.param("1-b", {"1-b"}, engine("1-b", paused=True), NextAction.RESUME, id="resumes a vLLM left paused"),
        pytest.param("1-b", {"1-b"}, engine("1-b"), NextAction.NOTHING, id="serves"),
        pytest.param("1-b", set(), engine("1-b"), NextAction.STAGE, id="checks the files of what an agent before it loaded"),
    ],
)
def test_next_action(wanted: str | None, staged: set[str], status: EngineStatus | None, want: NextAction) -> None:
    assert next_action(wanted, staged, status) is want


def test_backoff_doubles_up_to_half_a_minute() -> None:
    assert [backoff_seconds(count) for count in (1, 2, 3, 7, 8, 1000)] == [0.5, 1, 2, 30, 30, 30]
