"""The runs and pictures of docs/reading-the-curves.md."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from spinrun_api.documents import read_run
from spinrun_cli.local.run_data import load_run_data

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "reading-the-curves.md").read_text()
SPECS = sorted((ROOT / "tools" / "curves").glob("*.yaml"))


def load(path: Path) -> ModuleType:
    """A script that is not part of a package."""
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def curves() -> ModuleType:
    return load(ROOT / "tools" / "curves.py")


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
def test_a_run_is_valid_and_called_as_its_file(spec: Path) -> None:
    assert read_run(spec).metadata.name == spec.stem


def test_each_run_has_its_picture_on_the_page(curves: ModuleType) -> None:
    assert sorted(curves.NAMES) == [spec.stem for spec in SPECS]
    assert re.findall(r"\]\(images/curves-(\S+)\.png\)", PAGE) == list(curves.NAMES)
    assert all((ROOT / "docs" / "images" / f"curves-{name}.png").stat().st_size < 60_000 for name in curves.NAMES)


def test_a_picture_is_drawn_from_what_a_run_left(
    curves: ModuleType, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "PICTURES", tmp_path)
    monkeypatch.setattr(curves, "ROOT", tmp_path)
    curves.draw("healthy", finished_run)
    assert (tmp_path / "curves-healthy.png").read_bytes().startswith(b"\x89PNG")
    assert not curves.is_graded_otherwise(load_run_data(finished_run))


@pytest.mark.parametrize(("text", "want"), [("2 + 3 = 5", "5"), ("it is -4.", "-4"), ("no number", None)])
def test_the_last_number_counts(curves: ModuleType, text: str, want: str | None) -> None:
    assert curves.last_number(text) == want


def test_the_reward_that_pays_for_length_does_so() -> None:
    rules = load(ROOT / "tools" / "curves" / "rules.py")
    assert rules.right_and_long("2 + 3", "5", "5") == pytest.approx(0.5 + 0.5 / 30)
    assert rules.right_and_long("2 + 3", "well " * 40, "5") == 0.5
