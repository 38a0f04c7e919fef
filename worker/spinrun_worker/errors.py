"""The errors that end a run, by who must act."""


class RunError(Exception):
    """The run cannot continue now; another attempt may. The message says what, where and what to do."""


class ConfigurationError(ValueError):
    """Invalid input by the user: the run ends and is not retried. The message names the field and the remedy."""


class NoPairsError(ConfigurationError):
    """Window after window gave no pair: the rule cannot tell this model's answers apart."""


class NoPromptsError(ConfigurationError):
    """A whole epoch has no prompt with a pass rate within the spec's bounds."""


class Preempted(Exception):  # noqa: N818 - not a failure
    """The run was asked to stop; another attempt resumes from its checkpoint."""
