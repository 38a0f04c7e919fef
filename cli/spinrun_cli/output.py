"""The one place that prints: whatever models, data sets, files and servers wrote goes through `printable` or is escaped.

Commands print with `echo`, `echo_json` and `echo_yaml`; what they draw with rich goes to the Console of `spinrun_cli.console`.
"""

import json
import os
import re
import sys
from io import TextIOWrapper
from typing import Any

import typer

from spinrun_cli.show.text import is_harmless, printable

_OTHER_THAN_ASCII = re.compile(r"[^ -~\n]")


def echo(text: object = "", *, err: bool = False, end: str = "\n") -> None:
    """Print a text for people.

    Args:
        text: Any text, or a path.
        err: Whether it goes to stderr.
        end: What follows it.
    """
    typer.echo(f"{printable(str(text))}{end}", nl=False, err=err)


def echo_json(document: Any, *, indent: int | None = None) -> None:
    """Print a document for programs, which stand in front of terminals, too.

    Args:
        document: What JSON can hold.
        indent: Spaces of each level; None: one line.
    """
    typer.echo(json_text(document, indent=indent))


def echo_yaml(document: Any) -> None:
    """Print a document for programs as YAML: characters as they are, or all escaped where one of them commands a terminal.

    Args:
        document: What YAML can hold.
    """
    from spinrun_api import yaml_text

    text = yaml_text.dump(document)
    typer.echo(text if printable(text) == text else yaml_text.dump(document, ascii_only=True), nl=False)


def json_text(document: Any, *, indent: int | None = None) -> str:
    """A document as JSON whose characters are as they are, except for those that command a terminal: these are escaped.

    Args:
        document: What JSON can hold.
        indent: Spaces of each level; None: one line.
    """
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    return _OTHER_THAN_ASCII.sub(lambda found: found[0] if is_harmless(found[0]) else _escaped(found[0]), text)


def tolerate_any_encoding() -> None:
    """Print an escape in place of a character that the locale's encoding does not have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def drop_output() -> None:
    """Let nothing more be written to stdout: Python would try again, and fail again, as it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _escaped(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[index]:02x}{units[index + 1]:02x}" for index in range(0, len(units), 2))
