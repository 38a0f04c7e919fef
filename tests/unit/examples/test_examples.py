"""The examples that a user copies."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from spinrun_api.documents import read_documents
from spinrun_cli.main import app

EXAMPLES = sorted((Path(__file__).resolve().parents[3] / "examples").glob("*.yaml"))

each_example = pytest.mark.parametrize("example", [pytest.param(path, id=path.stem) for path in EXAMPLES])


@each_example
def test_example_is_valid(example: Path) -> None:
    result = CliRunner().invoke(app, ["validate", str(example)])

    assert result.exit_code == 0, result.stdout


@each_example
def test_example_begins_with_what_it_is_and_how_it_is_started(example: Path) -> None:
    lines = example.read_text().splitlines()
    comment = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]

    assert len(comment) > 2
    assert any(f"examples/{example.name}" in line for line in comment)


def test_no_two_examples_have_the_same_name() -> None:
    names = [document["metadata"]["name"] for example in EXAMPLES for document in read_documents(example)]

    assert sorted(set(names)) == sorted(names)
