"""What benches share that measure runs and write a page."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml


def run_local(document: dict[str, Any], folder: Path, *options: str, seconds: float) -> None:
    """`spinrun local` to its end, its run file beside the folder. Ends the bench when it fails."""
    run_file = folder.with_suffix(".yaml")
    run_file.parent.mkdir(parents=True, exist_ok=True)
    run_file.write_text(yaml.safe_dump(document))
    command = [Path(sys.executable).with_name("spinrun"), "local", run_file, "--output", folder, *options]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{folder}: exit code {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def write_table(page: Path, table: str, name: str = "table") -> None:
    """Put a table in the place of the one that a page has between the marks of this name."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = page.read_text().partition(begin)
    page.write_text(f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}")


def say(message: str) -> None:
    """Progress."""
    print(f"{time.strftime('%H:%M:%S')}  {message}", file=sys.stderr, flush=True)
