"""The dashboard of all runs: which are in progress, and which need attention?"""

from monitoring import run
from monitoring.panels import AnyPanel, Query, Row, curves, figure, overview, page, rate, share, stacked, trainer, variable

RUNS = 'namespace=~"$namespace"'
PHASES = "spinrun_operator_runs"
NO_RUN = "no run is training"
NO_OPERATOR = "Prometheus does not scrape the operator: see serviceMonitor.enabled of the chart"
LINK = f"/d/{run.UID}?var-namespace=${{__data.fields.namespace}}&var-run=${{__data.fields.run}}"


def fleet_dashboard() -> str:
    """The dashboard as JSON."""
    return page(
        "spinrun-fleet",
        "SpinRun / Fleet",
        "All runs in the selected namespaces. Figures from the operator cover all namespaces that it serves.",
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
            "Starting",
            "none",
            "Runs that are pending, starting or restarting.",
            _of_phases("Pending|Starting|Restarting"),
            empty=NO_OPERATOR,
        ),
        figure("Suspended", "none", "Runs that are waiting to be resumed.", _of_phases("Suspended"), empty=NO_OPERATOR),
        figure("Complete", "none", "Runs that ended successfully.", _of_phases("Complete"), empty=NO_OPERATOR),
        figure("Failed", "none", "Runs that failed.", _of_phases("Failed"), empty=NO_OPERATOR),
        figure(
            "Longest wait in the operator's queue",
            "s",
            "Minutes mean that the operator cannot keep up.",
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
        "Runs with their phase and, while a trainer is running, their latest figures. Click a name to open the run.",
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
            "SpinRuns by current phase.",
            Query(f"sum by (phase) ({PHASES})", "{{phase}}"),
            empty=NO_OPERATOR,
        ),
        curves(
            "Accuracy",
            "none",
            "Mean reward of the held-out answers.",
            Query(trainer("evaluation_accuracy", RUNS), name),
            empty="no run has been evaluated",
        ),
        curves(
            "Reward", "none", "Mean reward of a window's samples.", Query(trainer("window_reward_mean", RUNS), name), empty=NO_RUN
        ),
        curves(
            "Steps per hour",
            "none",
            "Optimizer steps in the last hour. Zero is normal while a window is being generated.",
            Query(f"max by (namespace, run) (changes(spinrun_trainer_step_number{{{RUNS}}}[1h]))", name),
            empty=NO_RUN,
        ),
        share(
            "Share of ties",
            "Ties among the ties and pairs of a window. Near 100 % nothing is learned.",
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
            empty="no rollout is running, or Prometheus does not scrape it",
        ),
    ]
