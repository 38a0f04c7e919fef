"""`spinrun compare`, and reports that travel."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from spinrun_cli.bundle import bundled, unbundle
from spinrun_cli.compare import from_document, load, to_document
from spinrun_cli.errors import CommandError
from spinrun_cli.report import write_report
from spinrun_cli.show.charts import COMPARISONS, compared_svg
from spinrun_cli.show.comparison import differences, tables
from spinrun_cli.show.page import render
from spinrun_cli.show.run_data import RunData
from spinrun_protocol.wire import Sample
from unit.cli.local.test_report import PNG, Page
from unit.cli.shell import Shell


def test_runs_stand_side_by_side_by_the_names_that_the_user_gave(spinrun: Shell, finished_run: Path) -> None:
    one, other = str(finished_run), str(finished_run / "ledger")
    code, out, _ = spinrun("compare", f"{one}/", other)
    blocks = [[line.split("   ") for line in block.splitlines()] for block in out.split("\n\n")]
    cells = [[[cell.strip() for cell in line if cell.strip()] for line in block] for block in blocks]
    assert code == 0
    assert cells[0][1][:3] == [one, "5", "20"]
    assert cells[0][1][3:] == ["0.511 → 0.822", "0.822, version 5", "6 min 30 s"]
    assert [block[0][0] for block in cells[1:]] == [
        f"{name} by window" for name in ("accuracy", "reward", "loss", "response length", "pairs")
    ]
    assert cells[1][1] == ["0", "0.511", "0.511"]
    assert cells[2][2] == ["1", "0.48", "0.48"]


def test_run_without_a_figure_leaves_its_cells_empty(finished_run: Path) -> None:
    runs = [("new", RunData("new")), ("old", load(finished_run))]
    assert next(tables(runs))[1] == ["0", "", "0.511"]


def test_fields_of_the_specs_that_differ_are_named() -> None:
    runs = [(name, RunData(name, {"spec": {"method": {"beta": beta}, "model": {}}})) for name, beta in (("a", 0.1), ("b", 0.2))]
    assert differences(runs) == [["field", "a", "b"], ["spec.method.beta", "0.1", "0.2"]]


def test_page_has_a_chart_for_each_figure_with_a_curve_for_each_run(spinrun: Shell, finished_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "compare.html"
    code, out, _ = spinrun("compare", str(finished_run), str(finished_run / "ledger"), "--html", str(file))
    text = file.read_text()
    page = Page(text)
    assert (code, out.splitlines()[-1]) == (0, str(file))
    charts = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert charts[:3] == ["Held-out accuracy", "Reward", "Loss"]
    drawings = text.split("<svg ")[1:]
    assert [("var(--series-1)" in each, "var(--series-2)" in each) for each in drawings] == [(True, True)] * len(charts)
    assert f"■ {finished_run / 'ledger'}" in page.text
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "img", "iframe", "object")]


def test_run_that_has_just_begun_cuts_no_other_ones_curve(finished_run: Path) -> None:
    long = load(finished_run)
    short = RunData("new", evaluations=long.evaluations[:1])
    drawing = compared_svg(COMPARISONS[0], [long, short])
    assert [number for number in range(6) if f">{number}</text>" not in drawing] == []


def test_run_is_the_same_after_its_journey_as_a_document(spinrun: Shell, finished_run: Path) -> None:
    out = spinrun("compare", str(finished_run), "-o", "json")[1]
    there, here = from_document(out.encode()), load(finished_run)
    assert (there.steps, there.windows, there.evaluations) == (here.steps, here.windows, here.evaluations)
    assert to_document("x", there) == to_document("x", here)


def test_figures_that_are_no_numbers_travel_too(finished_run: Path) -> None:
    path = finished_run / "ledger" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"loss":0.69', '"loss":"NaN","grad_norm":"Infinity","x":0.69'))
    here = load(finished_run)
    assert any(math.isnan(line.values["loss"]) for line in here.steps)
    document = {"runs": [to_document("x", here)]}
    for there in (unbundle(bundled(here).encode()), from_document(json.dumps(document, allow_nan=False).encode())):
        assert str(there.steps) == str(here.steps)


@pytest.mark.parametrize("text", [b"", b"{}", b'{"runs": [{"name": "a", "run": {}, "lines": [{}]}]}'])
def test_document_that_was_cut_is_refused(text: bytes) -> None:
    with pytest.raises(CommandError, match="arrived incomplete"):
        from_document(text)


def test_more_runs_than_colours_are_refused(spinrun: Shell, finished_run: Path) -> None:
    code, _, error = spinrun("compare", *[str(finished_run)] * 9)
    assert (code, "at most 8 runs" in error) == (2, True)


def test_bundled_report_shows_conversations_and_answers_that_were_cut_off(finished_run: Path) -> None:
    here = load(finished_run)
    turns = ({"role": "system", "content": "Be short."}, {"role": "user", "content": "And?"})
    before, after = (
        [
            replace(group, prompt=replace(group.prompt, conversation=turns), samples=(cut_off(group.samples[0]),))
            for group in groups
        ]
        for groups in (here.before, here.after)
    )
    here = replace(here, before=before, after=after)
    page = render(unbundle(bundled(here).encode()))
    assert page == render(here)
    assert "Be short." in page
    assert "cut off at maxTokens" in page


def cut_off(sample: Sample) -> Sample:
    return sample.model_copy(update={"finish_reason": "length"})


def test_bundled_report_is_the_same_where_it_arrives(finished_run: Path, tmp_path: Path) -> None:
    there = unbundle(bundled(load(finished_run)).encode())
    assert there.learning == "held-out accuracy 0.511 → 0.822 (best 0.822, version 5)"
    paths = write_report(there, tmp_path / "there")
    assert render(there) == render(load(finished_run)), "answers and all"
    assert [path.name for path in paths] == ["report.html", "curves.png"]
    assert "0.511 → 0.822" in Page(paths[0].read_text()).text
    assert paths[1].read_bytes().startswith(PNG)


def test_bundle_that_was_cut_is_refused(finished_run: Path) -> None:
    whole = bundled(load(finished_run)).encode()
    for text in (b"", b"[]", b"{}", whole[:-1], b'{"learning": null, "files": {"report.html": ""}}', b"[" * 100_000):
        with pytest.raises(CommandError, match="arrived incomplete"):
            unbundle(text)
