"""What can be wrong with a ledger. Each message names the file or folder and says what to do."""


class LedgerError(Exception):
    """Any fault of a ledger."""


class TornError(LedgerError):
    """A directory without a manifest, or a file that is not what it should be: do not use it, write it again."""


class ForeignError(LedgerError):
    """A directory that belongs to another run, or is in another directory's place: neither use nor delete it."""


class SupersededError(LedgerError):
    """A newer attempt owns the ledger: this one must stop."""


class LedgerUnavailableError(LedgerError):
    """The volume is full, read-only, gone or failing. The run resumes once a person or the cluster has repaired it."""
