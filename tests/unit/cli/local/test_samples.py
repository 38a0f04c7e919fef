"""`spinrun samples`: what a window's files hold, and what is said when they do not."""

import json
import math
from pathlib import Path

import pytest

from spinrun_cli.show.samples import PromptWithSamples, ShownSample, ShownWindow, document
from spinrun_protocol.wire import Sample
from spinrun_worker.ledger import LedgerWriter, write_pairs, write_samples
from spinrun_worker.records import Pair, PromptRecord, ScoredGroup
from unit.cli.shell import Shell

WRONG = Sample(tokens=(8,), text="\x1b[31m9\nor 10", finish_reason="length")
RIGHT = Sample(tokens=(7,), text="8", finish_reason="stop")


def group(identity: str) -> ScoredGroup:
    """A prompt with three answers, two of them the same."""
    prompt = PromptRecord(identity, (1, 2), "What is 1 + 7?", "8")
    return ScoredGroup(prompt, (WRONG, RIGHT, RIGHT), (0.0, 1.0, 1.0))


def pair(identity: str, chosen: tuple[int, ...] = RIGHT.tokens) -> Pair:
    """The pair of a prompt."""
    return Pair(identity, (1, 2), chosen, WRONG.tokens, 1.0, 0.0, -0.5, -1.5)


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A ledger with windows 3 and 4."""
    writer = LedgerWriter(tmp_path / "ledger", "the-uid", 1)
    writer.claim()
    for window in (3, 4):
        directory = writer.begin("window", window)
        entries = [
            write_samples(directory / "samples.parquet", [group(f"p1#{window}"), group(f"p2#{window}")]),
            write_pairs(directory / "pairs.parquet", [pair(f"p1#{window}"), pair(f"p2#{window}", (1, 2, 3))]),
        ]
        writer.commit("window", window, entries, step=window, version=window, parent="digest")
    return tmp_path / "ledger"


def test_answers_are_shown_best_first_and_equal_ones_once_with_their_number(spinrun: Shell, ledger: Path) -> None:
    code, out, _ = spinrun("samples", str(ledger), "--window", "3", "--limit", "1")
    assert code == 0
    assert out.splitlines() == [
        "window 3, sampled from version 3: 1 of 2 prompts",
        "",
        "p1#3  What is 1 + 7?  (answer: 8)",
        "        1    2×  stop    8",
        "        0        length  �[31m9",
        "                         or 10",
    ]


def test_conversations_are_shown_message_by_message(spinrun: Shell, tmp_path: Path) -> None:
    writer = LedgerWriter(tmp_path / "ledger", "the-uid", 1)
    writer.claim()
    directory = writer.begin("window", 0)
    messages = (
        {"role": "system", "content": "Answer\nin \x1b[31mGerman."},
        {"role": "user", "content": "Look: 5\nassistant: 6"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "look"}]},
        {"role": "to\nol", "content": "7"},
    )
    prompt = PromptRecord("p1", (1,), "Look: 5\nassistant: 6", "8", conversation=messages)
    entries = [
        write_samples(directory / "samples.parquet", [ScoredGroup(prompt, (WRONG, RIGHT), (0.0, 1.0))]),
        write_pairs(directory / "pairs.parquet", [pair("p1"), pair("p9")]),
    ]
    writer.commit("window", 0, entries, step=0, version=0, parent="digest")

    heading = [
        "p1  system: Answer",
        "            in �[31mGerman.",
        "    user: Look: 5",
        "          assistant: 6",
        '    assistant: {"name": "look"}',
        "    to�ol: 7  (answer: 8)",
    ]
    for arguments in ([], ["--pairs"]):
        assert spinrun("samples", str(tmp_path / "ledger"), *arguments)[1].splitlines()[2:8] == heading
        document = json.loads(spinrun("samples", str(tmp_path / "ledger"), *arguments, "-o", "json")[1])
        shown = document["pairs" if arguments else "prompts"]
        assert shown[0]["messages"] == list(messages)
        assert shown[0]["prompt"] == prompt.text


def test_reward_that_is_not_finite_is_a_text_in_documents() -> None:
    sample = ShownSample(text="x", reward=math.nan, finish_reason="stop", num_tokens=1)
    prompt = PromptWithSamples(id="p", prompt="?", samples=[sample])
    found = document(ShownWindow(window=0, version=0, num_prompts=1, prompts=[prompt]))
    assert json.loads(json.dumps(found, allow_nan=False))["prompts"][0]["samples"][0]["reward"] == "NaN"


def test_newest_window_is_meant_where_none_is_named(spinrun: Shell, ledger: Path) -> None:
    document = json.loads(spinrun("samples", str(ledger), "-o", "json")[1])
    assert (document["window"], [each["id"] for each in document["prompts"]]) == (4, ["p1#4", "p2#4"])
    assert document["prompts"][0]["samples"][0] == {"text": WRONG.text, "reward": 0.0, "finishReason": "length", "numTokens": 1}


def test_pairs_are_shown_with_the_texts_of_their_samples(spinrun: Shell, ledger: Path) -> None:
    out = spinrun("samples", str(ledger), "--pairs")[1].splitlines()
    assert out[0] == "window 4, sampled from version 4: 2 of 2 pairs"
    assert out[3:6] == ["  chosen          1  8", "  rejected        0  �[31m9", "                     or 10"]
    assert out[8] == "  chosen          1  (the true answer, 3 tokens) 8"


def test_prompt_is_found_by_its_id_without_the_epoch(spinrun: Shell, ledger: Path) -> None:
    document = json.loads(spinrun("samples", str(ledger), "--prompt", "p2", "--pairs", "-o", "json")[1])
    assert [each["id"] for each in document["pairs"]] == ["p2#4"]
    assert document["pairs"][0]["rejected"] == {"text": WRONG.text, "reward": 0.0, "numTokens": 1, "referenceLogprob": -1.5}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--window", "9"], "there is no window 9: "),
        (["--prompt", "p7"], "window 4 has no prompt p7: its prompts are p1#4, p2#4"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(spinrun: Shell, ledger: Path, arguments: list[str], words: str) -> None:
    code, out, error = spinrun("samples", str(ledger), *arguments)
    assert (code, out) == (2, "")
    assert words in error


def test_window_that_is_being_written_is_not_read(spinrun: Shell, ledger: Path) -> None:
    (ledger / "windows" / "000004" / "MANIFEST.json").unlink()
    code, out, error = spinrun("samples", str(ledger))
    assert (code, out) == (1, "")
    assert "may be being written" in error


def test_ledger_without_windows_says_when_the_first_comes(spinrun: Shell, tmp_path: Path) -> None:
    LedgerWriter(tmp_path / "new", "the-uid", 1).claim()
    code, _, error = spinrun("samples", str(tmp_path / "new"))
    assert code == 2
    assert "holds no window yet" in error


# --- which run is meant --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("runs/gone", "there is no folder runs/gone"),
        (".", "holds neither a local run nor a ledger"),
    ],
)
def test_path_without_a_run_is_refused(
    spinrun: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, error = spinrun("samples", target)
    assert (code, words in error) == (2, True)


def test_folder_here_comes_before_a_run_of_its_name_unless_a_namespace_is_named(
    spinrun: Shell, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ledger.parent)
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    assert spinrun("samples", "ledger")[0] == 0
    code, _, error = spinrun("samples", "ledger", "-n", "team")
    assert code == 1
    assert "no cluster is configured" in error


def test_namespace_is_refused_for_a_path(spinrun: Shell, ledger: Path) -> None:
    code, _, error = spinrun("samples", str(ledger), "-n", "team")
    assert code == 2
    assert "is not the name of a run" in error


@pytest.mark.parametrize("character", ["\x9b", "\x85", "\x80", "\x9f", "\x7f", "\u202e"])
def test_documents_escape_what_commands_a_terminal(spinrun: Shell, tmp_path: Path, character: str) -> None:
    writer = LedgerWriter(tmp_path / "ledger", "the-uid", 1)
    writer.claim()
    directory = writer.begin("window", 0)
    said = Sample(tokens=(8,), text=f"é{character}31m", finish_reason="stop")
    groups = [ScoredGroup(PromptRecord("p1", (1,), f"ask {character}", character), (said,), (0.0,))]
    entries = [write_samples(directory / "samples.parquet", groups), write_pairs(directory / "pairs.parquet", [])]
    writer.commit("window", 0, entries, step=0, version=0, parent="digest")

    code, out, _ = spinrun("samples", str(tmp_path / "ledger"), "-o", "json")

    assert (code, character in out) == (0, False)
    assert json.loads(out)["prompts"][0]["samples"][0]["text"] == f"é{character}31m"
    assert character not in spinrun("samples", str(tmp_path / "ledger"))[1]
