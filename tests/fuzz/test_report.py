"""`spinrun report`, `samples`, `compare`, `explain` and `logs` of a run folder in which anybody may have written anything.

The page parses, holds hostile text as text alone, and asks for nothing from elsewhere; a terminal gets nothing that commands it;
what cannot be shown is a sentence.
"""

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from fuzz.shell import assert_ended_well, spinrun
from fuzz.strategies import CANARY, damaged, fuzz, integers, mutated, odd_floats, plain_texts, texts, trees
from spinrun_api import yaml_text
from spinrun_protocol.termination import TerminationMessage
from spinrun_protocol.wire import Sample
from spinrun_worker.ledger import write_pairs, write_samples
from spinrun_worker.records import Pair, PromptRecord, ScoredGroup

Json = Any

RUN = Path(__file__).parents[1] / "integration" / "trainer" / "begun_before"
RUN_DOCUMENT = yaml_text.load_value((RUN / "run.yaml").read_text())
RECORD = json.loads((RUN / "ledger" / "run.json").read_text())
LINES = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
ENDED = TerminationMessage(result="Failed", reason="NoPairs", message="there is no pair", exit_code=1).to_document()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder, of which a test overwrites some files."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(RUN, folder)
    shutil.copyfile(RUN / "metrics.jsonl", folder / "ledger" / "metrics.jsonl")
    (folder / "logs").mkdir()
    return folder


class Page(HTMLParser):
    """Reads a page as a browser does, as far as that can be told without one: its elements, their attributes, its text."""

    VOID = frozenset({"meta", "br", "hr", "img", "link", "input"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"these elements are not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"


ELEMENTS = {
    *("html", "head", "meta", "title", "style", "body", "main", "header", "footer", "section", "div", "h1", "h2", "h3", "p", "b"),
    *("span", "pre", "figure", "figcaption", "table", "thead", "tbody", "tr", "th", "td", "details", "summary"),
    *("svg", "defs", "g", "path", "clippath", "rect", "use", "text", "metadata"),
    *("rdf:rdf", "cc:work", "cc:agent", "dc:type", "dc:creator", "dc:title", "dc:format"),
}
"""Those that the templates and matplotlib write."""


def assert_harmless(page: Path) -> None:
    """The page parses, and all of its elements and attributes are our own."""
    text = page.read_text(encoding="utf-8")
    for tag, attributes in Page(text).elements:
        assert tag in ELEMENTS, f"<{tag}> is not ours"
        for name, value in attributes.items():
            assert not name.startswith("on"), f"{name} is a script"
            assert CANARY not in (value or "") or name in ("title", "aria-label"), f"{name}={value!r}"
            if name.partition(":")[2] == "href" or name in ("href", "src"):
                assert (value or "").startswith("#"), f"{name}={value!r} asks for something from elsewhere"
    assert "<script" not in text


def check(folder: Path) -> None:
    """Run every command on the folder, and hold each to its promises."""
    output = folder.parent / "report"
    shutil.rmtree(output, ignore_errors=True)

    ended = spinrun("report", str(folder), "--output", str(output))
    assert_ended_well(ended)
    if ended.code == 0:
        assert_harmless(output / "report.html")
        assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
        assert sorted(path.name for path in output.iterdir()) == ["curves.png", "report.html"], "something was left behind"


def check_text(folder: Path) -> None:
    """The commands that print, as text and for programs."""
    commands = (["samples", str(folder), "--limit", "0"], ["samples", str(folder), "--pairs"], ["compare", str(folder)])
    for arguments in (*commands, ["explain", str(folder)]):
        assert_ended_well(spinrun(*arguments))
        ended = spinrun(*arguments, "--output", "json")
        assert_ended_well(ended)
        if ended.code == 0:
            json.loads(ended.out)


class Rewritten:
    """Files of the folder that have another content until the end."""

    def __init__(self, folder: Path, files: dict[str, Callable[[Path], object]]) -> None:
        self.folder = folder
        self.files = files
        self.kept = {name: (folder / name).read_bytes() for name in files if (folder / name).exists()}

    def __enter__(self) -> None:
        for name, write in self.files.items():
            write(self.folder / name)

    def __exit__(self, *_: object) -> None:
        for name in self.files:
            (self.folder / name).unlink(missing_ok=True)
        for name, content in self.kept.items():
            (self.folder / name).write_bytes(content)


def content(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def to_json(document: Json) -> bytes:
    return json.dumps(document).encode("utf-8", "surrogatepass")


values = trees() | odd_floats | integers
lines = st.lists(mutated(st.sampled_from(LINES), values), min_size=1, max_size=6).map(
    lambda rows: b"".join(to_json(row) + b"\n" for row in rows)
)
odd_values = st.sampled_from([1e308, -1e308, 1e300, float("inf"), float("-inf"), float("nan"), 0.0, 5e-324, -1.0])


@st.composite
def odd_figures(draw: st.DrawFn) -> bytes:
    """All lines of a run, whole, with some of their figures, times and numbers odd."""
    rows = json.loads(json.dumps(LINES))
    for _ in range(draw(st.integers(1, 6))):
        row = draw(st.sampled_from(rows))
        name = draw(st.sampled_from(["time", "step", "window", "version", *row["values"], draw(texts)]))
        if name in ("step", "window", "version"):
            row[name] = draw(st.sampled_from([-1, 0, 10**6, 2**31, 2**63, 10**30]))
        elif name == "time":
            row[name] = draw(odd_values)
        else:
            row["values"][name] = draw(odd_values)
    return b"".join(to_json(row) + b"\n" for row in rows)


prompts = st.builds(
    PromptRecord,
    id=st.sampled_from(["0", "1", "a#2"]) | plain_texts,
    tokens=st.just((1, 2)),
    text=texts,
    answer=st.none() | texts,
)
rewards = st.none() | odd_floats
groups = st.builds(
    lambda prompt, scored: ScoredGroup(
        prompt,
        tuple(Sample(tokens=(5,), text=text, finish_reason="stop") for text, _ in scored),
        tuple(reward for _, reward in scored),
    ),
    prompts,
    st.lists(st.tuples(plain_texts, rewards), max_size=3),
)
pairs = st.builds(
    Pair,
    prompt_id=st.sampled_from(["0", "1"]) | texts,
    prompt=st.just((1,)),
    chosen=st.sampled_from([(5,), ()]),
    rejected=st.just((6,)),
    chosen_reward=odd_floats,
    rejected_reward=odd_floats,
    reference_chosen=rewards,
)


@fuzz(8, metrics=lines | odd_figures())
def test_report_of_odd_figures(folder: Path, metrics: bytes) -> None:
    with Rewritten(folder, {"ledger/metrics.jsonl": content(metrics)}):
        check(folder)


@fuzz(40, metrics=lines | odd_figures())
def test_comparison_of_odd_figures(folder: Path, metrics: bytes) -> None:
    with Rewritten(folder, {"ledger/metrics.jsonl": content(metrics)}):
        check_text(folder)


DOCUMENTS = {"run.yaml": RUN_DOCUMENT, "ledger/run.json": RECORD, "last-words.json": ENDED}
NO_FIGURES: dict[str, Callable[[Path], object]] = {"ledger/metrics.jsonl": content(b"")}
"""Curves take most of the time, and have nothing to do with the rest."""


@fuzz(40, name=st.sampled_from(sorted(DOCUMENTS)), data=st.data())
def test_odd_documents(folder: Path, name: str, data: st.DataObject) -> None:
    written = data.draw(mutated(st.just(DOCUMENTS[name]), values).map(to_json) | damaged(st.just(to_json(DOCUMENTS[name]))))
    # What run.yaml does not say is taken from run.json.
    files = NO_FIGURES | {name: content(written)} | ({"run.yaml": content(b"")} if name == "ledger/run.json" else {})
    with Rewritten(folder, files):
        check(folder)
        assert_ended_well(spinrun("compare", str(folder)))
        assert_ended_well(spinrun("explain", str(folder)))
        assert_ended_well(spinrun("watch", str(folder), "--output", "json")) if name != "run.yaml" else None


@fuzz(25, before=st.lists(groups, max_size=3), after=st.lists(groups, max_size=3))
def test_odd_answers(folder: Path, before: list[ScoredGroup], after: list[ScoredGroup]) -> None:
    evaluations = b"".join(to_json(line) + b"\n" for line in LINES if line["event"] == "evaluation" and line["version"] < 2)
    files: dict[str, Callable[[Path], object]] = {
        "ledger/evaluations/000000/samples.parquet": lambda path: write_samples(path, before),
        "ledger/evaluations/000001/samples.parquet": lambda path: write_samples(path, after),
        "ledger/metrics.jsonl": content(evaluations),
    }
    with Rewritten(folder, files):
        check(folder)


@fuzz(60, sampled=st.lists(groups, max_size=4), paired=st.lists(pairs, max_size=4), prompt=plain_texts)
def test_odd_samples(folder: Path, sampled: list[ScoredGroup], paired: list[Pair], prompt: str) -> None:
    files: dict[str, Callable[[Path], object]] = {
        "ledger/windows/000001/samples.parquet": lambda path: write_samples(path, sampled),
        "ledger/windows/000001/pairs.parquet": lambda path: write_pairs(path, paired),
    }
    with Rewritten(folder, files):
        check_text(folder)
        if "\0" not in prompt:
            assert_ended_well(spinrun("samples", str(folder), f"--prompt={prompt}"))


@fuzz(
    40,
    log=damaged(st.just(b'2026-01-02 a line\n{"level": "INFO", "message": "x"}\n'))
    | texts.map(lambda text: text.encode("utf-8", "surrogatepass")),
)
def test_odd_logs(folder: Path, log: bytes) -> None:
    with Rewritten(folder, {"logs/trainer.log": content(log), "logs/vllm-0.log": content(log)}):
        for arguments in (["logs"], ["logs", "--output", "json"], ["logs", "--tail", "1"], ["logs", "--role", "trainer"]):
            assert_ended_well(spinrun(arguments[0], str(folder), *arguments[1:]))
