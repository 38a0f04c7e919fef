"""One rank of the trainer: `python -m spinrun_worker.trainer`, started by launch.py."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn, TypedDict

from transformers.utils.logging import disable_progress_bar

from spinrun_api.documents import read_run
from spinrun_protocol.exit_codes import ExitCode
from spinrun_protocol.logs import facts_of, log_to_stderr
from spinrun_protocol.termination import TerminationMessage
from spinrun_protocol.wire import Progress
from spinrun_worker.trainer.build import Options, run_uid, train
from spinrun_worker.trainer.ranks.distributed import join_ranks
from spinrun_worker.trainer.ranks.stop import StopSignal
from spinrun_worker.trainer.ranks.termination import describe_failure, say
from spinrun_worker.trainer.reporting.board import ProgressBoard
from spinrun_worker.trainer.reporting.trackers import is_left_behind

logger = logging.getLogger("spinrun_worker.trainer")


class Place(TypedDict, total=False):
    """Where the run is, as last words say it."""

    window: int | None
    step: int | None
    version: int | None
    accuracy: float | None
    initial_accuracy: float | None


def main(arguments: list[str]) -> int:
    """Run this rank to its end; returns the exit code. Whatever happens is said in the last words."""
    facts = log_to_stderr("trainer")
    rank = int(os.environ.get("RANK", "0"))
    facts.now = lambda: {"rank": rank}
    for name in ("httpx", "httpx2"):  # which of them speaks to the Hub depends on the version of huggingface_hub
        logging.getLogger(name).setLevel(logging.WARNING)
    disable_progress_bar()  # a log is not a terminal
    stop = StopSignal()
    board: ProgressBoard | None = None
    try:
        options = parse_options(arguments)
        board = make_board(options)
        facts.always |= facts_of(options.run, attempt=options.attempt)
        facts.now = lambda: {"rank": rank, "window": board.now.window, "step": board.now.step}
        with join_ranks(f"{run_uid(options.run)}-{options.attempt}") as ranks:
            stop.share(ranks.store, rank=ranks.rank)
            train(options, ranks, stop, board)
            if ranks.is_rank0:
                say(complete(board))
        return ExitCode.COMPLETE
    except Exception as error:
        words = describe_failure(error, **(place(board) if board else Place()))
        unforeseen = words.exit_code == ExitCode.FAILED
        logger.log(logging.ERROR if words.result == "Failed" else logging.INFO, "%s", error, exc_info=unforeseen)
        say(words)
        return words.exit_code


def parse_options(arguments: list[str]) -> Options:
    """The options of spinrun_protocol.commands.trainer that reach the ranks. Raises InvalidDocumentError for a bad run file."""
    parser = argparse.ArgumentParser(prog="python -m spinrun_worker.trainer")
    parser.add_argument("--run", type=Path, required=True, help="the resolved SpinRun")
    parser.add_argument("--ledger", type=Path, required=True, help="the run's own folder")
    parser.add_argument("--attempt", type=int, required=True, help="number of this life of the trainer, from 1")
    parser.add_argument("--port", type=int, required=True, help="port of rank 0's /progress and /metrics; 0: any")
    parser.add_argument("--host", default="", help="address that rank 0 listens on; empty: all")
    known = parser.parse_args(arguments)
    return Options(run=read_run(known.run), ledger=known.ledger, attempt=known.attempt, host=known.host, port=known.port)


def make_board(options: Options) -> ProgressBoard:
    """The state before anything is known."""
    return ProgressBoard(
        Progress(
            uid=run_uid(options.run),
            attempt=options.attempt,
            activity="starting",
            window=0,
            windows=0,
            step=0,
            total_steps=0,
        )
    )


def complete(board: ProgressBoard) -> TerminationMessage:
    """The last words of a run that reached its end."""
    now = board.now
    accuracy = board.accuracies.get(now.version or 0)
    before, best = board.accuracies.get(0), now.best
    shown = "" if accuracy is None or before is None else f": accuracy {before:.3f} -> {accuracy:.3f}"
    shown += f", best {best.accuracy:.3f} at version {best.version}" if shown and best else ""
    return TerminationMessage(
        result="Complete",
        reason="Completed",
        message=f"{now.windows} windows, {now.step} steps{shown}",
        exit_code=ExitCode.COMPLETE,
        **place(board),
    )


def place(board: ProgressBoard) -> Place:
    """Where the run is, as last words say it."""
    now = board.now
    return {
        "window": now.window,
        "step": now.step,
        "version": now.version,
        "accuracy": now.metrics.accuracy,
        "initial_accuracy": board.accuracies.get(0),
    }


def leave(code: int) -> NoReturn:
    """End the process, without waiting for a tracker that hangs."""
    if is_left_behind():
        logging.shutdown()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
