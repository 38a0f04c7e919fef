"""`spinrun ledger`: look at what is on a volume."""

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(no_args_is_help=True, help="Look at a run's ledger: the weights, windows and checkpoints on its volume.")

Root = Annotated[Path, typer.Argument(metavar="PATH", help="A run's folder on the volume, or the volume's root.")]
Output = Annotated[Literal["table", "json"], typer.Option("--output", "-o", help="table for people, json for programs.")]


@app.command("ls")
def list_directories(path: Root, output: Output = "table") -> None:
    """List every directory with its version, step, attempt, size, state and age.

    The state is judged by names and sizes; `verify` also reads the files.
    """
    from spinrun_cli.local.ledger import list_ledger

    list_ledger(path, as_json=output == "json")


@app.command()
def verify(path: Root, output: Output = "table") -> None:
    """Read every file and say what is torn, foreign or superseded.

    Exits with 0 when all is sound, with 1 when something is not, with 2 when PATH holds no ledger. A run that is writing at this
    moment has something torn for as long.
    """
    from spinrun_cli.local.ledger import verify_ledger

    verify_ledger(path, as_json=output == "json")
