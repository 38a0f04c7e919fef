"""Options that more than one command has."""

from collections.abc import Generator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import typer

from spinrun_cli.errors import CommandError


class OutputFormat(StrEnum):
    """How a command prints its result."""

    TEXT = "text"
    JSON = "json"


Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Override a field, as in spec.duration.windows=3. The value is YAML. May be repeated.",
        show_default=False,
    ),
]
Context = Annotated[
    str | None,
    typer.Option("--context", metavar="NAME", help="Context of the kubeconfig to use.", show_default="the current one"),
]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", metavar="NAME", help="Namespace of the run.", show_default="the context's"),
]


@contextmanager
def drawing_installed() -> Generator[None]:
    """Says what to install when the packages that draw a page are not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise CommandError(f"{error}: a page with curves needs the extra `report`: pip install 'spinrun[report]'") from error


@contextmanager
def worker_installed() -> Generator[None]:
    """Says what to install when the worker's packages, which read a ledger, are not there."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise CommandError(f"{error}: reading a ledger here needs the extra `worker`: pip install 'spinrun[worker]'") from error
