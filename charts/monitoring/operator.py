"""The dashboard of the operator itself: does it keep up, and does the API server respond?"""

from monitoring.panels import AnyPanel, Query, Row, curves, figure, page, quantiles, rate, share, stacked, variable

OPERATOR = 'namespace="$namespace"'
EMPTY = "Prometheus does not scrape the operator: see serviceMonitor.enabled of the chart"
RECONCILE = "spinrun_operator_reconcile_seconds"
REQUEST = "spinrun_operator_api_request_seconds"


def operator_dashboard() -> str:
    """The dashboard as JSON."""
    return page(
        "spinrun-operator",
        "SpinRun / Operator",
        "The operator in one namespace: its queue, its reconciles of runs, its requests to the API server.",
        [variable("namespace", "Operator's namespace", "label_values(spinrun_operator_queue_depth, namespace)")],
        [
            Row("Now", 4, _now()),
            Row("Reconciles", 3, _reconciles()),
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
            "Runs that are due or being reconciled.",
            f"sum(spinrun_operator_queue_depth{{{OPERATOR}}})",
            empty=EMPTY,
        ),
        figure(
            "Longest wait",
            "s",
            "Of a run in the queue. Minutes mean that the operator cannot keep up.",
            f"max(spinrun_operator_queue_oldest_seconds{{{OPERATOR}}})",
            empty=EMPTY,
        ),
        figure(
            "Runs",
            "none",
            "SpinRuns in all phases.",
            f"sum(spinrun_operator_runs{{{OPERATOR}}})",
            empty="none",
        ),
        figure(
            "Failed reconciles",
            "percentunit",
            "Share of reconciles in the last hour that ended with an error.",
            f'(sum(increase({RECONCILE}_count{{{OPERATOR}, result="error"}}[1h])) or vector(0))'
            f" / (sum(increase({RECONCILE}_count{{{OPERATOR}}}[1h])) > 0)",
            empty="no reconcile in the last hour",
        ),
    ]


def _reconciles() -> list[AnyPanel]:
    return [
        stacked(
            "Reconciles by result",
            "suffix: reconciles/s",
            "conflict: the run changed meanwhile, and is reconciled again. error: retried after a delay.",
            Query(_rate(f"{RECONCILE}_count", "result"), "{{result}}"),
            empty=EMPTY,
        ),
        curves("Duration of a reconcile", "s", "Of one run.", *quantiles(RECONCILE, OPERATOR), empty=EMPTY),
        curves(
            "Queue",
            "none",
            "Runs that are due or being reconciled.",
            Query(f"sum(spinrun_operator_queue_depth{{{OPERATOR}}})", "runs"),
            empty=EMPTY,
        ),
        curves(
            "Longest wait in the queue",
            "s",
            "A wait longer than settings.stuckSeconds restarts the operator.",
            Query(f"max(spinrun_operator_queue_oldest_seconds{{{OPERATOR}}})", "longest"),
            empty=EMPTY,
        ),
        stacked(
            "Runs by phase",
            "none",
            "SpinRuns by current phase.",
            Query(f"sum by (phase) (spinrun_operator_runs{{{OPERATOR}}})", "{{phase}}"),
            empty="no run",
        ),
        stacked(
            "Attempts that ended",
            "none",
            "Attempts that ended within the last hour, by reason.",
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
            "To the API server, by verb. Watches are not included.",
            Query(_rate(f"{REQUEST}_count", "verb"), "{{verb}}"),
            empty=EMPTY,
        ),
        curves(
            "Duration of a request", "s", "Until the API server responded.", *quantiles(REQUEST, OPERATOR, "verb"), empty=EMPTY
        ),
        curves(
            "Failed requests",
            "reqps",
            "By HTTP status. error: there was no response. 409 is a conflict, which is retried.",
            Query(_rate(f"{REQUEST}_count", "verb, result", bad), "{{verb}} {{result}}"),
            empty="no request failed",
        ),
        stacked(
            "Writes",
            "wps",
            "By resource. A run in which nothing happens causes none.",
            Query(_rate("spinrun_operator_api_writes_total", "verb, resource"), "{{verb}} {{resource}}"),
            empty="nothing was written",
        ),
        share(
            "Share of failed requests",
            "Without a response, or with a status of 500 or above: the API server is in trouble.",
            Query(
                f'(sum(rate({REQUEST}_count{{{OPERATOR}, result=~"5..|error"}}[$__rate_interval])) or vector(0))'
                f" / sum(rate({REQUEST}_count{{{OPERATOR}}}[$__rate_interval]))",
                "failed",
            ),
            empty=EMPTY,
        ),
    ]
