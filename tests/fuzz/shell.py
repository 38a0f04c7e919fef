"""The command line in this process, and what is demanded of it whatever it is given."""

import io
import sys
import unicodedata
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from unittest.mock import patch

from spinrun_cli.main import main

_MAY_BE_PRINTED = "\n\t"
_INVISIBLE_BUT_PARTS_OF_WORDS = "\u200c\u200d"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def spinrun(*arguments: str) -> Ended:
    """Run a command. Whatever it raises other than SystemExit is raised here: a user would see a traceback."""
    streams = [io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2)]
    code = 0
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]), patch.object(sys, "argv", ["spinrun", *arguments]):
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
    out, err = (stream.buffer.getvalue().decode() for stream in streams)  # type: ignore[attr-defined]
    return Ended(int(code), out, err)


def assert_fit_for_a_terminal(text: str) -> None:
    """No character that commands a terminal, reorders a line, or is half of one."""
    commands = {
        f"U+{ord(character):04X}"
        for character in text
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        and character not in _MAY_BE_PRINTED + _INVISIBLE_BUT_PARTS_OF_WORDS
    }
    assert not commands, commands


def assert_ended_well(ended: Ended, codes: tuple[int, ...] = (0, 1, 2)) -> None:
    """One of the exit codes, fit for a terminal, and a sentence where it is not 0."""
    assert ended.code in codes, ended
    assert "Traceback" not in ended.err
    assert_fit_for_a_terminal(ended.out)
    assert_fit_for_a_terminal(ended.err)
    if ended.code:
        assert (ended.out + ended.err).strip(), "it fails without a word"
