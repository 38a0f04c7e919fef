"""Memory of pass rates: what the ledger knows of how each prompt's answers did. Rank 0 alone has it.

Every window's directory holds what is known after it, of all prompts that were ever asked: a few bytes for each. So an attempt
that resumes reads one file, however many windows there were, and no window is needed to know what came before the newest.
"""

from collections.abc import Sequence

from spinrun_api.spec import PassRateBand
from spinrun_protocol.ledger import FileEntry
from spinrun_worker.data import row_and_epoch
from spinrun_worker.ledger import Ledger, read_rates, write_rates
from spinrun_worker.records import PassRate, PassRates, ScoredGroup
from spinrun_worker.trainer.storage.lineage import RATES

KEPT = 3
"""Windows whose rates stay in memory: the newest, and with rollouts a window ahead those by which its prompts were drawn."""


class RateMemory:
    """The pass rates that are known after each window."""

    def __init__(self, ledger: Ledger, band: PassRateBand) -> None:
        """Remember nothing yet.

        Args:
            ledger: The run's.
            band: The pass rates of prompts that windows draw.
        """
        self.band = band
        self._ledger = ledger
        self._known: dict[int, PassRates] = {}

    def after(self, window: int) -> PassRates:
        """The rates that are known after a window, which is in the ledger or was given to `learn`; none before the first.

        A window that was written without them, by a run that did not ask for them then, knows of none.

        Raises:
            TornError: The ledger does not hold the window as it was written.
        """
        if window < 0:
            return {}
        if window not in self._known:
            self._keep(window, self._read(window))
        return self._known[window]

    def learn(self, window: int, groups: Sequence[ScoredGroup]) -> PassRates:
        """The rates that are known after a window whose answers are these. Repeating it changes nothing."""
        rates = dict(self.after(window - 1))
        for group in groups:
            row, epoch = row_and_epoch(group.prompt.id)
            rate = group.pass_rate
            if rate is None:
                rates.pop(row, None)
            else:
                rates[row] = PassRate(rate, epoch)
        self._keep(window, rates)
        return rates

    def write(self, window: int) -> FileEntry:
        """Write what is known after a window into its directory."""
        return write_rates(self._ledger.layout.window(window) / RATES, self.after(window))

    def _read(self, window: int) -> PassRates:
        manifest = self._ledger.verify("window", window)
        is_there = any(entry.path == RATES for entry in manifest.files)
        return read_rates(self._ledger.layout.window(window) / RATES) if is_there else {}

    def _keep(self, window: int, rates: PassRates) -> None:
        self._known[window] = rates
        for older in [number for number in self._known if number <= window - KEPT]:
            del self._known[older]
