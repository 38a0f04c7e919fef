"""The request to stop: SIGTERM or SIGINT to any rank reaches rank 0 and, through the Learner's votes, all ranks.

A rank may sit in a collective for an hour while rank 0 waits for rollouts, and Python runs no signal handlers there. So a thread
reads signals from Python's wake-up descriptor, which is written even then, and passes the request on through the store.
"""

import logging
import os
import select
import signal
import socket
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar, cast

from spinrun_protocol.exit_codes import ExitCode

if TYPE_CHECKING:
    # Importing torch takes seconds, in which a signal should find its handler.
    from torch.distributed.distributed_c10d import Store

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
POLL_SECONDS = 0.5
"""How often rank 0 checks whether another rank was asked to stop."""

_KEY = "stop"


class StopSignal:
    """Whether this process, or on rank 0 any rank, was asked to stop. A second signal ends the process immediately.

    Made in the main thread before anything slow; `share` follows once the ranks are connected. One at a time in a process.
    """

    installed: ClassVar["StopSignal | None"] = None
    """The one whose handlers are in place."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._closing = threading.Event()
        self._signals = 0
        self._store: Store | None = None
        self._listens = False
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, _handled_by_the_thread) or signal.SIG_DFL for number in SIGNALS}
        StopSignal.installed = self
        self._thread = threading.Thread(target=self._watch, name="stop-signal", daemon=True)
        self._thread.start()

    def share(self, store: "Store", *, rank: int) -> None:
        """Pass requests on to rank 0, and let rank 0 listen for them.

        Args:
            store: The store of `Distributed`.
            rank: This rank.
        """
        self._listens = rank == 0
        # A connection of its own: calls on one connection wait for each other, and the main thread's may wait long.
        self._store = cast(Any, store).clone()

    def requested(self) -> bool:
        """Whether to stop."""
        return self._requested.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but only until a request comes; returns whether to stop."""
        return self._requested.wait(seconds)

    def close(self) -> None:
        """Restore the previous signal handlers, and end the thread."""
        self.restore_handlers()
        self._closing.set()
        self._thread.join()
        self._reader.close()
        self._writer.close()

    def restore_handlers(self) -> None:
        """Put the previous signal handlers back, and nothing else: the rest belongs to the process that made this object."""
        StopSignal.installed = None
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _watch(self) -> None:
        told = False
        while not self._closing.is_set():
            if select.select([self._reader], [], [], POLL_SECONDS)[0]:
                self._receive()
            if self._store is not None and not told:
                told = self._exchange(self._store)

    def _receive(self) -> None:
        """Read the numbers of the signals that have arrived."""
        for number in self._reader.recv(64):
            if number not in SIGNALS:
                continue
            self._signals += 1
            name = signal.Signals(number).name
            if self._signals > 1:
                logger.warning("a second signal, %s: stopping without a checkpoint", name)
                logging.shutdown()
                os._exit(ExitCode.PREEMPTED)
            logger.warning("%s: stopping after a checkpoint; a second signal stops immediately", name)
            self._requested.set()

    def _exchange(self, store: "Store") -> bool:
        """Pass a request on or receive one; returns whether nothing is left to pass on or receive."""
        try:
            if self._requested.is_set():
                store.set(_KEY, "")
                return True
            if self._listens and store.check([_KEY]):
                logger.warning("another rank was asked to stop: stopping after a checkpoint")
                self._requested.set()
                return True
        except RuntimeError as error:
            # Rank 0 serves the store: without it there is no run to stop, and the launcher ends this rank.
            logger.debug("the store is gone: %s", error)
            return True
        return False


def _handled_by_the_thread(number: int, frame: FrameType | None) -> None:
    """Replaces the default handler, which ends the process."""


# A forked child shares the descriptor: a signal meant for the child would stop this process. So signals are blocked during the
# fork, and wait until the previous handlers are restored in the child.


def _before_fork() -> None:
    if StopSignal.installed is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _after_fork_in_parent() -> None:
    if StopSignal.installed is not None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _after_fork_in_child() -> None:
    if StopSignal.installed is not None:
        StopSignal.installed.restore_handlers()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
