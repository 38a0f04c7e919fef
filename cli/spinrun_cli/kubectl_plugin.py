"""`kubectl spinrun`: kubectl runs a program named kubectl-spinrun for it. The commands that need a cluster, those that look at a
run, `validate` and `estimate`."""

import typer

from spinrun_cli import main as spinrun
from spinrun_cli.commands import cluster, inspect, local

app = typer.Typer(
    name="kubectl spinrun",
    help="Online preference training of language models on Kubernetes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(local.validate)
app.command()(local.estimate)
cluster.register(app)
inspect.register(app)


def main() -> None:
    """Run the command as `spinrun` does."""
    spinrun.main(app, program="kubectl spinrun")


if __name__ == "__main__":
    main()
