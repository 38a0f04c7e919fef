"""The dashboard of all runs: which are on their way, and which need somebody?"""

from monitoring import run
from monitoring.panels import AnyPanel, Query, Row, curves, figure, overview, page, rate, share, stacked, trainer, variable

RUNS = 'namespace=~"$namespace"'
PHASES = "spinrun_operator_runs"
NO_RUN = "no run does steps"
NO_OPERATOR = "Prometheus does not collect from the operator: see serviceMonitor.enabled of the chart"
LINK = f"/d/{run.UID}?var-namespace=${{__data.fields.namespace}}&var-run=${{__data.fields.run}}"


def fleet_dashboard() -> str:
    """The dashboard as JSON."""
    return page(
        "spinrun-fleet",
        "SpinRun / Fleet",
        "All runs of the chosen namespaces. What comes from the operator is of all namespaces that it serves.",
        [variable("namespace", "Namespace", "label_values(spinrun_trainer_step_number, namespace)", several=True)],
        [
            Row("Now", 6, _now()),
            Row("Runs", 1, [_runs()]),
            Row("Over time", 3, _over_time()),
        ],
    )


def _of_phases(pattern: str) -> str:
    return f'sum({PHASES}{{phase=~"{pattern}"}}) or sum(spinrun_operator_queue_depth) * 0'


def _now() -> list[AnyPanel]:
    return [
        figure("Running", "none", "Runs whose rollouts are all ready.", _of_phases("Running"), empty=NO_OPERATOR),
        figure(
            "On the way", "none", "Pending, starting or restarting.", _of_phases("Pending|Starting|Restarting"), empty=NO_OPERATOR
        ),
        figure("Suspended", "none", "Runs that wait to be resumed.", _of_phases("Suspended"), empty=NO_OPERATOR),
        figure("Complete", "none", "Runs that are over, with success.", _of_phases("Complete"), empty=NO_OPERATOR),
        figure("Failed", "none", "Runs that are over, without.", _of_phases("Failed"), empty=NO_OPERATOR),
        figure(
            "Longest wait in the operator's queue",
            "s",
            "Minutes mean that the operator does not keep up.",
            "max(spinrun_operator_queue_oldest_seconds)",
            empty=NO_OPERATOR,
        ),
    ]


def _runs() -> AnyPanel:
    def newest(metric: str) -> str:
        return trainer(metric, RUNS)

    phase = 'spinrun_operator_run_phase{run_namespace=~"$namespace"}'
    phases = f'max by (namespace, run, phase) (label_join({phase}, "namespace", "", "run_namespace"))'
    return overview(
        "Runs",
        "Runs with their phase and, while a trainer does steps, their newest figures. A click on a name opens the run.",
        {
            "Window": (newest("window"), "none"),
            "Step": (newest("step_number"), "none"),
            "Steps in the last hour": (f"max by (namespace, run) (changes(spinrun_trainer_step_number{{{RUNS}}}[1h]))", "none"),
            "Accuracy": (newest("evaluation_accuracy"), "none"),
            "Reward": (newest("window_reward_mean"), "none"),
            "Length": (newest("window_response_length_mean"), "none"),
            "Ties": (newest("window_ties"), "none"),
        },
        labels=phases,
        link=LINK,
        empty="no run",
    )


def _over_time() -> list[AnyPanel]:
    name = "{{namespace}}/{{run}}"
    return [
        stacked(
            "Runs by phase",
            "none",
            "SpinRuns by their phase of now.",
            Query(f"sum by (phase) ({PHASES})", "{{phase}}"),
            empty=NO_OPERATOR,
        ),
        curves(
            "Accuracy",
            "none",
            "Mean reward of the held-out answers.",
            Query(trainer("evaluation_accuracy", RUNS), name),
            empty="no run was evaluated",
        ),
        curves(
            "Reward", "none", "Mean reward of a window's samples.", Query(trainer("window_reward_mean", RUNS), name), empty=NO_RUN
        ),
        curves(
            "Steps per hour",
            "none",
            "Optimizer steps in the hour before. Zero while a window is generated is no trouble.",
            Query(f"max by (namespace, run) (changes(spinrun_trainer_step_number{{{RUNS}}}[1h]))", name),
            empty=NO_RUN,
        ),
        share(
            "Share of ties",
            "Ties among ties and pairs of a window. Near 100 % nothing is learnt.",
            Query(
                f"{trainer('window_ties', RUNS)} / ({trainer('window_ties', RUNS)} + {trainer('window_pairs', RUNS)})",
                name,
            ),
            empty=NO_RUN,
        ),
        curves(
            "Tokens sampled",
            "suffix: tokens/s",
            "By the rollouts of each run.",
            Query(
                rate("spinrun_rollout_tokens_total", RUNS, "namespace, spinrun_dev_run"),
                "{{namespace}}/{{spinrun_dev_run}}",
            ),
            empty="no rollout runs, or Prometheus does not collect from it",
        ),
    ]
