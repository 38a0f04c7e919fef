"""The launcher: starts the ranks of one node through torch's elastic agent, which is torchrun, and ends as they end.

    python -m spinrun_worker.trainer.launch --nodes 2 --procs-per-node 8 --node-rank 1 --rendezvous HOST:PORT <the ranks' own>

torchrun's command line would do but for two things, which this adds. Its exit code is 1 whatever a rank's was; here it is the
code of the rank that failed first, because exit codes are a contract with the operator. And it gives ranks half a minute to
end after a signal; here they get --grace-seconds, because they write a checkpoint.

    a signal to the launcher   goes to the ranks, which have --grace-seconds to end
    a rank fails               the agent ends the others
    the launcher dies          the ranks end too, see lifeline.py
"""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from types import FrameType
from urllib.parse import urlsplit
from uuid import uuid4

import psutil
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from spinrun_api.exit_codes import ExitCode
from spinrun_api.processes import RENDEZVOUS_PORT
from spinrun_api.wire import LastWords
from spinrun_worker.trainer import last_words

logger = logging.getLogger(__name__)

RANK_MODULE = "spinrun_worker.trainer"
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
JOIN_SECONDS = 3600
"""How long nodes wait for each other: pods of one attempt may wait for different nodes and images."""


@dataclass(frozen=True)
class Ending:
    """How the rank ended that decides how the node ends: the first that failed, or any when none did."""

    rank: int
    code: int
    """Exit code; minus the signal's number when a signal ended it."""
    asked_to_stop: bool = False
    """Whether a stop signal had been passed on to the ranks."""
    out_of_time: bool = False
    """Whether the ranks did not end in the time they had after it."""

    @property
    def exit_code(self) -> int:
        """As a shell would say it: 128 plus the signal's number. A rank that ended by the stop signal itself, before it could
        handle it, was preempted."""
        if self.asked_to_stop and -self.code in STOP_SIGNALS:
            return ExitCode.PREEMPTED
        return self.code if self.code >= 0 else 128 - self.code


class StopRelay:
    """Passes stop signals on to this node's ranks, and kills those that take longer than the grace period."""

    def __init__(self, grace_seconds: float) -> None:
        """Handle the stop signals from now on. In the main thread."""
        self.asked_to_stop = False
        self.out_of_time = False
        self._grace_seconds = grace_seconds
        self._timer: threading.Timer | None = None
        for number in STOP_SIGNALS:
            signal.signal(number, self._pass_on)

    def close(self) -> None:
        """Forget the grace period: the ranks have ended."""
        if self._timer is not None:
            self._timer.cancel()

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        self.asked_to_stop = True
        if not psutil.Process().children():
            last_words.say(words(Ending(0, -number, asked_to_stop=True)))
            os._exit(ExitCode.PREEMPTED)  # the ranks have not been started yet
        self._send(number)
        if self._timer is None:
            self._timer = threading.Timer(self._grace_seconds, self._kill)
            self._timer.daemon = True
            self._timer.start()

    def _kill(self) -> None:
        logger.error("the ranks have not ended in %g s: killing them", self._grace_seconds)
        self.out_of_time = True
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        # To the ranks alone, which are our only children: their own children work on until they end them.
        for rank in psutil.Process().children():
            try:
                rank.send_signal(number)
            except psutil.NoSuchProcess:
                continue


def run_ranks(options: argparse.Namespace, rank_arguments: Sequence[str]) -> Ending:
    """Run this node's ranks to their end. Raises what torch raises when the nodes do not meet."""
    relay = StopRelay(options.grace_seconds)
    try:
        with TemporaryDirectory(prefix="spinrun-launch-") as logs:
            elastic_launch(launch_config(options, logs), sys.executable)("-m", options.module, *rank_arguments)
    except ChildFailedError as error:
        rank, code = decisive({rank: failure.exitcode for rank, failure in error.failures.items()})
        return Ending(rank, code, asked_to_stop=relay.asked_to_stop, out_of_time=relay.out_of_time)
    finally:
        relay.close()
    return Ending(options.node_rank * options.procs_per_node, ExitCode.COMPLETE)


def decisive(codes: Mapping[int, int]) -> tuple[int, int]:
    """The rank, with its code, that is nearest to the cause among those that failed at about the same moment.

    A rank that names its cause knows it; one killed from outside did not fail because of another; others may only have lost
    their peers, or been ended by the agent because one had failed. Among equals the lowest.
    """

    def distance(rank: int) -> tuple[int, int]:
        code = codes[rank]
        if code in (ExitCode.INVALID_CONFIGURATION, ExitCode.LEDGER_UNAVAILABLE):
            return 0, rank
        if code >= 0:
            return 2, rank
        return (3 if -code in (signal.SIGTERM, signal.SIGABRT) else 1), rank

    rank = min(codes, key=distance)
    return rank, codes[rank]


def launch_config(options: argparse.Namespace, logs: str) -> LaunchConfig:
    """What torch is told. Ranks never restart by themselves: a new attempt is the operator's or the supervisor's decision."""
    config = LaunchConfig(
        min_nodes=options.nodes,
        max_nodes=options.nodes,
        nproc_per_node=options.procs_per_node,
        run_id=str(uuid4()),
        role="trainer",
        logs_specs=DefaultLogsSpecs(log_dir=logs),
        max_restarts=0,
        monitor_interval=0.1,
        # The stop signals are ours: torch would send them on itself, with too little time.
        signals_to_handle="SIGQUIT",
        shutdown_timeout=options.peer_seconds,
        local_addr="127.0.0.1" if options.node_rank == 0 else None,
    )
    if options.nodes == 1:
        config.rdzv_backend, config.rdzv_endpoint = "c10d", "localhost:0"
        return config
    host, port = options.address
    # Static: rank 0 is on node 0, whose address the operator knows, and a restarted attempt has the same ranks, which an exact
    # resume needs. Node 0 calls itself by the loopback, as a pod's name may not resolve before the pod is ready.
    config.rdzv_backend = "static"
    config.rdzv_endpoint = f"{'127.0.0.1' if options.node_rank == 0 else host}:{port}"
    config.rdzv_configs = {"rank": options.node_rank, "timeout": JOIN_SECONDS}
    config.run_id = "spinrun"  # the same on all nodes
    return config


def parse_rendezvous(rendezvous: str) -> tuple[str, int]:
    """Host and port of HOST or HOST:PORT. Raises ValueError when it is neither."""
    parts = urlsplit(f"//{rendezvous}")
    if not parts.hostname:
        raise ValueError(f"--rendezvous must be HOST:PORT of node 0, got {rendezvous!r}")
    return parts.hostname, parts.port or RENDEZVOUS_PORT


def words(ending: Ending) -> LastWords:
    """What there is to say when the ranks themselves said nothing, or could not."""
    code, rank = ending.exit_code, f"rank {ending.rank}"
    if ending.out_of_time:
        message = f"{rank} did not end in time and was killed; allow more with --grace-seconds and the pod's grace period"
        return LastWords(result="Failed", reason="GraceExceeded", message=message, exit_code=code)
    if code == ExitCode.PREEMPTED:
        message = f"{rank} was stopped; the next attempt goes on from the last checkpoint"
        return LastWords(result="Preempted", reason="Preempted", message=message, exit_code=code)
    if ending.code >= 0:
        message = f"{rank} ended with exit code {ending.code} and said no more; its log may"
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
    parser.add_argument("--peer-seconds", type=int, default=10, help="time to end after another rank has failed")
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ranks of this node; the exit code of the one that decided."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s launcher %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("torch").setLevel(logging.ERROR)
    options, rank_arguments = parse(arguments)
    last_words.hush()
    try:
        ending = run_ranks(options, rank_arguments)
    except Exception as error:
        logger.exception("the ranks could not be started")
        last_words.say(last_words.describe_failure(error))
        return ExitCode.FAILED
    if ending.exit_code != ExitCode.COMPLETE:
        # A rank that a signal ended said nothing; what the others said is only that they lost it.
        last_words.say(words(ending), replace=ending.code < 0 and not ending.asked_to_stop)
    return ending.exit_code


if __name__ == "__main__":
    sys.exit(main())
