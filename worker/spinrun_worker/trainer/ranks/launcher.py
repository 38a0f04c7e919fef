"""The launcher: starts the ranks of one node and exits as they exit.

    python -m spinrun_worker.trainer.launch --nodes 2 --procs-per-node 8 --node-rank 1 --rendezvous HOST:PORT <the ranks' own>

    a signal to the launcher   is passed to the ranks, which have --grace-seconds to exit
    a rank fails               the others have --peer-seconds to exit on their own
    the launcher dies          the kernel kills the ranks

It sets the environment that torchrun sets, but without torchrun's elastic agent, for four reasons. An attempt never changes its
ranks, and rank 0 must be on node 0, where the operator looks for it; the agent numbers nodes as it likes. Exit codes are a
contract; the agent's is 1 whatever a rank's was. When a rank fails, the agent kills the others 30 s later, whatever its
--shutdown-timeout says (torch 2.13). And it holds all of torch next to the ranks; this imports none of it.
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
from spinrun_protocol.termination import TerminationMessage
from spinrun_worker.trainer.ranks import termination

logger = logging.getLogger(__name__)

STORE_FD = "SPINRUN_STORE_FD"
"""Descriptor of the bound and listening socket on which rank 0 serves the store at which the ranks meet."""

RANK_MODULE = "spinrun_worker.trainer"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
WATCHED = {*STOP_SIGNALS, signal.SIGCHLD}
MAX_WAIT_SECONDS = 3600.0


@dataclass(frozen=True)
class RankExit:
    """How a rank's process ended."""

    rank: int
    code: int
    """Exit code; minus the signal's number if a signal ended it."""
    killed_by_us: bool = False
    """Whether its time to exit was up."""
    asked_to_stop: bool = False
    """Whether a stop signal had been passed on to it."""

    def __str__(self) -> str:
        by = f"killed by {signal.Signals(-self.code).name}" if self.code < 0 else f"exit code {self.code}"
        return f"rank {self.rank} ended: {by}"

    @property
    def exit_code(self) -> int:
        """The code as a shell reports it: 128 plus the signal's number.

        A rank that the stop signal itself ended, before it could handle it, was preempted.
        """
        if self.asked_to_stop and -self.code in STOP_SIGNALS:
            return ExitCode.PREEMPTED
        return self.code if self.code >= 0 else 128 - self.code

    @property
    def precedence(self) -> int:
        """How close to the cause this exit is when ranks end differently; lowest first.

        A rank that names its cause knows it. One that was killed from outside did not fail because of another. A rank that fails
        in any other way, or aborts, may merely have lost its peers.
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


def decisive(exits: Sequence[RankExit]) -> RankExit:
    """The exit that says how the node ended: by precedence, then the earliest.

    Args:
        exits: In the order in which they happened.
    """
    return min(exits, key=lambda rank_exit: rank_exit.precedence)


class RankProcesses:
    """The processes of this node's ranks, from start to end. SIGCHLD and the stop signals must be blocked."""

    def __init__(
        self, command: Sequence[str], environments: Mapping[int, Mapping[str, str]], store: socket.socket | None = None
    ) -> None:
        """Start one process for each rank.

        Args:
            command: What a rank runs.
            environments: By rank, what its environment adds to ours.
            store: Socket that rank 0 inherits.
        """
        self._launcher = os.getpid()
        self._asked_to_stop = False
        self._killed = False
        self._running = {
            rank: subprocess.Popen(
                command,
                env={**os.environ, **environment},
                pass_fds=(store.fileno(),) if rank == 0 and store is not None else (),
                # A terminal's Ctrl-C would otherwise also reach the ranks directly, and so twice.
                start_new_session=True,
                preexec_fn=self._before_exec,  # safe here: the launcher has one thread
            )
            for rank, environment in environments.items()
        }

    def _before_exec(self) -> None:
        """In the child: die with the launcher, and unblock the signals that the launcher blocks."""
        if not die_with_parent(self._launcher):
            os._exit(ExitCode.FAILED)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, WATCHED)

    def wait(self, *, grace_seconds: float, peer_seconds: float) -> list[RankExit]:
        """Wait until all ranks have ended. Passes stop signals on, and kills ranks that take too long.

        Args:
            grace_seconds: Time to exit after a stop signal.
            peer_seconds: Time to exit after another rank has failed.

        Returns:
            How the ranks ended, in order.
        """
        exits: list[RankExit] = []
        deadline = math.inf
        while self._running:
            seconds = deadline - time.monotonic()
            received = signal.sigtimedwait(WATCHED, min(max(seconds, 0.0), MAX_WAIT_SECONDS))
            if received is not None and received.si_signo in STOP_SIGNALS:
                self._pass_on(received.si_signo)
                deadline = min(deadline, time.monotonic() + grace_seconds)
            for rank_exit in self._reap():
                logger.log(logging.ERROR if rank_exit.exit_code else logging.INFO, "%s", rank_exit)
                exits.append(rank_exit)
                if rank_exit.exit_code:
                    # A preempted rank exits in good order; its peers may still be writing.
                    wait = grace_seconds if rank_exit.exit_code == ExitCode.PREEMPTED else peer_seconds
                    deadline = min(deadline, time.monotonic() + wait)
            if time.monotonic() >= deadline:
                self._kill()
                deadline = math.inf
        return exits

    def _pass_on(self, number: int) -> None:
        logger.warning("%s: passed on to %d ranks", signal.Signals(number).name, len(self._running))
        self._asked_to_stop = True
        for process in self._running.values():
            # To the rank only: its own children keep working until it ends them.
            os.kill(process.pid, number)

    def _kill(self) -> None:
        logger.error("ranks %s have not exited in time: killing them", ", ".join(map(str, self._running)))
        self._killed = True
        for process in self._running.values():
            os.killpg(process.pid, signal.SIGKILL)

    def _reap(self) -> Iterator[RankExit]:
        for rank, process in list(self._running.items()):
            # Its children are killed first, while its pid, which is also its group's, cannot have been reused.
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            del self._running[rank]
            yield RankExit(rank, process.wait(), killed_by_us=self._killed, asked_to_stop=self._asked_to_stop)


def open_store(port: int | None) -> socket.socket:
    """The socket at which the ranks meet, already listening: connections made before rank 0 serves it wait in its queue.

    Args:
        port: Port to open for other nodes. None means any free one, for this machine only.

    Raises:
        OSError: The port is in use.
    """
    if port is None:
        return socket.create_server(("127.0.0.1", 0))
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def parse_rendezvous(rendezvous: str) -> tuple[str, int]:
    """Host and port of HOST or HOST:PORT.

    Raises:
        ValueError: It is neither.
    """
    parts = urlsplit(f"//{rendezvous}")
    if not parts.hostname:
        raise ValueError(f"--rendezvous must be HOST:PORT of node 0, got {rendezvous!r}")
    return parts.hostname, parts.port or RENDEZVOUS_PORT


def rank_environments(
    *, nodes: int, procs_per_node: int, node_rank: int, address: tuple[str, int], store: socket.socket | None
) -> dict[int, dict[str, str]]:
    """The environment of each rank of this node, by global rank; the names are torchrun's.

    Args:
        nodes: Number of nodes.
        procs_per_node: Ranks on each node.
        node_rank: Number of this node.
        address: Host and port at which the ranks meet.
        store: The socket that rank 0 inherits, on node 0.
    """
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


def words(rank_exit: RankExit) -> TerminationMessage:
    """The last words for ranks that said nothing themselves, or could not."""
    code, rank = rank_exit.exit_code, f"rank {rank_exit.rank}"
    if code == ExitCode.PREEMPTED:
        message = f"{rank} was asked to stop before it could write a checkpoint; the next attempt resumes from the last one"
        return TerminationMessage(result="Preempted", reason="Preempted", message=message, exit_code=code)
    if rank_exit.killed_by_us:
        message = f"{rank} did not exit in time and was killed; allow more with --grace-seconds and the pod's grace period"
        return TerminationMessage(result="Failed", reason="GraceExceeded", message=message, exit_code=code)
    if rank_exit.code >= 0:
        message = f"{rank} exited with code {rank_exit.code} and no message: see its log"
        return TerminationMessage(result="Failed", reason="RankFailed", message=message, exit_code=code)
    name = signal.Signals(-rank_exit.code).name
    hint = "; most likely OOM-killed: raise the memory limit or lower trainer.tokensPerMicroBatch" if name == "SIGKILL" else ""
    return TerminationMessage(result="Failed", reason="RankKilled", message=f"{rank} was killed by {name}{hint}", exit_code=code)


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The launcher's own options, and the rest, which are the ranks'. Exits with code 2 if an option is not valid."""
    parser = argparse.ArgumentParser("spinrun_worker.trainer.launch", description=__doc__, allow_abbrev=False)
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--procs-per-node", type=int, default=1)
    parser.add_argument("--node-rank", type=int, default=0)
    parser.add_argument("--rendezvous", default="", help="HOST:PORT of node 0; required with several nodes")
    parser.add_argument("--grace-seconds", type=float, default=300.0, help="time to exit after a stop signal")
    parser.add_argument("--peer-seconds", type=float, default=10.0, help="time to exit after another rank has failed")
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
    """What identifies this run's log lines; nothing when its file cannot be read, which the ranks will report."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--run", type=Path, default=Path())
    parser.add_argument("--attempt", type=int)
    known, _ = parser.parse_known_args(rank_arguments)
    try:
        return facts_of(read_run(known.run), attempt=known.attempt)
    except InvalidDocumentError:
        return {}


def launch(options: argparse.Namespace, rank_arguments: Sequence[str]) -> RankExit:
    """Start this node's ranks and wait for them.

    Args:
        options: The launcher's own.
        rank_arguments: Passed to each rank.

    Returns:
        The exit that says how the node ended.

    Raises:
        OSError: The ranks cannot be started.
    """
    address, store = options.address, None
    if options.node_rank == 0 and options.nodes * options.procs_per_node > 1:
        store = open_store(address[1] if address else None)
        # Over the loopback: the name of a pod may not resolve before the pod is ready.
        address = ("127.0.0.1", store.getsockname()[1])
    environments = rank_environments(
        nodes=options.nodes,
        procs_per_node=options.procs_per_node,
        node_rank=options.node_rank,
        address=address or ("127.0.0.1", RENDEZVOUS_PORT),
        store=store,
    )
    ranks = RankProcesses([sys.executable, "-m", options.module, *rank_arguments], environments, store)
    if store is not None:
        store.close()
    return decisive(ranks.wait(grace_seconds=options.grace_seconds, peer_seconds=options.peer_seconds))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ranks of this node; returns the exit code of the decisive one."""
    facts = log_to_stderr("launcher")
    options, rank_arguments = parse(arguments)
    facts.always |= run_facts(rank_arguments)
    facts.now = lambda: {"node": options.node_rank}
    signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
    termination.clear()
    try:
        rank_exit = launch(options, rank_arguments)
    except OSError as error:
        termination.say(termination.describe_failure(error))
        return ExitCode.FAILED
    if rank_exit.exit_code != ExitCode.COMPLETE:
        # A rank that was killed from outside said nothing; the others only said that they lost it.
        termination.say(words(rank_exit), replace=rank_exit.code < 0 and not rank_exit.killed_by_us)
    return rank_exit.exit_code
