"""Pictures as they come: a screen on a terminal, lines elsewhere, JSON for programs. Nothing is written while nothing changes."""

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.live import Live

from spinrun_cli.show.picture import Json, Picture, document, line, panel

Show = Callable[[Picture], None]


@contextmanager
def shown(*, as_json: bool) -> Generator[Show]:
    """Takes the pictures of a run, in the form that suits where the output goes."""
    console = Console(highlight=False)
    if as_json:
        yield documents()
    elif console.is_terminal:
        # Drawn when something has changed, which the sources look for once a second at most: no timer, few bytes.
        with Live(console=console, auto_refresh=False) as live:
            yield screen(live)
    else:
        yield lines()


def lines() -> Show:
    """A line when there is something to tell."""
    last: list[tuple[object, ...]] = []

    def show(picture: Picture) -> None:
        if last != [picture.key]:
            last[:] = [picture.key]
            typer.echo(line(picture))

    return show


def documents() -> Show:
    """A JSON document, in one line, for each change."""
    last: list[Json] = []

    def show(picture: Picture) -> None:
        found = document(picture)
        if last != [found]:
            last[:] = [found]
            typer.echo(json.dumps(found, ensure_ascii=False))

    return show


def screen(live: Live) -> Show:
    """A block that is drawn anew when it has changed."""
    last: list[Picture] = []

    def show(picture: Picture) -> None:
        if last != [picture]:
            last[:] = [picture]
            live.update(panel(picture), refresh=True)

    return show
