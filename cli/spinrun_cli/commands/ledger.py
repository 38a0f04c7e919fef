"""`spinrun ledger`: look at what is on a volume."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from spinrun_cli.commands.options import worker_installed

app = typer.Typer(no_args_is_help=True, help="Inspect a run's ledger: the weights, windows and checkpoints on its volume.")

Root = Annotated[Path, typer.Argument(metavar="PATH", help="Folder of a run on the volume, or the volume's root.")]
Output = Annotated[Literal["table", "json"], typer.Option("--output", "-o", help="Output format.")]


@app.command("ls")
def list_directories(path: Root, output: Output = "table") -> None:
    """List every directory with its version, step, attempt, size, state and age.

    The state is derived from names and sizes; `verify` also reads the files.
    """
    with worker_installed():
        from spinrun_cli.local.ledger import list_ledger

    list_ledger(path, as_json=output == "json")


@app.command()
def verify(path: Root, output: Output = "table") -> None:
    """Read every file and report what is torn, foreign or superseded.

    Exits with 0 if everything is sound, with 1 if not, with 2 if PATH holds no ledger.

    While a run is writing, what it writes counts as torn.
    """
    with worker_installed():
        from spinrun_cli.local.ledger import verify_ledger

    raise typer.Exit(0 if verify_ledger(path, as_json=output == "json") else 1)
