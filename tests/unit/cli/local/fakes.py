"""Puts the fake children in place of the real ones, in this process or in a `spinrun` of its own.

python fakes.py FOLDER ARGUMENT...   runs `spinrun ARGUMENT...` with them
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spinrun_api.run import SpinRun
from spinrun_protocol import commands
from spinrun_protocol.commands import Process

PROGRAM = Path(__file__).with_name("fake_children.py")


def write_scripts(folder: Path, scripts: Mapping[str, str]) -> None:
    """scripts: lines by role; a role that is not named serves."""
    folder.mkdir(exist_ok=True)
    for role in ("vllm", "agent", "scorer", "trainer"):
        (folder / f"{role}.script").write_text(scripts.get(role, "serve"))


def install(folder: Path, set_attribute: Callable[[Any, str, Any], None]) -> None:
    """Replace the command lines of the processes."""

    def fake(role: str, port: int, number: int) -> Process:
        return Process([commands.PYTHON, "-S", str(PROGRAM), role, str(port), str(folder), str(number)])

    def vllm(run: SpinRun, *, port: int, **_: Any) -> Process:
        (folder / "uid").write_text(run.metadata.uid or "")
        return fake("vllm", port, port)

    def agent(*, port: int, vllm_port: int, **_: Any) -> Process:
        return fake("agent", port, vllm_port)

    def scorer(_: SpinRun, *, port: int, **__: Any) -> Process:
        return fake("scorer", port, port)

    def trainer(run: SpinRun, *, attempt: int, port: int, **_: Any) -> Process:
        return fake("trainer", port, attempt)

    for name, replacement in (("vllm", vllm), ("agent", agent), ("scorer", scorer), ("trainer", trainer)):
        set_attribute(commands, name, replacement)


if __name__ == "__main__":
    install(Path(sys.argv[1]), setattr)
    sys.argv[:2] = ["spinrun"]
    from spinrun_cli.main import main

    main()
