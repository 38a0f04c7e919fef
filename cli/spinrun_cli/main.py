"""The program `spinrun`. Signatures stand in commands/; what a command does is imported when it is called."""

import errno
import sys
from typing import Annotated

import typer

from spinrun_cli.commands import cluster, inspect, ledger, local
from spinrun_cli.errors import CommandError
from spinrun_cli.output import drop_output, echo, tolerate_any_encoding

app = typer.Typer(
    name="spinrun",
    help="Online preference training of language models, on one machine and on Kubernetes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        echo(f"spinrun {version('spinrun')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None: ...


app.command()(local.validate)
app.command()(local.estimate)
app.command()(local.local)
app.add_typer(ledger.app, name="ledger")
cluster.register(app)
inspect.register(app)
app.add_typer(local.model_app, name="model")


def main(command: typer.Typer = app, program: str = "spinrun") -> None:
    """Run a command line. Expected errors are one message on stderr; Ctrl-C exits with 130."""
    tolerate_any_encoding()
    try:
        command(prog_name=program)
    except CommandError as error:
        echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        # Whatever else a command writes, it speaks of itself: this is its output, into a file on a disk that is full.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise
        drop_output()
        echo(f"error: cannot write the output: {error.strerror}. Free space, or write it elsewhere", err=True)
        sys.exit(CommandError.exit_code)


if __name__ == "__main__":
    main()
