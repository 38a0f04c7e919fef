"""Draws what `spinrun watch` shows of a local run at a moment, as an SVG.

python tools/watch_picture.py runs/demo docs/images/watch.svg                 as it is now
python tools/watch_picture.py runs/demo docs/images/watch.svg --window 3      once that window is trained on
"""

import argparse
import io
import re
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from spinrun_cli.local.folder import RunFolder
from spinrun_cli.local.watch import look
from spinrun_cli.show.render import panel
from spinrun_cli.show.snapshot import Snapshot

COLUMNS = 104


def main() -> int:
    """Wait for the moment, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--window", type=int, help="wait until the run trains on this window, or ends")
    options = parser.parse_args()
    snapshot = look(RunFolder(options.folder))
    while options.window is not None and not is_there(snapshot, options.window):
        time.sleep(0.5)
        snapshot = look(RunFolder(options.folder))
    options.output.write_text(drawn(snapshot, str(options.folder)))
    return 0


def is_there(snapshot: Snapshot, window: int) -> bool:
    """Whether the run trains on the window, or has ended."""
    now = snapshot.progress
    return snapshot.outcome is not None or (now is not None and now.window >= window and now.activity == "train")


def drawn(snapshot: Snapshot, folder: str) -> str:
    """The screen as an SVG, in whatever fixed-width font the reader has: it fetches nothing."""
    console = Console(record=True, width=COLUMNS, force_terminal=True, color_system="truecolor", file=io.StringIO())
    console.print(f"[bold green]$[/] spinrun watch {folder}", highlight=False)
    console.print(panel(snapshot))
    svg = console.export_svg(title="spinrun watch", theme=MONOKAI, unique_id="watch")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    sys.exit(main())
