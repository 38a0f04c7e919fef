"""The alerts, as a file of rules that Prometheus can also read directly.

A run's labels are `namespace` and `run`; metrics of rollouts get the run's name from their PodMonitor, as `spinrun_dev_run`.
"""

from dataclasses import dataclass
from textwrap import dedent
from typing import Any, Literal

import yaml

from monitoring.panels import trainer

RUNBOOKS = "https://github.com/spinrun/spinrun/blob/main/docs/runbooks"
BEST_REWARD = "max by (namespace, run) (max_over_time(spinrun_trainer_window_reward_mean[1d]))"
RUN = "{{ $labels.namespace }}/{{ $labels.run }}"

Json = dict[str, Any]


@dataclass(frozen=True)
class Alert:
    """One alert."""

    name: str
    expr: str
    lasts: str
    """How long expr must hold before the alert fires."""
    severity: Literal["info", "warning", "critical"]
    summary: str
    """One line that says what is wrong and where; the page in docs/runbooks says the rest."""

    def rule(self) -> Json:
        """As Prometheus reads it."""
        annotations = {"summary": self.summary, "runbook_url": f"{RUNBOOKS}/{self.name}.md"}
        labels = {"severity": self.severity}
        return {"alert": self.name, "expr": _tidy(self.expr), "for": self.lasts, "labels": labels, "annotations": annotations}


def rollouts(expr: str) -> str:
    """A query about rollouts, with the run's name in the label that trainers use."""
    return f'label_replace({expr}, "run", "$1", "spinrun_dev_run", "(.+)")'


def _newest(metric: str) -> str:
    return trainer(metric, "")


LEARNING = [
    Alert(
        "SpinRunNoProgress",
        # Neither steps nor tokens: there are no steps while the trainer waits for samples, and no tokens while it trains.
        f"""
        sum by (namespace, run) (changes(spinrun_trainer_step_number[10m])) == 0
        unless on (namespace, run)
          sum by (namespace, run) ({rollouts("increase(spinrun_rollout_tokens_total[10m])")}) > 0
        """,
        "20m",
        "critical",
        f"{RUN} has neither taken a step nor sampled a token for half an hour.",
    ),
    Alert(
        "SpinRunAllTies",
        f"{_newest('window_ties')} / ({_newest('window_ties')} + {_newest('window_pairs')}) > 0.9",
        "1m",
        "warning",
        f"{{{{ $value | humanizePercentage }}}} of the ties and pairs of {RUN} are ties: there is almost nothing to learn from.",
    ),
    Alert(
        "SpinRunRewardCollapse",
        # Below this floor a reward has nowhere to fall from.
        f"""
        {BEST_REWARD} - {_newest("window_reward_mean")}
        > 0.5 * clamp_min(abs({BEST_REWARD}), 0.2)
        """,
        "5m",
        "warning",
        f'The mean reward of {RUN} is {{{{ $value | printf "%.2f" }}}} below its best in the last day.',
    ),
    Alert(
        "SpinRunAccuracyBelowStart",
        # The current window, minus the latest window in which the accuracy was at least the initial one.
        f"""
        {_newest("window")}
        - max_over_time((
            {_newest("window")} and {_newest("evaluation_accuracy")} >= {_newest("initial_accuracy")}
          )[2d:1m])
        >= 3
        """,
        "5m",
        "warning",
        f"The accuracy of {RUN} has been below its initial accuracy for {{{{ $value }}}} windows.",
    ),
    Alert(
        "SpinRunLengthExplosion",
        f"""
        {_newest("window_response_length_mean")}
        > 2 * min by (namespace, run) (min_over_time(spinrun_trainer_window_response_length_mean[1d]))
        """,
        "5m",
        "warning",
        f'The answers of {RUN} are {{{{ $value | printf "%.0f" }}}} tokens long, more than twice the shortest in the last day.',
    ),
]

SERVING = [
    Alert(
        "SpinRunVersionLag",
        f"""
        {_newest("version")}
        - on (namespace, run) min by (namespace, run) ({rollouts("spinrun_rollout_version")})
        > 0
        """,
        "30m",
        "warning",
        f"A rollout of {RUN} has been behind for half an hour, now by {{{{ $value }}}} versions.",
    ),
    Alert(
        "SpinRunRolloutFlapping",
        # The version drops to -1 whenever vLLM is gone.
        f"sum by (namespace, run, pod) ({rollouts('resets(spinrun_rollout_version[1h])')}) >= 3",
        "1m",
        "warning",
        f"Rollout {{{{ $labels.pod }}}} of {RUN} has lost its version {{{{ $value }}}} times within an hour.",
    ),
    Alert(
        "SpinRunLedgerAlmostFull",
        """
        kubelet_volume_stats_available_bytes{persistentvolumeclaim=~".+-ledger"}
        / kubelet_volume_stats_capacity_bytes{persistentvolumeclaim=~".+-ledger"}
        < 0.1
        """,
        "5m",
        "warning",
        "The claim {{ $labels.namespace }}/{{ $labels.persistentvolumeclaim }} has {{ $value | humanizePercentage }} free space.",
    ),
]

OPERATOR = [
    Alert(
        "SpinRunFailed",
        # The earlier number is 0 where the operator knew of no failed run.
        """
        sum by (namespace) (spinrun_operator_runs{phase="Failed"})
        > (
            sum by (namespace) (spinrun_operator_runs{phase="Failed"} offset 1h)
            or 0 * sum by (namespace) (spinrun_operator_queue_depth offset 1h)
          )
        """,
        "0m",
        "warning",
        "A run has failed within the last hour; {{ $value }} runs in total are Failed.",
    ),
    Alert(
        "SpinRunOperatorStuck",
        "max by (namespace) (spinrun_operator_queue_oldest_seconds) > 60",
        "2m",
        "critical",
        "A run has been waiting in the queue of the operator in {{ $labels.namespace }} for {{ $value | humanizeDuration }}.",
    ),
    Alert(
        "SpinRunOperatorAbsent",
        "absent(spinrun_operator_queue_depth)",
        "10m",
        "critical",
        "Prometheus has found no operator for ten minutes.",
    ),
]

# For queries over a day or more, about figures that change once per window.
INTERVAL = "1m"


def alert_rules() -> str:
    """The rules as YAML."""
    groups: list[Json] = [
        {"name": "spinrun-learning", "interval": INTERVAL, "rules": [alert.rule() for alert in LEARNING]},
        {"name": "spinrun-serving", "rules": [alert.rule() for alert in SERVING]},
        {"name": "spinrun-operator", "rules": [alert.rule() for alert in OPERATOR]},
    ]
    return "# Made by `make generate` from charts/monitoring/alerts.py.\n" + yaml.dump(
        {"groups": groups}, Dumper=_Readable, sort_keys=False, width=120
    )


def _tidy(expr: str) -> str:
    return dedent(expr).strip("\n") + ("\n" if "\n" in expr else "")


class _Readable(yaml.SafeDumper):
    """Writes queries of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _text)
