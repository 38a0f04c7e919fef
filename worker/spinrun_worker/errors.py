"""The errors that end a run, by who must act."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class RunError(Exception):
    """The run cannot continue now; another attempt may. The message says what, where and what to do."""


class ConfigurationError(ValueError):
    """Invalid input by the user: the run ends and is not retried. The message names the field and the remedy."""


class NoPairsError(ConfigurationError):
    """Window after window gave no pair: the rule cannot tell this model's answers apart."""


class Preempted(Exception):  # noqa: N818 - not a failure
    """The run was asked to stop; another attempt resumes from its checkpoint."""


def first_problem(error: "ValidationError") -> str:
    """The first problem of a document from elsewhere, with its path and without its content: `prompts.0.id: Field required`."""
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return ": ".join(filter(None, (".".join(map(str, problem["loc"])), problem["msg"])))
