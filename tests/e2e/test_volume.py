"""Weights damaged on the volume are refused and named."""

from pathlib import Path

import pytest

from e2e.runs import WINDOWS, Runs, tiny_run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

FLIP = """
import sys
with open(sys.argv[1], 'r+b') as file:
    file.seek(-100, 2)
    byte = file.read(1)
    file.seek(-100, 2)
    file.write(bytes([byte[0] ^ 1]))
"""


def test_a_damaged_weights_file_is_refused_by_name(runs: Runs, tmp_path: Path) -> None:
    runs.create(tiny_run("damaged", duration={"windows": WINDOWS}))
    runs.until_window("damaged", 2)
    runs.change("damaged", lifecycle={"suspend": True})
    runs.until("no pod is left", lambda: not runs.pods())
    newest = runs.shell("sh", "-c", f"ls -d {runs.folder('damaged')}/weights/* | tail -n 1").strip()
    file = runs.shell("sh", "-c", f"ls {newest}/*.safetensors | head -n 1").strip()
    runs.shell("python", "-c", FLIP, file)
    runs.change("damaged", lifecycle={"suspend": False})

    name = "/".join(file.split("/")[-2:])
    runs.until(f"somebody names {name}", lambda: name in runs.describe())
    assert runs.status("damaged").get("phase") != "Complete"
