import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from textwrap import dedent
from typing import Any

import pytest

from spinrun_worker.trainer.ranks.distributed import Distributed
from spinrun_worker.trainer.ranks.stop import StopSignal

LIMIT_SECONDS = 120


@pytest.fixture
def stop() -> Iterator[StopSignal]:
    stop = StopSignal()
    yield stop
    stop.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_asks_to_stop(stop: StopSignal, number: signal.Signals) -> None:
    assert not stop.requested()
    os.kill(os.getpid(), number)
    assert stop.wait(LIMIT_SECONDS)
    assert stop.requested()


def test_waiting_ends_without_a_request(stop: StopSignal) -> None:
    assert not stop.wait(0.01)


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    stop = StopSignal()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] != before
    stop.close()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_signal_to_a_forked_child_is_the_childs(stop: StopSignal) -> None:
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(1)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
    assert not stop.requested()


def test_second_signal_ends_the_process_at_once() -> None:
    program = """
        import os, signal
        from spinrun_worker.trainer.ranks.stop import StopSignal
        stop = StopSignal()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            stop.wait(30)
        signal.pause()
    """
    ended = subprocess.run([sys.executable, "-c", dedent(program)], timeout=LIMIT_SECONDS, check=False)
    assert ended.returncode == 3


def wait_while_another_is_asked(ranks: Distributed) -> dict[str, bool]:
    """Rank 1 is asked to stop while it sits in a collective for which rank 0, waiting for rollouts, is not there yet."""
    stop = StopSignal()
    stop.share(ranks.store, rank=ranks.rank)
    if ranks.is_rank0:
        before = ranks.from_rank0(lambda: stop.requested())
        heard = ranks.from_rank0(lambda: stop.wait(LIMIT_SECONDS))
    else:
        before = ranks.from_rank0(lambda: True)
        subprocess.Popen([sys.executable, "-c", f"import os; os.kill({os.getpid()}, {signal.SIGTERM:d})"])
        heard = ranks.from_rank0(lambda: False)
    asked = stop.wait(LIMIT_SECONDS)
    stop.close()
    return {"before": before, "heard": heard, "asked": asked}


def test_rank_0_hears_of_a_signal_to_another_rank_in_a_collective(run_ranks: Any) -> None:
    assert run_ranks(2, wait_while_another_is_asked) == [{"before": False, "heard": True, "asked": True}] * 2


def share_with_a_store_that_goes(ranks: Distributed) -> bool:
    class GoneStore:
        def clone(self) -> "GoneStore":
            return self

        def set(self, *_: str) -> None:
            raise RuntimeError("connection reset")

    stop = StopSignal()
    stop.share(GoneStore(), rank=1)  # type: ignore[arg-type]
    os.kill(os.getpid(), signal.SIGTERM)
    asked = stop.wait(LIMIT_SECONDS)
    stop.close()
    return asked


def test_rank_stops_although_the_store_is_gone(run_ranks: Any) -> None:
    assert run_ranks(1, share_with_a_store_that_goes) == [True]
