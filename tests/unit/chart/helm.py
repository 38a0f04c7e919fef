"""Helm, as the chart's tests use it."""

import contextlib
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "charts" / "spinrun"

HANDED_DOWN = ("enabled", "global")
"""Values that the chart gets where it is part of another."""

Json = dict[str, Any]


class HelmError(Exception):
    """Helm ended with an error; the message is what it wrote to stderr."""


@cache
def helm_binary() -> Path:
    """The Helm that tools/build.sh makes, the first time in some minutes."""
    built = subprocess.run([ROOT / "tools" / "build.sh", "helm"], check=True, stdout=subprocess.PIPE, text=True)
    return Path(built.stdout.strip(), "helm")


def build_helm(items: Sequence[pytest.Item]) -> None:
    """Builds Helm before the first of the chart's tests: cold it takes minutes, which no test's time limit allows for."""
    if any("chart" in item.path.parts and item.get_closest_marker("cluster") for item in items):
        # A failure shows where it matters: in the tests that need Helm, not in the others of this session.
        with contextlib.suppress(subprocess.CalledProcessError):
            helm_binary()


def helm(*arguments: str | Path) -> str:
    """Runs Helm and returns its stdout; raises HelmError with its stderr."""
    done = subprocess.run([helm_binary(), *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise HelmError(done.stderr.strip())
    return done.stdout


def template(*arguments: str | Path) -> str:
    """The chart's manifests for the release `spinrun` in the namespace `spinrun-system`."""
    return helm("template", "spinrun", CHART, "--namespace", "spinrun-system", *arguments)


def documents(manifests: str) -> list[Json]:
    """The objects of manifests."""
    return [document for document in yaml.safe_load_all(manifests) if document]


def one(found: list[Json], kind: str, name: str = "spinrun-operator") -> Json:
    """The object of that kind and name."""
    (document,) = [each for each in found if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return document


def environment(deployment: Json) -> dict[str, str]:
    """The variables of the operator's container, as it finds them in its own namespace."""
    fields = {"metadata.namespace": deployment["metadata"]["namespace"]}
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    # The API server leaves an empty value out.
    return {
        each["name"]: fields[each["valueFrom"]["fieldRef"]["fieldPath"]] if "valueFrom" in each else each.get("value", "")
        for each in container["env"]
    }
