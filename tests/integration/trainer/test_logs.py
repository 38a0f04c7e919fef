"""The lines of a real trainer, as programs read them."""

import json
from pathlib import Path

from support.trainer_process import Attempts


def test_every_line_says_where_the_run_is(attempts: Attempts, tmp_path: Path) -> None:
    attempts.environment.update({"SPINRUN_LOG_FORMAT": "json"})
    assert attempts.run(tmp_path / "ledger", attempt=3) == 0
    lines = [json.loads(line) for line in attempts.log(3).read_text().splitlines()]
    *told, termination_message = lines
    assert termination_message["result"] == "Complete"
    facts = {"component": "trainer", "namespace": "local", "run": "tiny", "attempt": 3, "rank": 0}
    assert told
    assert all(facts.items() <= line.items() for line in told)
    (second,) = [line for line in told if line["message"].startswith("window 2 of 2 done")]
    assert (second["window"], second["step"], second["level"]) == (1, 4, "INFO")


def test_a_bad_run_file_is_said_in_a_line_too(attempts: Attempts, tmp_path: Path) -> None:
    attempts.environment.update({"SPINRUN_LOG_FORMAT": "json"})
    assert attempts.run(tmp_path / "ledger", duration={}) == 2
    error, words = map(json.loads, attempts.log(1).read_text().splitlines())
    assert (error["level"], error["component"], error["rank"]) == ("ERROR", "trainer", 0)
    assert "exactly one of windows, steps and epochs" in error["message"]
    assert words["reason"] == "InvalidConfiguration"


def test_lengths_beyond_the_models_positions_are_said_before_data_or_weights_are_read(attempts: Attempts, tmp_path: Path) -> None:
    assert attempts.run(tmp_path / "ledger", rollout={"maxTokens": 500}) == 2
    words = json.loads(attempts.log(1).read_text().splitlines()[-1])
    assert words["reason"] == "InvalidConfiguration"
    assert words["message"].startswith(
        "spec.data.maxPromptTokens: 128 and spec.rollout.maxTokens 500 make 628 tokens, but the model"
    )
    assert "Traceback" not in attempts.log(1).read_text()
