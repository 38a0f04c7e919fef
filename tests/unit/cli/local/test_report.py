"""The report: what it shows, of runs in every state, and that nothing a model says becomes markup."""

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from spinrun_cli.errors import CommandError, InvalidInputError
from spinrun_cli.local.run_data import load_run_data
from spinrun_cli.report import write_report
from spinrun_cli.show.charts import PANELS, VARIABLES, panels, starts_at_ln_2, to_svg
from spinrun_cli.show.page import CHANGES, compare, tiles
from spinrun_cli.show.run_data import RunData
from spinrun_cli.show.run_figures import wilson
from spinrun_worker.ledger import Layout, write_samples
from spinrun_worker.records import ScoredGroup
from unit.cli.conftest import DOCUMENT, answers

PNG = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """Tags and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def report(folder: Path) -> Page:
    return Page(write_report(load_run_data(folder), folder)[0].read_text())


BY_TOKEN = ["Clipped tokens", "Entropy"]
"""Charts of runs that know log-probs by token."""


def charts_of(page: Page) -> list[str | None]:
    return [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]


def test_a_run_of_grpo_has_the_charts_of_its_figures(finished_run: Path) -> None:
    data = load_run_data(finished_run)
    for line in data.windows:
        line.values["entropy"] = 1.5
    for line in data.steps:
        for name in [name for name in line.values if name.startswith(("rewards/", "logps/", "ref_logps/"))]:
            del line.values[name]
        line.values.update({f"clip_ratio/{which}_mean": 0.01 for which in ("low", "high", "region")})

    drawn = charts_of(Page(write_report(data, finished_run)[0].read_text()))

    of_pairs = ["Margins", "Reward accuracy"]
    assert drawn == [panel.title for panel in PANELS if panel.title not in of_pairs]


def test_a_finished_run_has_all_charts_figures_and_samples(finished_run: Path) -> None:
    page = report(finished_run)

    assert charts_of(page) == [panel.title for panel in PANELS if panel.title not in BY_TOKEN]
    assert "0.511 → 0.822" in page.text
    assert "+0.311 over 90 held-out prompts" in page.text
    assert "What is 3 + 7?" in page.text
    assert "torch 2.13.0" in page.text
    assert "lastNumber" in page.text
    assert (finished_run / "curves.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    ("method", "want"),
    [
        ({}, True),
        ({"loss": "robust"}, True),
        ({"loss": "ipo"}, False),
        ({"losses": [{"name": "ipo"}]}, False),
        ({"sftWeight": 0.5}, False),
        ({"weightByMargin": True}, False),
        ({"weightByLikelihood": True}, False),
    ],
    ids=["sigmoid", "robust", "ipo", "losses", "with the chosen answers' likelihood", "by margin", "by likelihood"],
)
def test_the_loss_at_the_reference_is_drawn_where_it_is_ln_2(method: dict[str, object], want: bool) -> None:
    document = {"spec": {"method": {"loss": "sigmoid", "sftWeight": 0.0} | method}}

    assert starts_at_ln_2(RunData("run", document)) is want


def test_the_page_needs_nothing_else_and_runs_nothing(finished_run: Path) -> None:
    page = report(finished_run)

    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "img", "iframe", "object")]
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name in ("src", "action")]
    links = [attributes[name] for _, attributes in page.tags for name in ("href", "xlink:href") if name in attributes]
    assert all(link is not None and link.startswith("#") for link in links)


def test_text_of_a_model_is_shown_as_text(finished_run: Path) -> None:
    attacks = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "</table></main>", "\x00\x1b[31m"]
    path = Layout(finished_run / "ledger").evaluation(5) / "samples.parquet"
    write_samples(path, answers(5, text="".join(attacks)))

    page = report(finished_run)

    assert not [tag for tag, _ in page.tags if tag in ("script", "img")]
    assert all(attack in page.text for attack in attacks if attack.isprintable())


def test_a_long_answer_is_cut(finished_run: Path) -> None:
    path = Layout(finished_run / "ledger").evaluation(5) / "samples.parquet"
    write_samples(path, answers(5, text="x" * 100_000))

    assert len(write_report(load_run_data(finished_run), finished_run)[0].read_text()) < 500_000


def test_answers_are_compared_prompt_by_prompt_with_the_changed_ones_first() -> None:
    compared = compare(answers(0), answers(5))

    assert [CHANGES.index(item.change) for item in compared] == sorted(CHANGES.index(item.change) for item in compared)
    assert [sum(item.change == change for item in compared) for change in CHANGES] == [3, 0, 2, 5]
    assert (compared[0].prompt, compared[0].expected) == ("What is 1 + 7? Answer with just the number.", "8")
    assert (compared[0].before.text, compared[0].after.text) == ("The answer is 9.", "The answer is 8.")


def test_answers_that_were_cut_off_are_counted_and_said_to_be_so(finished_run: Path) -> None:
    data = load_run_data(finished_run)
    assert "Cut off" not in {tile.label for tile in tiles(data)}
    for line in data.windows:
        line.values["truncated_samples"] = 3.0
    (tile,) = [tile for tile in tiles(data) if tile.label == "Cut off"]
    assert tile.value == f"{3 * len(data.windows)} answers"

    before, after = answers(0), answers(1)
    (sample,) = after[0].samples
    after[0] = replace(after[0], samples=(sample.model_copy(update={"finish_reason": "length"}),))
    shown = compare(before, after)
    assert {item.after.reward for item in shown} == {"0", "1", "1, cut off at maxTokens"}


def test_conversations_are_shown_with_every_role(finished_run: Path) -> None:
    messages = [{"role": "system", "content": "Answer <i>in</i> German."}, {"role": "user", "content": "And?"}]
    many = [{"role": "user", "content": f"message {number}"} for number in range(200)]
    for version in (0, 5):
        first, second, *others = answers(version)
        changed = [
            ScoredGroup(replace(group.prompt, conversation=tuple(turns)), group.samples, group.rewards)
            for group, turns in ((first, messages), (second, many))
        ]
        write_samples(Layout(finished_run / "ledger").evaluation(version) / "samples.parquet", [*changed, *others])

    page = write_report(load_run_data(finished_run), finished_run)[0].read_text()

    assert "<i>in" not in page
    text = Page(page).text
    assert re.search(r"system\s*Answer <i>in</i> German\.\s*user\s*And\?", text)
    assert "message 24" in text
    assert "(150 more messages)" in text
    assert "message 25" not in text
    assert "message 175" in text


def test_a_ledger_alone_is_enough(finished_run: Path, tmp_path: Path) -> None:
    page, _ = write_report(load_run_data(finished_run / "ledger"), tmp_path / "elsewhere")

    assert page.parent == tmp_path / "elsewhere"
    assert "0.511 → 0.822" in Page(page.read_text()).text


def test_a_run_that_has_just_begun_says_that_there_are_no_figures(tmp_path: Path) -> None:
    (tmp_path / "ledger").mkdir()
    data = "data: {prompts: {sources: [{source: a/b}, {source: c/d}]}}"
    (tmp_path / "run.yaml").write_text(f"kind: SpinRun\nmetadata: {{name: adding}}\nspec: {{model: {{source: m}}, {data}}}\n")

    page = report(tmp_path)

    assert "m · 2 sources of prompts" in page.text
    assert "Unfinished" in page.text
    assert "The ledger holds no figures yet" in page.text
    assert (tmp_path / "curves.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("num_lines", [1, 7])
def test_an_unfinished_run_is_shown_as_far_as_it_got(finished_run: Path, num_lines: int) -> None:
    (finished_run / "last-words.json").unlink()
    metrics = finished_run / "ledger" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(lines[:num_lines]) + lines[num_lines][:20])

    page = report(finished_run)

    assert "Unfinished" in page.text
    assert "0.511" in page.text


def test_lost_answers_are_said_and_the_rest_is_shown(finished_run: Path) -> None:
    (finished_run / "ledger" / "evaluations" / "000005" / "samples.parquet").write_bytes(b"torn")

    page = report(finished_run)

    assert "The answers of version 5 cannot be shown" in page.text
    assert "0.511 → 0.822" in page.text


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="neither a local run nor a ledger"):
        load_run_data(tmp_path)


def test_figures_that_cannot_be_read_are_named(finished_run: Path) -> None:
    metrics = finished_run / "ledger" / "metrics.jsonl"
    metrics.write_text("nonsense\n" + metrics.read_text())

    with pytest.raises(CommandError, match="line 1"):
        load_run_data(finished_run)


def test_an_svg_takes_all_its_colours_from_the_page(finished_run: Path) -> None:
    data = load_run_data(finished_run)
    for panel in panels(data):
        drawing = to_svg(panel, data)
        ET.fromstring(drawing)
        assert "var(--text)" in drawing or "var(--muted)" in drawing
        assert not [colour for colour in VARIABLES if colour in drawing]


def outcomes_of(data: RunData) -> list[str]:
    """The legend of the chart of what became of the prompts."""
    (panel,) = (panel for panel in panels(data) if panel.title == "What became of the prompts")
    return re.findall(r">(pairs|all right|all wrong|other ties|ties|identical|unrated)<", to_svg(panel, data))


def test_the_page_shows_what_became_of_the_prompts_as_far_as_the_run_has_counted_it(finished_run: Path) -> None:
    data = load_run_data(finished_run)
    assert outcomes_of(data) == ["pairs", "all right", "all wrong"]
    old = [line.model_copy(update={"values": {"pairs": 50.0, "ties": 14.0}}) for line in data.windows]
    assert outcomes_of(replace(data, windows=old)) == ["pairs", "ties"]


def test_best_is_the_earlier_of_two_equal_versions(finished_run: Path) -> None:
    metrics = finished_run / "ledger" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"accuracy":0.822', '"accuracy":0.8'))
    best = load_run_data(finished_run).best

    assert best is not None
    assert (best.version, best.accuracy) == (4, 0.8)


@pytest.mark.parametrize(
    ("share", "count", "want"),
    [
        (0.5, 100, (0.4038, 0.5962)),  # Newcombe 1998's method 3
        (0.0, 20, (0.0, 0.1611)),
        (0.3, 0, (0.3, 0.3)),
        (2.5, 10, (2.5, 2.5)),
        (1.0, 5e-324, (0.0, 1.0)),
        (1.0, 1e308, (1.0, 1.0)),
        (0.3, math.inf, (0.3, 0.3)),
        (0.3, math.nan, (0.3, 0.3)),
    ],
)
def test_the_interval_of_a_share_is_wilsons(share: float, count: float, want: tuple[float, float]) -> None:
    assert wilson(share, count) == pytest.approx(want, abs=1e-4)


def test_a_run_without_evaluation_says_so(finished_run: Path) -> None:
    text = (finished_run / "run.yaml").read_text().replace("evaluation:", "evaluated:")
    (finished_run / "run.yaml").write_text(text)

    assert "no spec.data.evaluation" in report(finished_run).text
    assert DOCUMENT["spec"]["data"]["evaluation"]


def test_a_report_tells_no_secret(finished_run: Path, tmp_path: Path) -> None:
    document = yaml.safe_load((finished_run / "run.yaml").read_text())
    document["spec"]["rollout"] = {"engineArgs": {"gateway-token": "s3cr3t"}, "maxTokens": 8}
    document["spec"]["trainer"] = {
        "template": {"spec": {"containers": [{"name": "t", "env": [{"name": "A", "value": "s3cr3t"}]}]}}
    }
    (finished_run / "run.yaml").write_text(yaml.safe_dump(document))
    page = write_report(load_run_data(finished_run), tmp_path)[0].read_text()
    assert "s3cr3t" not in page
    assert "maxTokens: 8" in page
