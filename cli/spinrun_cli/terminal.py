"""How `spinrun watch` shows a run: a screen on a terminal, lines elsewhere, JSON for programs; nothing while nothing changes."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.live import Live

from spinrun_cli.console import Console
from spinrun_cli.output import echo, echo_json
from spinrun_cli.show.render import line, panel
from spinrun_cli.show.snapshot import Json, Snapshot, document

Show = Callable[[Snapshot], None]


@contextmanager
def shown(*, as_json: bool) -> Generator[Show]:
    """Takes the snapshots of a run, in the form that suits where the output goes."""
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

    def show(snapshot: Snapshot) -> None:
        if last != [snapshot.key]:
            last[:] = [snapshot.key]
            echo(line(snapshot))

    return show


def documents() -> Show:
    """A JSON document, in one line, for each change."""
    last: list[Json] = []

    def show(snapshot: Snapshot) -> None:
        found = document(snapshot)
        if last != [found]:
            last[:] = [found]
            echo_json(found)

    return show


def screen(live: Live) -> Show:
    """A block that is redrawn when it has changed."""
    last: list[Snapshot] = []

    def show(snapshot: Snapshot) -> None:
        if last != [snapshot]:
            last[:] = [snapshot]
            live.update(panel(snapshot), refresh=True)

    return show
