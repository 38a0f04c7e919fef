"""docs/preferences.md says what is."""

import re
from pathlib import Path

import pytest
import yaml

from spinrun_api.spec import Judge, Preference, Scorer
from spinrun_operator import reasons
from spinrun_protocol.environment import PREFERENCE_KEY
from spinrun_worker.rewards.comparison import Comparison, WinRateReward
from spinrun_worker.rewards.endpoint import (
    CONFIGURATION_STATUS,
    MAX_REPLY_BYTES,
    MAX_USELESS,
    TRY_AGAIN_STATUS,
    EndpointClient,
    RetryPolicy,
    Server,
)
from spinrun_worker.rewards.judge import ChatDialect
from spinrun_worker.rewards.pooling import BATCH

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "preferences.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_every_block_of_the_page_is_a_preference(block: str) -> None:
    blocks = yaml.safe_load(block)
    document = blocks.pop("preference")
    preference = Preference.model_validate(document)
    assert {preference.name} == set(document)
    assert (preference.endpoint is None) == (preference.name == "rule")
    if blocks:
        assert preference.own_model is not None
        assert Scorer.model_validate(blocks.pop("scorer")) != Scorer()
    assert not blocks


def test_every_preference_has_a_row() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(field.alias or name for name, field in Preference.model_fields.items())


def test_every_count_is_named() -> None:
    judge = Judge(url="http://judge", model="wise")
    client = EndpointClient(
        judge,
        ChatDialect(judge),
        server=Server("preference.judge", (judge.url,)),
        canary=Comparison("p", "prompt", "a", "b"),
        on_trouble=lambda _: None,
        stop=lambda: False,
    )
    named = set(re.findall(r"`preference/(\w+)_total`", PAGE))
    assert named == set(WinRateReward(client, max_comparisons=2).counts)


def test_the_numbers_of_the_page_are_those_of_the_code() -> None:
    policy = RetryPolicy()
    assert (policy.longest_pause, policy.down, policy.longest_retry_after, policy.tries) == (
        30,
        30,
        600,
        5,
    )
    assert "up to half a minute, and not before the time that `Retry-After` names, up to ten minutes" in PAGE
    assert "no request has been answered for half a minute" in PAGE
    assert "in five tries" in PAGE
    assert f"{MAX_USELESS} requests without a single answer" in PAGE
    assert f"more than {MAX_REPLY_BYTES >> 20} MiB" in PAGE
    assert f"{BATCH} at a time" in PAGE
    assert {408, 425, 429, *range(500, 600)} == TRY_AGAIN_STATUS
    assert "408, 425, 429, 5xx" in PAGE
    assert list(CONFIGURATION_STATUS) == [401, 403, 404]
    assert "401, 403, 404, a redirect, a web page" in PAGE
    assert reasons.PREFERENCE_UNAVAILABLE in PAGE
    assert PREFERENCE_KEY in PAGE
