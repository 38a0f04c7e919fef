"""tools/images builds again what has changed, and nothing else; a docker that only notes its arguments stands in for Docker."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

DOCKER = """\
#!/usr/bin/env bash
if [[ $1 == build ]]; then echo "$*" >>"$NOTES"; fi
"""


def context() -> list[str]:
    """What .dockerignore lets through."""
    return [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one file in each package."""
    root = tmp_path / "repository"
    for path in ("tools/images", ".dockerignore", "Dockerfile.operator"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, root / path)
    for path in context():
        if (ROOT / path).is_dir():
            (root / path).mkdir(parents=True)
            (root / path / "module.py").write_text("")
        else:
            (root / path).write_text("")
    return root


def inputs_of_build(repository: Path, tmp_path: Path) -> str:
    """The hash of the inputs of the operator's image, which its label tells."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    docker = tmp_path / "bin" / "docker"
    docker.write_text(DOCKER)
    docker.chmod(0o755)
    notes = tmp_path / "notes"
    notes.unlink(missing_ok=True)
    environment = os.environ | {
        "PATH": f"{docker.parent}:{os.environ['PATH']}",
        "NOTES": str(notes),
        "SPINRUN_CACHE": str(tmp_path),
    }
    done = subprocess.run([repository / "tools/images", "build", "operator"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (label,) = re.findall(r"dev\.spinrun\.inputs=(\w+)", notes.read_text())
    return label


def test_every_package_of_the_wheel_reaches_the_images() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert set(packages) <= set(context())


def test_an_image_is_built_again_after_a_change_of_any_package(repository: Path, tmp_path: Path) -> None:
    seen = [inputs_of_build(repository, tmp_path)]
    assert inputs_of_build(repository, tmp_path) == seen[0]
    for path in context():
        changed = repository / path
        (changed / "module.py" if changed.is_dir() else changed).write_text("changed = True")
        seen.append(inputs_of_build(repository, tmp_path))
    assert len(set(seen)) == len(seen)
