"""The errors that end a run, by who must act."""


class RunError(Exception):
    """The run cannot go on now; another attempt may. The message says what, where and what to do."""


class ConfigurationError(ValueError):
    """Bad input by the user: the run ends and is not tried again. The message names the field and the remedy."""


class NoPairsError(ConfigurationError):
    """Window after window gave no pair: the rule cannot tell this model's answers apart."""


class Preempted(Exception):  # noqa: N818 - not a failure
    """The run was asked to stop; it goes on from its checkpoint in another attempt."""
