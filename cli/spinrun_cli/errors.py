"""Errors that a command ends with: one clear message on stderr, and an exit code."""


class CommandError(Exception):
    """The command cannot do what it was asked for. The message says what, where and what to do."""

    exit_code = 1


class InvalidInputError(CommandError):
    """What the user wrote cannot be right: a document, an option, a folder."""

    exit_code = 2
