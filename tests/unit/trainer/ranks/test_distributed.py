import os
from typing import Any

from spinrun_worker.errors import ConfigurationError
from spinrun_worker.ledger import LedgerUnavailableError
from spinrun_worker.trainer.ranks.distributed import Distributed


class DemandingError(Exception):
    """Its constructor takes more than a message, which pickle does not know."""

    def __init__(self, path: str, *, remedy: str) -> None:
        super().__init__(f"{path}: {remedy}")
        self.remedy = remedy


def failing(error: Exception) -> Any:
    raise error


def caught(action: Any) -> tuple[str, str, dict[str, Any]]:
    try:
        action()
    except Exception as error:  # noqa: BLE001 - the test looks at its class
        return type(error).__name__, str(error), dict(vars(error))
    return "", "", {}


def exchange(ranks: Distributed) -> dict[str, Any]:
    ranks.barrier()
    return {
        "who": (ranks.rank, ranks.world_size, ranks.is_rank0, ranks.device.type),
        "broadcast": ranks.broadcast("decision" if ranks.is_rank0 else None),
        "gather": ranks.gather(ranks.rank * 10),
        "any": (ranks.any(ranks.rank == 1), ranks.any(False)),
        "agree": ranks.agree(lambda: f"own result {ranks.rank}"),
        "from_rank0": ranks.from_rank0(lambda: f"result of {ranks.rank}"),
    }


def test_ranks_exchange_values(run_ranks: Any) -> None:
    first, second = run_ranks(2, exchange)
    assert (first.pop("who"), second.pop("who")) == ((0, 2, True, "cpu"), (1, 2, False, "cpu"))
    assert (first.pop("agree"), second.pop("agree")) == ("own result 0", "own result 1")
    assert first == second == {"broadcast": "decision", "gather": [0, 10], "any": (True, False), "from_rank0": "result of 0"}


def test_a_rank_alone_needs_no_launcher_and_no_network(alone: Distributed) -> None:
    assert "RANK" not in os.environ
    assert exchange(alone) == {
        "who": (0, 1, True, "cpu"),
        "broadcast": "decision",
        "gather": [0],
        "any": (False, False),
        "agree": "own result 0",
        "from_rank0": "result of 0",
    }


def fail_in_turns(ranks: Distributed) -> dict[str, Any]:
    def on_rank(rank: int, error: Exception) -> Any:
        return lambda: failing(error) if ranks.rank == rank else None

    class LocalError(ConfigurationError):
        """Cannot be pickled: it lives in a function."""

    return {
        "agree": caught(lambda: ranks.agree(on_rank(1, LedgerUnavailableError("the volume is full")))),
        "both": caught(lambda: ranks.agree(lambda: failing(ValueError(f"on rank {ranks.rank}")))),
        "from rank 0": caught(lambda: ranks.from_rank0(lambda: failing(ConfigurationError("spec.model.source")))),
        "demanding": caught(lambda: ranks.agree(on_rank(0, DemandingError("a file", remedy="free space")))),
        "local": caught(lambda: ranks.agree(on_rank(1, LocalError("in a function"))))[1:2],
        "decoding": caught(lambda: ranks.agree(on_rank(1, UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")))),
        "still matched": ranks.gather(ranks.rank),
    }


def test_all_ranks_raise_what_one_met(run_ranks: Any) -> None:
    for rank, results in enumerate(run_ranks(2, fail_in_turns)):
        assert results["agree"][:2] == ("LedgerUnavailableError", "the volume is full")
        assert results["both"][:2] == ("ValueError", "on rank 0")
        assert results["from rank 0"][:2] == ("ConfigurationError", "spec.model.source")
        assert results["demanding"][1] == "a file: free space"
        assert results["demanding"][2]["remedy"] == "free space"
        assert "in a function" in results["local"][0]
        assert "invalid start byte" in results["decoding"][1]
        assert results["still matched"] == [0, 1], f"rank {rank}"


def test_error_says_which_rank_raised_it(run_ranks: Any) -> None:
    first, second = run_ranks(2, fail_in_turns)
    assert first["agree"][2]["__notes__"] == ["(raised on rank 1)"]
    assert "__notes__" not in second["agree"][2]
