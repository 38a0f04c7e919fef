"""A judge through the real trainer: its preferences are trained on, and its key stays where it is."""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from spinrun_cli.local.run_data import load_run_data
from spinrun_cli.report import write_report
from spinrun_protocol.environment import PREFERENCE_KEY
from spinrun_worker.ledger import read_pairs, read_samples
from support.fake_endpoint import PLAIN, Asked, FakeEndpoint, Says, chat, serving
from support.trainer_process import Attempts

KEY = "sk-very-secret-0123456789"
USAGE = {"prompt_tokens": 10, "completion_tokens": 1}


def likes_a_one(asked: Asked) -> Says:
    """Prefers the answer with a 1 in it, which every first sample has and no second."""
    _, first, second = asked.text.rsplit("|", 2)
    return chat("1" if ("1" in first) >= ("1" in second) else "2", usage=USAGE)


@pytest.fixture
def attempts(attempts: Attempts) -> Attempts:
    attempts.environment.update({"NO_PROXY": "127.0.0.1", PREFERENCE_KEY: KEY})
    return attempts


@pytest.fixture
def endpoint() -> Generator[FakeEndpoint]:
    with serving(likes_a_one) as endpoint:
        yield endpoint


def preference(endpoint: FakeEndpoint, **fields: Any) -> dict[str, Any]:
    secret = {"name": "judge", "key": "api-key"}
    return {"judge": {"url": endpoint.url, "model": "wise", "template": PLAIN, "secretRef": secret} | fields}


def lines(ledger: Path, event: str) -> list[dict[str, float]]:
    parsed = [json.loads(line) for line in (ledger / "metrics.jsonl").read_text().splitlines()]
    return [line["values"] for line in parsed if line["event"] == event]


def test_what_the_judge_prefers_is_trained_on_and_its_key_is_nowhere(
    attempts: Attempts, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger"
    assert attempts.run(ledger, preference=preference(endpoint)) == 0, attempts.log(1).read_text()

    for path in sorted(ledger.glob("windows/*/pairs.parquet")):
        found = read_pairs(path)
        assert [(pair.chosen_reward, pair.rejected_reward) for pair in found] == [(1.0, 0.0)] * 8
        groups = {group.prompt.id: group for group in read_samples(path.with_name("samples.parquet"))}
        assert all("1" in groups[pair.prompt_id].samples[0].text for pair in found)
        assert all(groups[pair.prompt_id].samples[0].tokens == pair.chosen for pair in found)
    windows = lines(ledger, "window")
    assert [window["pairs"] for window in windows] == [8, 8]
    totals = [window["preference/requests_total"] for window in windows]
    assert totals == sorted(totals)
    assert windows[-1]["preference/completion_tokens_total"] == totals[-1]
    assert windows[-1]["preference/prompt_tokens_total"] == 10 * totals[-1]
    assert all(0 <= evaluation["accuracy"] <= 1 for evaluation in lines(ledger, "evaluation"))
    # What is asked of it: the check, the evaluations, and both orders of each window's prompts.
    assert len({asked.text for asked in endpoint.asked}) > 2 * 8
    assert all(asked.headers["Authorization"] == f"Bearer {KEY}" for asked in endpoint.asked)
    write_report(load_run_data(ledger), tmp_path / "report")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"run.json", "report.html", "trainer-1.log"} <= {path.name for path in written}
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []


def test_a_judge_that_refuses_the_key_ends_the_run_as_a_wrong_configuration(
    attempts: Attempts, endpoint: FakeEndpoint, tmp_path: Path
) -> None:
    endpoint.play = lambda _: Says({"error": f"Incorrect API key: {KEY}"}, 401)

    assert attempts.run(tmp_path / "ledger", preference=preference(endpoint)) == 2

    words = json.loads(attempts.termination_message(1).read_text())
    assert words["reason"] == "InvalidConfiguration"
    assert "preference.judge" in words["message"]
    assert "refuses the key" in words["message"]
    assert KEY not in attempts.termination_message(1).read_text() + attempts.log(1).read_text()


def test_a_judge_that_contradicts_itself_gives_no_pairs(attempts: Attempts, endpoint: FakeEndpoint, tmp_path: Path) -> None:
    endpoint.play = lambda _: chat("1")
    ledger = tmp_path / "ledger"

    assert attempts.run(ledger, preference=preference(endpoint)) == 0, attempts.log(1).read_text()

    assert [(window["pairs"], window["ties"]) for window in lines(ledger, "window")] == [(0, 8), (0, 8)]
    assert lines(ledger, "window")[-1]["preference/disagreements_total"] > 0
