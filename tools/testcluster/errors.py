"""What can go wrong."""


class ClusterError(Exception):
    """The cluster cannot do what was asked; the message says why, and what to do."""


class MachineError(ClusterError):
    """This machine lacks something; the message says what to do."""
