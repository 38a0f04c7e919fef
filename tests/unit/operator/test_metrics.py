"""What the operator's own metrics say of runs."""

from prometheus_client.parser import text_string_to_metric_families

from spinrun_operator import reasons
from spinrun_operator.metrics import Metrics


def shown(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """Values of a metric by its labels, in the order of their names."""
    page = metrics.text().decode()
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples if sample.name == name]
    return {tuple(value for _, value in sorted(sample.labels.items())): sample.value for sample in samples}


def test_phases_are_those_of_the_moment() -> None:
    metrics = Metrics()
    runs = [("team", "a", "Running"), ("team", "b", "Failed"), ("other", "a", "Running")]
    metrics.follow_runs(lambda: runs)
    assert shown(metrics, "spinrun_operator_runs") == {("Running",): 2, ("Failed",): 1}
    assert shown(metrics, "spinrun_operator_run_phase") == {
        ("Running", "a", "team"): 1,
        ("Failed", "b", "team"): 1,
        ("Running", "a", "other"): 1,
    }
    runs[:] = [("team", "a", "Complete")]
    assert shown(metrics, "spinrun_operator_runs") == {("Complete",): 1}
    assert shown(metrics, "spinrun_operator_run_phase") == {("Complete", "a", "team"): 1}


def test_ends_of_attempts_are_counted_from_zero_and_other_news_is_not() -> None:
    metrics = Metrics()
    assert shown(metrics, "spinrun_operator_attempts_ended_total") == {(reason,): 0 for reason in reasons.ATTEMPT_ENDS}
    for reason in (reasons.TRAINER_STARTED, reasons.TRAINER_FAILED, reasons.TRAINER_FAILED, reasons.SUSPENDED):
        metrics.count_attempt_end(reason)
    counts = shown(metrics, "spinrun_operator_attempts_ended_total")
    assert {key: value for key, value in counts.items() if value} == {("TrainerFailed",): 2}
