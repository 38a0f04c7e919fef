"""The command line, called as a shell does."""

import sys
from dataclasses import dataclass

import pytest

from spinrun_cli import main as command_line


@dataclass
class Shell:
    """Runs the commands as a shell does."""

    capture: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        self.monkeypatch.setattr(sys, "argv", ["spinrun", *arguments])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        out, err = self.capture.readouterr()
        return int(ended.value.code or 0), out, err
