"""What `make bench-learning` does beside training."""

from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import pytest
import yaml

from bench import bench_learning, learning
from bench.bench_learning import GROUPS, ROWS, TASKS, Part, document, missing, parts
from bench.learning import Outcome, Results
from spinrun_api.run import SpinRun
from spinrun_api.spec import Method
from spinrun_api.yaml_text import load_documents
from spinrun_protocol.ledger import MetricsLine

RISING = Outcome(steps=[0, 4, 8], accuracy=[0.4, 0.6, 0.8], tokens=[0, 4000, 8000], seconds=[20.0, 60.0, 100.0])
FLAT = Outcome(steps=[0, 4, 8], accuracy=[0.4, 0.45, 0.5], tokens=[0, 4000, 8000], seconds=[20.0, 60.0, 100.0])

LOSSES = get_args(Method.model_fields["loss"].annotation)


def line(event: str, window: int, step: int, time: float, values: Mapping[str, float]) -> MetricsLine:
    return MetricsLine.model_validate(
        {"event": event, "attempt": 0, "time": time, "window": window, "step": step, "version": window, "values": values}
    )


def test_an_outcome_counts_tokens_and_seconds_up_to_each_evaluated_version():
    lines = [
        line("evaluation", 0, 0, 130.0, {"accuracy": 0.4}),
        line("window", 0, 4, 160.0, {"samples": 512.0, "response_length/mean": 8.5}),
        line("window", 1, 8, 190.0, {"samples": 512.0, "response_length/mean": 8.0}),
        line("evaluation", 2, 8, 200.0, {"accuracy": 0.8}),
    ]
    want = Outcome(steps=[0, 8], accuracy=[0.4, 0.8], tokens=[0, 4352 + 4096], seconds=[30.0, 90.0])
    assert learning.outcome(lines, started=100.0) == want


def test_a_run_without_an_evaluation_has_no_outcome():
    assert learning.outcome([line("window", 0, 4, 160.0, {"samples": 4.0})], started=100.0) is None


@pytest.mark.parametrize(("budget", "want"), [(0, 0.4), (2000, 0.5), (4000, 0.6), (9000, 0.8)])
def test_a_budget_buys_what_lies_on_the_line_between_versions(budget: float, want: float):
    assert RISING.within(budget, RISING.tokens) == pytest.approx(want)


def test_results_are_stored_and_loaded(tmp_path: Path):
    results: Results = {"letters": {"spin": {1: FLAT, 0: RISING}}, "addition": {"grpo": {2: RISING}}}
    learning.store(tmp_path / "results.json", results)
    assert learning.load(tmp_path / "results.json") == results
    assert '"accuracy": [0.4, 0.6, 0.8]' in (tmp_path / "results.json").read_text()
    assert learning.load(tmp_path / "none.json") == {}


def test_what_is_committed_can_be_loaded():
    learning.load(bench_learning.RAW)


def test_the_table_has_means_over_seeds_and_says_who_gained_less():
    results: Results = {"addition": {"onlineDPO": {0: RISING, 1: RISING}, "spin": {0: FLAT, 1: RISING}}}
    table = learning.markdown(results, list(ROWS), tokens=(4000,), seconds=(100,)).splitlines()
    assert table[0] == (
        "| task | run | seeds | version 0 | last | last by seed | gain | 4k tokens | 100 s | tokens | seconds |  |"
    )
    assert table[2] == (
        "| addition | onlineDPO | 2 | 0.400 | 0.800 | 0.800, 0.800 | +0.400 | 0.600 | 0.800 | 8.0k | 100 | learned |"
    )
    assert table[3] == (
        "| addition | spin | 2 | 0.400 | 0.650 | 0.500, 0.800 | +0.250 | 0.525 | 0.650 | 8.0k | 100 | gained less |"
    )
    assert len(table) == 4


def test_the_picture_is_drawn_of_what_there_is(tmp_path: Path):
    learning.draw({"addition": {"onlineDPO": {0: RISING}}, "letters": {"grpo": {0: FLAT, 1: RISING}}}, GROUPS, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_measured_is_not_run_again():
    wanted = list(parts(["spin", "grpo"], ["addition"], [0, 1]))
    assert wanted[0] == Part("spin", "addition", 0)
    left = missing(iter(wanted), {"addition": {"spin": {0: FLAT}}})
    assert left == [Part("grpo", "addition", 0), Part("spin", "addition", 1), Part("grpo", "addition", 1)]


def test_every_row_is_in_the_picture_with_a_colour_of_its_own():
    assert {row for rows in GROUPS.values() for row in rows} == set(ROWS)
    assert all(len(rows) <= 8 for rows in GROUPS.values())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("row", [name for name, row in ROWS.items() if row.method["loss"] in LOSSES])
def test_every_run_is_valid_and_has_the_same_number_of_steps(row: str, task: str, tmp_path: Path):
    whole = document(Part(row, task, 2), Path("/models/small"), tmp_path)
    spec = SpinRun.model_validate(next(load_documents(yaml.safe_dump(whole)))).spec
    assert spec.duration.windows is not None
    assert spec.duration.windows * spec.method.ref_update_freq == bench_learning.STEPS
    assert (spec.trainer.pairs_per_step, spec.trainer.prompts_per_step) in [(16, None), (None, 16)]
    assert spec.data.prompts.shuffle_seed == 2
