"""What follows from exit codes and failurePolicy, on a cluster and on one machine alike."""

from typing import Any

import pytest

from spinrun_api.spec import FailureRule
from spinrun_protocol.policy import Action, Decision, decide

RULES = [
    FailureRule(exit_codes=[42], action="Fail"),
    FailureRule(exit_codes=[43, 42, 2], action="RestartUncounted"),
    FailureRule(exit_codes=[3, 4, 137], action="Restart"),
]


@pytest.mark.parametrize(
    ("code", "rules", "how", "want"),
    [
        pytest.param(0, [], {}, Decision(Action.COMPLETE), id="complete"),
        pytest.param(1, [], {}, Decision(Action.RESTART), id="failed"),
        pytest.param(2, [], {}, Decision(Action.FAIL), id="invalid-configuration"),
        pytest.param(3, [], {}, Decision(Action.RESTART_UNCOUNTED), id="preempted"),
        pytest.param(4, [], {}, Decision(Action.AWAIT_LEDGER), id="ledger-unavailable"),
        pytest.param(5, [], {}, Decision(Action.RESTART), id="code-without-meaning"),
        pytest.param(137, [], {}, Decision(Action.RESTART), id="killed"),
        pytest.param(42, RULES, {}, Decision(Action.FAIL, by_rule=True), id="first-rule-decides"),
        pytest.param(43, RULES, {}, Decision(Action.RESTART_UNCOUNTED, by_rule=True), id="rule-of-several-codes"),
        pytest.param(2, RULES, {}, Decision(Action.RESTART_UNCOUNTED, by_rule=True), id="rule-before-invalid-configuration"),
        pytest.param(3, RULES, {}, Decision(Action.RESTART, by_rule=True), id="rule-before-preempted"),
        pytest.param(4, RULES, {}, Decision(Action.RESTART, by_rule=True), id="rule-before-ledger-unavailable"),
        pytest.param(1, RULES, {}, Decision(Action.RESTART), id="code-without-rule"),
        pytest.param(42, RULES, {"disrupted": True}, Decision(Action.RESTART_UNCOUNTED), id="disruption-before-rules"),
        pytest.param(2, [], {"disrupted": True}, Decision(Action.RESTART_UNCOUNTED), id="disruption-before-exit-code"),
        pytest.param(0, RULES, {"disrupted": True}, Decision(Action.COMPLETE), id="complete-before-disruption"),
        pytest.param(137, [], {"out_of_memory": True}, Decision(Action.RESTART), id="oom-killed"),
        pytest.param(137, RULES, {"out_of_memory": True}, Decision(Action.RESTART, by_rule=True), id="oom-killed-with-rule"),
        pytest.param(3, [], {"out_of_memory": True}, Decision(Action.RESTART), id="preempted-once-a-rank-was-oom-killed"),
        pytest.param(2, [], {"out_of_memory": True}, Decision(Action.RESTART), id="oom-killed-before-invalid-configuration"),
        pytest.param(137, [], {"disrupted": True, "out_of_memory": True}, Decision(Action.RESTART_UNCOUNTED), id="both"),
    ],
)
def test_what_follows_the_end_of_an_attempt(code: int, rules: list[FailureRule], how: dict[str, Any], want: Decision) -> None:
    assert decide(code, rules, **how) == want
