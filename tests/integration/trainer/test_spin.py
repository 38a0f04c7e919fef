"""SPIN through the real trainer: the data's answers against what a scripted model says."""

import json
from pathlib import Path
from typing import Any

import pytest

from spinrun_api.documents import InvalidDocumentError, parse_run
from spinrun_worker.ledger import read_pairs
from support.models import tiny_tokenizer, words_of
from support.trainer_process import Attempts

SPIN: dict[str, Any] = {
    "method": {"name": "spin", "refUpdateFreq": 2},
    "preference": {"groundTruth": {}},
    "rollout": {"samplesPerPrompt": 1, "maxTokens": 8},
}


def steps(ledger: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (ledger / "metrics.jsonl").read_text().splitlines()]
    return [line["values"] for line in lines if line["event"] == "step"]


def rows(path: Path, answers: list[str]) -> str:
    path.write_text("".join(json.dumps({"prompt": f"say {word}", "answer": word}) + "\n" for word in answers))
    return str(path)


def test_spin_trains_towards_the_answers_of_the_data(attempts: Attempts, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    source = rows(tmp_path / "rows.jsonl", [f"word {number}" for number in range(8)])
    data = {"prompts": {"source": source, "answerColumn": "answer"}, "maxPromptTokens": 128}

    assert attempts.run(ledger, **SPIN, data=data) == 0, attempts.log(1).read_text()

    tokenizer = tiny_tokenizer()
    windows = [read_pairs(path) for path in sorted(ledger.glob("windows/*/pairs.parquet"))]
    # Four prompts a step, two steps a window, a sample each; none of the scripted answers is a word.
    assert [len(pairs) for pairs in windows] == [8, 8]
    for pair in (pair for pairs in windows for pair in pairs):
        asked = words_of(tokenizer, pair.prompt).split("say ")[1].split("<|im_end|>")[0]
        assert words_of(tokenizer, pair.chosen) == f"{asked}<|im_end|>"
        assert pair.rejected != pair.chosen
    figures = steps(ledger)
    assert [step["loss"] for step in figures[::2]] == pytest.approx([0.693147] * 2, abs=1e-5)
    assert all(second["loss"] < 0.6931 for second in figures[1::2])


def test_a_model_that_says_what_the_data_says_has_nothing_left_to_learn(attempts: Attempts, tmp_path: Path) -> None:
    source = rows(tmp_path / "rows.jsonl", ["1"])  # what the scripted model says first
    data = {"prompts": {"source": source, "answerColumn": "answer"}, "maxPromptTokens": 128}

    assert attempts.run(tmp_path / "ledger", **SPIN, data=data, duration={"windows": 4}) != 0

    assert "the model gives the true answer to every prompt" in attempts.log(1).read_text()


def test_rows_without_an_answer_are_no_prompts_and_data_without_any_is_refused(attempts: Attempts, tmp_path: Path) -> None:
    source = rows(tmp_path / "rows.jsonl", ["", "  "])
    data = {"prompts": {"source": source, "answerColumn": "answer"}, "maxPromptTokens": 128}

    assert attempts.run(tmp_path / "ledger", **SPIN, data=data) == 2

    assert "is a usable prompt: 2 no_answer" in attempts.log(1).read_text()


def test_data_that_names_no_answers_is_refused_before_anything_starts(tmp_path: Path) -> None:
    source = rows(tmp_path / "rows.jsonl", ["a"])
    spec = {"model": {"source": "/m"}, "data": {"prompts": {"source": source}}, **SPIN}

    with pytest.raises(InvalidDocumentError, match=r"set data\.prompts\.answerColumn"):
        parse_run({"apiVersion": "spinrun.dev/v1alpha1", "kind": "SpinRun", "metadata": {"name": "a"}, "spec": spec})
