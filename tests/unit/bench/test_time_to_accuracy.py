"""What `make bench-time` does beside training."""

from pathlib import Path

import pytest
import yaml

from bench import time_to_accuracy as bench
from bench.harness import write_table
from bench.time_to_accuracy import CONTENDERS, Attempt, Part, attempt, best_setting, measurements, searches
from spinrun_api.run import SpinRun
from spinrun_api.yaml_text import load_documents


def an_attempt(seconds: float | None, best: float = 0.9) -> Attempt:
    return Attempt(seconds=seconds, limit=300.0, accuracy=[0.4, best], at=[30.0, seconds or 300.0])


def searched(contender: str, *attempts: Attempt) -> bench.Results:
    settings = list(CONTENDERS[contender].settings)
    return {Part("search", contender, name, 0).key: each for name, each in zip(settings, attempts, strict=False)}


def test_the_first_evaluation_at_the_target_counts():
    found = attempt([(30.0, 0.43), (61.24, 0.86), (90.0, 0.84)], limit=300.0)
    assert found == Attempt(seconds=61.2, limit=300.0, accuracy=[0.43, 0.86, 0.84], at=[30.0, 61.2, 90.0])


@pytest.mark.parametrize("evaluations", [[], [(30.0, 0.43)], [(301.0, 0.9)]])
def test_a_target_that_is_missed_or_too_late_has_no_seconds(evaluations: list[tuple[float, float]]):
    assert attempt(evaluations, limit=300.0).seconds is None


def test_the_fastest_setting_is_best_and_without_any_the_most_accurate():
    settings = list(CONTENDERS["grpo"].settings)
    assert best_setting({}, "grpo") is None
    assert best_setting(searched("grpo", an_attempt(None, 0.5), an_attempt(None, 0.7)), "grpo") == settings[1]
    results = searched("grpo", an_attempt(200.0), an_attempt(None, 0.8), an_attempt(150.0))
    assert best_setting(results, "grpo") == settings[2]


def test_contenders_are_searched_and_measured_in_turn():
    assert [part.contender for part in searches(["spinrun", "grpo"])[:4]] == ["spinrun", "grpo", "spinrun", "grpo"]
    results = searched("spinrun", an_attempt(50.0)) | searched("grpo", an_attempt(150.0))
    parts = list(measurements(["spinrun", "onlineDPO", "grpo"], [0, 1], results))
    assert [(part.contender, part.seed) for part in parts] == [("spinrun", 0), ("grpo", 0), ("spinrun", 1), ("grpo", 1)]


def test_every_setting_has_as_many_tries():
    assert {len(contender.settings) for contender in CONTENDERS.values()} == {6}


def test_results_are_stored_and_loaded(tmp_path: Path):
    results = searched("spinrun", an_attempt(50.0), an_attempt(None))
    bench.store(tmp_path / "raw.json", results)
    assert bench.load(tmp_path / "raw.json") == results
    assert bench.load(tmp_path / "none.json") == {}
    bench.load(bench.RAW)


def test_the_table_compares_medians_and_says_what_did_not_arrive():
    results = searched("spinrun", an_attempt(50.0)) | searched("grpo", an_attempt(150.0), an_attempt(None, 0.8))
    best = {name: best_setting(results, name) or "" for name in ("spinrun", "grpo")}
    results |= {Part("measure", "spinrun", best["spinrun"], seed).key: an_attempt(50.0 + seed) for seed in (0, 1, 2)}
    results |= {Part("measure", "grpo", best["grpo"], seed).key: an_attempt(170.0) for seed in (0, 1)}
    table = bench.markdown(results)
    assert "| SpinRun | demo | 50, 51, 52 | 51 |  |" in table
    assert f"| TRL GRPOTrainer | {best['grpo']} | 170, 170 | 170 | 0.30 |" in table
    assert "not in 300 (0.80)" in table


@pytest.mark.parametrize("setting", CONTENDERS["spinrun"].settings)
def test_every_setting_of_spinrun_is_a_valid_run(setting: str):
    whole = bench.document(CONTENDERS["spinrun"].settings[setting], 1, Path("/models/small"))
    assert SpinRun.model_validate(next(load_documents(yaml.safe_dump(whole)))).spec.data.prompts.shuffle_seed == 1


def test_a_page_may_have_several_tables(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- table -->\nold\n<!-- /table -->\nb\n<!-- other -->\nold\n<!-- /other -->\nc\n")
    write_table(page, "new", "other")
    assert page.read_text() == "a\n<!-- table -->\nold\n<!-- /table -->\nb\n<!-- other -->\nnew\n<!-- /other -->\nc\n"
