"""Options that more than one command has."""

from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Replace a field, as in spec.duration.windows=3. The value is YAML. May be given many times.",
        show_default=False,
    ),
]
