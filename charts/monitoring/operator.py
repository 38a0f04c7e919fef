"""The dashboard of the operator itself: does it keep up, and does the API server answer?"""

from monitoring.panels import AnyPanel, Query, Row, curves, figure, page, quantiles, rate, share, stacked, variable

OPERATOR = 'namespace="$namespace"'
EMPTY = "Prometheus does not collect from the operator: see serviceMonitor.enabled of the chart"
RECONCILE = "spinrun_operator_reconcile_seconds"
REQUEST = "spinrun_operator_api_request_seconds"


def operator_dashboard() -> str:
    """The dashboard as JSON."""
    return page(
        "spinrun-operator",
        "SpinRun / Operator",
        "The operator of one namespace: its queue, its looks at runs, its requests to the API server.",
        [variable("namespace", "Operator's namespace", "label_values(spinrun_operator_queue_depth, namespace)")],
        [
            Row("Now", 4, _now()),
            Row("Looks at runs", 3, _reconciles()),
            Row("API server", 3, _requests()),
        ],
    )


def _rate(metric: str, by: str, more: str = "") -> str:
    return rate(metric, OPERATOR + more, by)


def _now() -> list[AnyPanel]:
    return [
        figure(
            "Queue",
            "none",
            "Runs that are due or being looked at.",
            f"sum(spinrun_operator_queue_depth{{{OPERATOR}}})",
            empty=EMPTY,
        ),
        figure(
            "Longest wait",
            "s",
            "Of a run in the queue; minutes mean that the operator does not keep up.",
            f"max(spinrun_operator_queue_oldest_seconds{{{OPERATOR}}})",
            empty=EMPTY,
        ),
        figure(
            "Runs",
            "none",
            "SpinRuns of all phases.",
            f"sum(spinrun_operator_runs{{{OPERATOR}}})",
            empty="none",
        ),
        figure(
            "Failed looks",
            "percentunit",
            "Share of looks at runs that ended with an error in the last hour.",
            f'(sum(increase({RECONCILE}_count{{{OPERATOR}, result="error"}}[1h])) or vector(0))'
            f" / (sum(increase({RECONCILE}_count{{{OPERATOR}}}[1h])) > 0)",
            empty="no look in this hour",
        ),
    ]


def _reconciles() -> list[AnyPanel]:
    return [
        stacked(
            "Looks by result",
            "reqps",
            "conflict: the run changed meanwhile, and is looked at again. error: tried again after a wait.",
            Query(_rate(f"{RECONCILE}_count", "result"), "{{result}}"),
            empty=EMPTY,
        ),
        curves("Duration of a look", "s", "At one run.", *quantiles(RECONCILE, OPERATOR), empty=EMPTY),
        curves(
            "Queue",
            "none",
            "Runs that are due or being looked at.",
            Query(f"sum(spinrun_operator_queue_depth{{{OPERATOR}}})", "runs"),
            empty=EMPTY,
        ),
        curves(
            "Longest wait in the queue",
            "s",
            "A wait beyond settings.stuckSeconds restarts the operator.",
            Query(f"max(spinrun_operator_queue_oldest_seconds{{{OPERATOR}}})", "longest"),
            empty=EMPTY,
        ),
        stacked(
            "Runs by phase",
            "none",
            "SpinRuns by their phase of now.",
            Query(f"sum by (phase) (spinrun_operator_runs{{{OPERATOR}}})", "{{phase}}"),
            empty="no run",
        ),
        stacked(
            "Attempts that ended",
            "none",
            "Lives of trainers that ended within an hour, by reason.",
            Query(f"sum by (reason) (increase(spinrun_operator_attempts_ended_total{{{OPERATOR}}}[1h])) > 0", "{{reason}}"),
            empty="no attempt ended",
        ),
    ]


def _requests() -> list[AnyPanel]:
    bad = ', result!~"2.."'
    return [
        stacked(
            "Requests",
            "reqps",
            "To the API server by verb, watches not included.",
            Query(_rate(f"{REQUEST}_count", "verb"), "{{verb}}"),
            empty=EMPTY,
        ),
        curves(
            "Duration of a request", "s", "Until the API server has answered.", *quantiles(REQUEST, OPERATOR, "verb"), empty=EMPTY
        ),
        curves(
            "Requests that failed",
            "reqps",
            "By HTTP status; error: no answer came. 409 is a conflict, which is tried again.",
            Query(_rate(f"{REQUEST}_count", "verb, result", bad), "{{verb}} {{result}}"),
            empty="no request failed",
        ),
        stacked(
            "Writes",
            "wps",
            "By resource. A run in which nothing happens costs none.",
            Query(_rate("spinrun_operator_api_writes_total", "verb, resource"), "{{verb}} {{resource}}"),
            empty="nothing was written",
        ),
        share(
            "Share of requests that failed",
            "Without an answer, or with a status of 500 and above: the API server is in trouble.",
            Query(
                f'(sum(rate({REQUEST}_count{{{OPERATOR}, result=~"5..|error"}}[$__rate_interval])) or vector(0))'
                f" / sum(rate({REQUEST}_count{{{OPERATOR}}}[$__rate_interval]))",
                "failed",
            ),
            empty=EMPTY,
        ),
    ]
