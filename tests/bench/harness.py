"""What benches share that measure runs and write a page."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

TABLE_BEGIN, TABLE_END = "<!-- table -->", "<!-- /table -->"


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


def write_table(page: Path, table: str) -> None:
    """Put a table in the place of the one that a page has between its marks."""
    text = page.read_text()
    before, after = text.partition(TABLE_BEGIN)[0], text.partition(TABLE_END)[2]
    page.write_text(f"{before}{TABLE_BEGIN}\n{table}\n{TABLE_END}{after}")


def say(message: str) -> None:
    """Progress."""
    print(f"{time.strftime('%H:%M:%S')}  {message}", file=sys.stderr, flush=True)
