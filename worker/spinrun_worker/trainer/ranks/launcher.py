"""The launcher: starts the ranks of one node and ends as they end.

    python -m spinrun_worker.trainer.launch --nodes 2 --procs-per-node 8 --node-rank 1 --rendezvous HOST:PORT <the ranks' own>

    a signal to the launcher   goes to the ranks, which have --grace-seconds to end
    a rank fails               the others have --peer-seconds to end by themselves
    the launcher dies          the kernel kills the ranks

It sets the environment that torchrun sets, but not by torchrun's elastic agent, for four reasons. An attempt never changes its
ranks, and rank 0 must be on node 0, where the operator looks for it; the agent numbers nodes as it likes. Exit codes are a
contract; the agent's is 1 whatever a rank's was. When the first rank ends after a SIGTERM, the agent sends another to those that
still write the checkpoint, and kills them 30 s later. And it holds all of torch beside the ranks; this imports none of it.
"""

import argparse
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from spinrun_api.documents import InvalidDocumentError, read_run
from spinrun_protocol.child_process import die_with_parent
from spinrun_protocol.commands import RENDEZVOUS_PORT
from spinrun_protocol.exit_codes import ExitCode
from spinrun_protocol.logs import facts_of, log_to_stderr
from spinrun_protocol.termination import LastWords
from spinrun_worker.trainer.ranks import termination

logger = logging.getLogger(__name__)

STORE_FD = "SPINRUN_STORE_FD"
"""Descriptor of the socket, bound and listening, at which rank 0 serves the store that the ranks meet at."""

RANK_MODULE = "spinrun_worker.trainer"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
WATCHED = {*STOP_SIGNALS, signal.SIGCHLD}
MAX_WAIT_SECONDS = 3600.0


@dataclass(frozen=True)
class Ending:
    """How a rank ended."""

    rank: int
    code: int
    """Exit code; minus the signal's number when a signal ended it."""
    killed_by_us: bool = False
    """Whether its time to end was over."""
    asked_to_stop: bool = False
    """Whether a stop signal had been passed on to it."""

    @property
    def exit_code(self) -> int:
        """As a shell would say it: 128 plus the signal's number. A rank that ended by the stop signal itself, before it could
        handle it, was preempted."""
        if self.asked_to_stop and -self.code in STOP_SIGNALS:
            return ExitCode.PREEMPTED
        return self.code if self.code >= 0 else 128 - self.code

    @property
    def precedence(self) -> int:
        """How near to the cause this is when ranks end differently; lowest first.

        A rank that names its cause knows it. One killed from outside did not fail because of another. A rank that fails
        otherwise, or aborts, may only have lost its peers.
        """
        if self.exit_code == 0:
            return 6
        if self.killed_by_us:
            return 5
        if self.exit_code == ExitCode.PREEMPTED:
            return 4
        if self.exit_code in (ExitCode.INVALID_CONFIGURATION, ExitCode.LEDGER_UNAVAILABLE):
            return 0
        if self.code >= 0:
            return 2
        return 3 if -self.code in (signal.SIGABRT, signal.SIGTERM) else 1


def decisive(endings: Sequence[Ending]) -> Ending:
    """The ending that says how the node ended: by precedence, then the earliest. endings: in the order in which they came."""
    return min(endings, key=lambda ending: ending.precedence)


class Ranks:
    """The ranks of this node, from their start to their end. SIGCHLD and the stop signals must be blocked."""

    def __init__(
        self, command: Sequence[str], environments: Mapping[int, Mapping[str, str]], store: socket.socket | None = None
    ) -> None:
        """Start one process for each rank. environments: what each adds to ours. store: rank 0 inherits it."""
        self._launcher = os.getpid()
        self._asked_to_stop = False
        self._killed = False
        self._running = {
            rank: subprocess.Popen(
                command,
                env={**os.environ, **environment},
                pass_fds=(store.fileno(),) if rank == 0 and store is not None else (),
                # A terminal's Ctrl-C would otherwise reach the ranks past the launcher, and so twice.
                start_new_session=True,
                preexec_fn=self._before_exec,  # safe here: the launcher has one thread
            )
            for rank, environment in environments.items()
        }

    def _before_exec(self) -> None:
        """In the child: die with the launcher, and take the signals that the launcher blocks."""
        if not die_with_parent(self._launcher):
            os._exit(ExitCode.FAILED)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)

    def wait(self, *, grace_seconds: float, peer_seconds: float) -> list[Ending]:
        """Wait until all have ended; how they did, in order. Passes stop signals on and ends those that take too long."""
        endings: list[Ending] = []
        deadline = math.inf
        while self._running:
            seconds = deadline - time.monotonic()
            received = signal.sigtimedwait(WATCHED, min(max(seconds, 0.0), MAX_WAIT_SECONDS))
            if received is not None and received.si_signo in STOP_SIGNALS:
                self._pass_on(received.si_signo)
                deadline = min(deadline, time.monotonic() + grace_seconds)
            for ending in self._reap():
                logger.log(logging.ERROR if ending.exit_code else logging.INFO, "%s", ending)
                endings.append(ending)
                if ending.exit_code:
                    # A preempted rank ends in good order; its peers may still be writing.
                    patience = grace_seconds if ending.exit_code == ExitCode.PREEMPTED else peer_seconds
                    deadline = min(deadline, time.monotonic() + patience)
            if time.monotonic() >= deadline:
                self._kill()
                deadline = math.inf
        return endings

    def _pass_on(self, number: int) -> None:
        logger.warning("%s: passed on to %d ranks", signal.Signals(number).name, len(self._running))
        self._asked_to_stop = True
        for process in self._running.values():
            # To the rank alone: its own children work on until it ends them.
            os.kill(process.pid, number)

    def _kill(self) -> None:
        logger.error("ranks %s have not ended in time: killing them", ", ".join(map(str, self._running)))
        self._killed = True
        for process in self._running.values():
            os.killpg(process.pid, signal.SIGKILL)

    def _reap(self) -> Iterator[Ending]:
        for rank, process in list(self._running.items()):
            # Its children go first, while its number, which is its group's, cannot belong to anybody else.
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            del self._running[rank]
            yield Ending(rank, process.wait(), killed_by_us=self._killed, asked_to_stop=self._asked_to_stop)


def open_store(port: int | None) -> socket.socket:
    """The socket that the ranks meet at, already listening: who comes before rank 0 serves it waits in its queue.

    port: open to other nodes; None: any free one, for this machine only. Raises OSError when the port is taken.
    """
    if port is None:
        return socket.create_server(("127.0.0.1", 0))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def parse_rendezvous(rendezvous: str) -> tuple[str, int]:
    """Host and port of HOST or HOST:PORT. Raises ValueError when it is neither."""
    parts = urlsplit(f"//{rendezvous}")
    if not parts.hostname:
        raise ValueError(f"--rendezvous must be HOST:PORT of node 0, got {rendezvous!r}")
    return parts.hostname, parts.port or RENDEZVOUS_PORT


def rank_environments(
    *, nodes: int, procs_per_node: int, node_rank: int, address: tuple[str, int], store: socket.socket | None
) -> dict[int, dict[str, str]]:
    """What each rank of this node finds in its environment, by global rank; the names are torchrun's."""
    host, port = address
    shared = {
        "WORLD_SIZE": str(nodes * procs_per_node),
        "LOCAL_WORLD_SIZE": str(procs_per_node),
        "GROUP_RANK": str(node_rank),
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
    }
    environments: dict[int, dict[str, str]] = {}
    for local_rank in range(procs_per_node):
        rank = node_rank * procs_per_node + local_rank
        environments[rank] = shared | {"RANK": str(rank), "LOCAL_RANK": str(local_rank)}
    if store is not None:
        environments[0][STORE_FD] = str(store.fileno())
    return environments


def words(ending: Ending) -> LastWords:
    """What there is to say when the ranks themselves said nothing, or could not."""
    code, rank = ending.exit_code, f"rank {ending.rank}"
    if code == ExitCode.PREEMPTED:
        message = f"{rank} was asked to stop before it could write a checkpoint; the next attempt goes on from the last one"
        return LastWords(result="Preempted", reason="Preempted", message=message, exit_code=code)
    if ending.killed_by_us:
        message = f"{rank} did not end in time and was killed; allow more with --grace-seconds and the pod's grace period"
        return LastWords(result="Failed", reason="GraceExceeded", message=message, exit_code=code)
    if ending.code >= 0:
        message = f"{rank} ended with exit code {ending.code} and said no more: look into its log"
        return LastWords(result="Failed", reason="RankFailed", message=message, exit_code=code)
    name = signal.Signals(-ending.code).name
    hint = "; most likely memory ran out: raise its limit or lower trainer.tokensPerMicroBatch" if name == "SIGKILL" else ""
    return LastWords(result="Failed", reason="RankKilled", message=f"{rank} was killed by {name}{hint}", exit_code=code)


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's own options, and the rest, which are the ranks'. Ends with exit code 2 when an option is wrong."""
    parser = argparse.ArgumentParser("spinrun_worker.trainer.launch", description=__doc__, allow_abbrev=False)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--procs-per-node", type=int, default=1)
    parser.add_argument("--node-rank", type=int, default=0)
    parser.add_argument("--rendezvous", default="", help="HOST:PORT of node 0; needed with several nodes")
    parser.add_argument("--grace-seconds", type=float, default=300.0, help="time to end after a stop signal")
    parser.add_argument("--peer-seconds", type=float, default=10.0, help="time to end after another rank has failed")
    parser.add_argument("--module", default=RANK_MODULE, help="what a rank runs")
    options, rest = parser.parse_known_args(arguments)
    if options.nodes < 1 or options.procs_per_node < 1:
        parser.error("--nodes and --procs-per-node must be at least 1")
    if not 0 <= options.node_rank < options.nodes:
        parser.error(f"--node-rank must be from 0 to {options.nodes - 1}, got {options.node_rank}")
    options.address = None
    if options.nodes > 1:
        try:
            options.address = parse_rendezvous(options.rendezvous)
        except ValueError as error:
            parser.error(str(error))
    return options, rest


def run_facts(rank_arguments: Sequence[str]) -> dict[str, object]:
    """What tells this run's lines of log from those of others; nothing when its file cannot be read, which the ranks will say."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--run", type=Path, default=Path())
    parser.add_argument("--attempt", type=int)
    known, _ = parser.parse_known_args(rank_arguments)
    try:
        return facts_of(read_run(known.run), attempt=known.attempt)
    except InvalidDocumentError:
        return {}


def launch(options: argparse.Namespace, rank_arguments: Sequence[str]) -> Ending:
    """Start this node's ranks and wait for them. Raises OSError when they cannot be started."""
    address, store = options.address, None
    if options.node_rank == 0 and options.nodes * options.procs_per_node > 1:
        store = open_store(address[1] if address else None)
        # By the loopback: the name of a pod may not resolve before the pod is ready.
        address = ("127.0.0.1", store.getsockname()[1])
    environments = rank_environments(
        nodes=options.nodes,
        procs_per_node=options.procs_per_node,
        node_rank=options.node_rank,
        address=address or ("127.0.0.1", RENDEZVOUS_PORT),
        store=store,
    )
    ranks = Ranks([sys.executable, "-m", options.module, *rank_arguments], environments, store)
    if store is not None:
        store.close()
    return decisive(ranks.wait(grace_seconds=options.grace_seconds, peer_seconds=options.peer_seconds))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ranks of this node; the exit code of the one that decided."""
    facts = log_to_stderr("launcher")
    options, rank_arguments = parse(arguments)
    facts.always |= run_facts(rank_arguments)
    facts.now = lambda: {"node": options.node_rank}
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    termination.hush()
    try:
        ending = launch(options, rank_arguments)
    except OSError as error:
        termination.say(termination.describe_failure(error))
        return ExitCode.FAILED
    if ending.exit_code != ExitCode.COMPLETE:
        # A rank that was killed from outside said nothing; what the others said is only that they lost it.
        termination.say(words(ending), replace=ending.code < 0 and not ending.killed_by_us)
    return ending.exit_code
