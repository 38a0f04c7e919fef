"""docs/api.md says what the models say."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from spinrun_api.base import ApiModel
from spinrun_api.crd import IMMUTABLE, NAME_RULES
from spinrun_api.reference import reference
from spinrun_api.spec import SpinRunSpec
from spinrun_api.status import SpinRunStatus

PAGE = Path(__file__).resolve().parents[3] / "docs" / "api.md"


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
    """The models that a type mentions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from models_in(argument)


def blocks(path: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Every block of the API with its path, found in the models themselves."""
    yield path, model
    for name, field in model.model_fields.items():
        many = "[]" if str(field.annotation).startswith("list[") else ""
        for inner in models_in(field.annotation):
            yield from blocks(f"{path}.{field.alias or name}{many}", inner)


BLOCKS = {**dict(blocks("spec", SpinRunSpec)), **dict(blocks("status", SpinRunStatus))}


def section(path: str) -> str:
    """The part of the page about a block."""
    _, _, after = reference().partition(f"# {path}\n")
    return after.partition("\n## ")[0].partition("\n### ")[0]


def test_page_is_what_the_models_generate() -> None:
    assert PAGE.read_text() == reference(), "run `python -m spinrun_api.reference > docs/api.md`"


@pytest.mark.parametrize("path", BLOCKS)
def test_block_has_a_row_with_a_meaning_for_each_field(path: str) -> None:
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in section(path).splitlines() if line.startswith("| `")}
    assert list(rows) == [f"`{field.alias or name}`" for name, field in BLOCKS[path].model_fields.items()]
    assert [row for row in rows.values() if row.replace(r"\|", "").count("|") != 6 or row.endswith(" |  |")] == []


@pytest.mark.parametrize("path", [path for path, model in BLOCKS.items() if issubclass(model, ApiModel) and model.rules])
def test_block_lists_its_rules(path: str) -> None:
    model = BLOCKS[path]
    assert issubclass(model, ApiModel)
    assert [rule.message for rule in model.rules.values() if f"\n- {rule.message}" not in section(path)] == []


def test_blocks_that_cannot_change_say_so() -> None:
    fixed = [path for path in BLOCKS if "It cannot change once the run has started" in section(path)]
    assert sorted(fixed) == sorted(f"spec.{block}" for block in IMMUTABLE)


def test_rules_of_names_are_listed() -> None:
    assert [rule.message for rule in NAME_RULES if f"- {rule.message}" not in section("metadata")] == []


@pytest.mark.parametrize(
    ("path", "row"),
    [
        ("spec.rollout", "| `samplesPerPrompt` | integer | `8` | 1 to 1024 |"),
        ("spec.rollout", "| `temperature` | number | `0.7` | above 0, at most 10 |"),
        ("spec.model", "| `source` | string | *required* | 1 to 1024 characters |"),
        ("spec.lifecycle", "| `failurePolicy` | list of [block](#speclifecyclefailurepolicy) |  | at most 32 entries |"),
        ("spec.lifecycle.failurePolicy[]", "| `exitCodes` | list of integer | *required* | 1 to 64 entries; each 1 to 255 |"),
        ("spec.storage", '| `accessModes` | list of string | `["ReadWriteMany"]` | 1 to 3 entries; each `ReadWriteOnce`'),
        ("spec.rollout", "| `engineArgs` | map of integer or string |  | at most 64 entries; names must match"),
    ],
)
def test_row_shows_type_default_and_limits(path: str, row: str) -> None:
    assert row in section(path)
