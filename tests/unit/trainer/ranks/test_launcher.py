"""The launcher with small programs as ranks: they import nothing heavy, so that a launch takes a fraction of a second."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil
import pytest

from spinrun_protocol.environment import TERMINATION_LOG
from spinrun_worker.trainer.ranks.launcher import RankExit, decisive, parse_rendezvous

LIMIT_SECONDS = 100


class Launch:
    """A launcher under test and its ranks."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.folder = folder

    def wait(self) -> int:
        return self.process.wait(LIMIT_SECONDS)

    def words(self) -> dict[str, Any]:
        return json.loads((self.folder / "termination-log").read_text())

    def ready(self, *ranks: int) -> list[psutil.Process]:
        """Wait until ranks have said that they are ready; their processes."""
        files = [self.folder / f"ready-{rank}" for rank in ranks]
        wait_for(lambda: all(file.exists() and file.read_text() for file in files))
        return [psutil.Process(int(file.read_text())) for file in files]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


PRELUDE = """
    import json, os, signal, sys, time
    from pathlib import Path
    rank = int(os.environ["RANK"])
    def ready():
        part = Path(f"part-{rank}")
        part.write_text(str(os.getpid()))
        part.rename(f"ready-{rank}")
    def on_stop(action):
        signal.signal(signal.SIGTERM, lambda *_: action())
        signal.signal(signal.SIGINT, lambda *_: action())
"""


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launch]]:
    started: list[Launch] = []

    def start(program: str, *options: str, ranks: int = 2, folder: Path = tmp_path) -> Launch:
        folder.mkdir(exist_ok=True)
        (folder / "rank_program.py").write_text(dedent(PRELUDE) + dedent(program))
        command = [sys.executable, "-m", "spinrun_worker.trainer.launch", "--module", "rank_program"]
        environment = os.environ | {TERMINATION_LOG: str(folder / "termination-log"), "PYTHONPATH": str(folder)}
        process = subprocess.Popen(
            [*command, "--procs-per-node", str(ranks), *options], cwd=folder, env=environment, text=True, stderr=subprocess.PIPE
        )
        started.append(Launch(process, folder))
        return started[-1]

    yield start
    for launched in started:
        launched.process.kill()
        launched.process.communicate()


@pytest.mark.parametrize("code", [0, 1, 2, 3, 4])
def test_launcher_ends_with_the_exit_code_of_its_ranks(launch: Callable[..., Launch], code: int) -> None:
    assert launch(f"sys.exit({code})").wait() == code


@pytest.mark.parametrize(
    ("codes", "want"),
    [((2, 1), 2), ((1, 4), 4), ((3, 0), 3), ((0, 1), 1)],
    ids=["invalid configuration", "ledger unavailable", "preempted", "failed"],
)
def test_rank_that_names_a_cause_decides(launch: Callable[..., Launch], codes: tuple[int, int], want: int) -> None:
    assert launch(f"sys.exit({codes}[rank])").wait() == want


@pytest.mark.parametrize(
    ("exits", "want"),
    [
        ([RankExit(1, -9), RankExit(0, 1)], 137),
        ([RankExit(0, 1), RankExit(1, -9)], 137),
        ([RankExit(0, 1), RankExit(1, -9, killed_by_us=True)], 1),
        ([RankExit(0, -6), RankExit(1, 1)], 1),
        ([RankExit(0, -11), RankExit(1, 1)], 139),
        ([RankExit(0, 3), RankExit(1, -9, killed_by_us=True)], 3),
        ([RankExit(0, 3), RankExit(1, 1)], 1),
        ([RankExit(0, -15, asked_to_stop=True), RankExit(1, -2, asked_to_stop=True)], 3),
        ([RankExit(0, -15), RankExit(1, 0)], 143),
        ([RankExit(0, 77), RankExit(1, 1)], 77),
        ([RankExit(0, 0), RankExit(1, 0)], 0),
    ],
    ids=str,
)
def test_ending_nearest_to_the_cause_decides(exits: Sequence[RankExit], want: int) -> None:
    assert decisive(exits).exit_code == want


def test_ranks_find_torchruns_environment_and_their_own_arguments(launch: Callable[..., Launch]) -> None:
    program = """
        names = ["RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR"]
        Path(f"environment-{rank}").write_text(json.dumps([sys.argv[1:], [os.environ[name] for name in names]]))
    """
    launched = launch(program, "--run", "run.yaml", "--port=0", "--host", "")
    assert launched.wait() == 0
    for rank in (0, 1):
        arguments, values = json.loads((launched.folder / f"environment-{rank}").read_text())
        assert arguments == ["--run", "run.yaml", "--port=0", "--host", ""]
        assert values == [str(rank), str(rank), "2", "2", "0", "127.0.0.1"]


@pytest.mark.parametrize(
    "options",
    [
        ["--nodes", "0"],
        ["--nodes", "2", "--node-rank", "2", "--rendezvous", "localhost:29400"],
        ["--nodes", "2"],
        ["--nodes", "2", "--rendezvous", ":29400"],
        ["--nodes", "2", "--rendezvous", "host:port"],
    ],
    ids=" ".join,
)
def test_wrong_options_are_an_invalid_configuration(launch: Callable[..., Launch], options: list[str]) -> None:
    assert launch("", *options).wait() == 2


@pytest.mark.parametrize(
    ("text", "want"),
    [("trainer-0.headless:1234", ("trainer-0.headless", 1234)), ("host", ("host", 29400)), ("[::1]:5", ("::1", 5))],
)
def test_rendezvous_is_a_host_and_a_port(text: str, want: tuple[str, int]) -> None:
    assert parse_rendezvous(text) == want


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stop_signal_gives_ranks_time(launch: Callable[..., Launch], number: signal.Signals) -> None:
    program = """
        def stop():
            time.sleep(rank * 0.5)  # a checkpoint, which ranks do not finish together
            Path(f"saved-{rank}").touch()
            sys.exit(3)
        on_stop(stop)
        ready()
        time.sleep(60)
    """
    launched = launch(program, "--peer-seconds", "0.1")
    launched.ready(0, 1)
    launched.process.send_signal(number)
    assert launched.wait() == 3
    assert (launched.folder / "saved-0").exists()
    assert (launched.folder / "saved-1").exists()


def test_second_stop_signal_reaches_the_ranks_too(launch: Callable[..., Launch]) -> None:
    program = """
        signals = []
        def stop():
            signals.append(1)
            Path(f"signals-{rank}").write_text("x" * len(signals))
            if len(signals) == 2:
                sys.exit(3)
        on_stop(stop)
        ready()
        while True:
            time.sleep(60)
    """
    launched = launch(program)
    launched.ready(0, 1)
    launched.process.terminate()
    wait_for(lambda: all((launched.folder / f"signals-{rank}").exists() for rank in (0, 1)))
    launched.process.terminate()
    assert launched.wait() == 3


def test_rank_that_has_no_handler_yet_is_preempted(launch: Callable[..., Launch]) -> None:
    launched = launch("ready(); time.sleep(60)")
    launched.ready(0, 1)
    launched.process.terminate()
    assert launched.wait() == 3
    assert launched.words()["result"] == "Preempted"


def test_stop_signal_that_comes_before_the_launcher_is_imported_is_not_lost(
    launch: Callable[..., Launch], tmp_path: Path
) -> None:
    # Python runs this file before any other: it stops whoever imports the launcher.
    (tmp_path / "sitecustomize.py").write_text(
        dedent("""
            import os, signal, sys
            class Stop:
                def find_spec(self, name, path=None, target=None):
                    if name == "spinrun_worker.trainer.ranks.launcher":
                        os.kill(os.getpid(), signal.SIGTERM)
            sys.meta_path.insert(0, Stop())
        """)
    )
    assert launch("time.sleep(60)").wait() == 3


def test_rank_that_does_not_stop_in_time_is_killed(launch: Callable[..., Launch]) -> None:
    launched = launch("on_stop(lambda: None); ready()\nwhile True: time.sleep(60)", "--grace-seconds", "0.3")
    launched.ready(0, 1)
    launched.process.terminate()
    assert launched.wait() == 137
    assert launched.words()["reason"] == "GraceExceeded"


def test_killed_rank_ends_the_others(launch: Callable[..., Launch]) -> None:
    launched = launch("on_stop(lambda: None); ready()\nwhile True: time.sleep(60)", "--peer-seconds", "0.3")
    survivor, victim = launched.ready(0, 1)
    victim.kill()
    assert launched.wait() == 137
    assert gone(survivor)
    assert launched.words()["reason"] == "RankKilled"
    assert "rank 1 was killed by SIGKILL" in launched.words()["message"]


def test_words_of_ranks_that_lost_a_killed_one_are_replaced(launch: Callable[..., Launch]) -> None:
    program = """
        from spinrun_worker.trainer.ranks.termination import describe_failure, say
        ready()
        if rank == 1:
            time.sleep(60)
        while not Path("killed").exists():
            time.sleep(0.02)
        say(describe_failure(RuntimeError("connection closed by peer")))
        sys.exit(1)
    """
    launched = launch(program)
    _, victim = launched.ready(0, 1)
    victim.kill()
    (launched.folder / "killed").touch()
    assert launched.wait() == 137
    assert launched.words()["reason"] == "RankKilled"


def test_words_of_a_rank_that_knows_its_cause_stay(launch: Callable[..., Launch]) -> None:
    program = """
        from spinrun_worker.errors import ConfigurationError
        from spinrun_worker.trainer.ranks.termination import describe_failure, say
        words = describe_failure(ConfigurationError("spec.model.source is not a model"))
        say(words)
        sys.exit(words.exit_code)
    """
    launched = launch(program)
    (launched.folder / "termination-log").write_text("an earlier attempt's words")
    assert launched.wait() == 2
    assert launched.words()["message"] == "spec.model.source is not a model"


def test_killed_launcher_leaves_no_rank(launch: Callable[..., Launch]) -> None:
    launched = launch("on_stop(lambda: None); ready()\nwhile True: time.sleep(60)")
    ranks = launched.ready(0, 1)
    launched.process.kill()
    launched.wait()
    wait_for(lambda: all(gone(rank) for rank in ranks))


def test_children_of_a_rank_end_with_it(launch: Callable[..., Launch]) -> None:
    program = """
        import subprocess
        child = subprocess.Popen(["sleep", "60"])
        Path("child").write_text(str(child.pid))
        ready()
    """
    launched = launch(program, ranks=1)
    assert launched.wait() == 0
    child = int((launched.folder / "child").read_text())
    wait_for(lambda: not psutil.pid_exists(child) or gone(psutil.Process(child)))


def test_ranks_of_two_nodes_meet(launch: Callable[..., Launch], tmp_path: Path) -> None:
    program = """
        from spinrun_worker.trainer.ranks.distributed import join_ranks
        with join_ranks("uid-1", accelerator="cpu") as ranks:
            met = ranks.gather((ranks.rank, ranks.local_rank, os.environ["GROUP_RANK"]))
        Path(f"met-{rank}").write_text(json.dumps(met))
    """
    with socket.create_server(("", 0)) as free:
        port = free.getsockname()[1]
    options = ["--nodes", "2", "--rendezvous", f"localhost:{port}", "--node-rank"]
    nodes = [launch(program, *options, str(node), ranks=1, folder=tmp_path / f"node-{node}") for node in (1, 0)]
    assert [node.wait() for node in nodes] == [0, 0]
    for node, rank in zip(nodes, (1, 0), strict=True):
        assert json.loads((node.folder / f"met-{rank}").read_text()) == [[0, 0, "0"], [1, 0, "1"]]


def test_rank_that_fails_alone_decides_although_the_other_loses_it(launch: Callable[..., Launch]) -> None:
    program = """
        from spinrun_worker.trainer.ranks.distributed import join_ranks
        with join_ranks("uid-1", accelerator="cpu") as ranks:
            ranks.barrier()
            if rank == 1:
                sys.exit(4)
            ranks.barrier()
    """
    launched = launch(program, "--peer-seconds", "60")
    started = time.monotonic()
    assert launched.wait() == 4
    assert time.monotonic() - started < 60, "the other rank notices on its own"


def test_port_that_is_taken_is_named(launch: Callable[..., Launch]) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        launched = launch("", "--nodes", "2", "--rendezvous", f"localhost:{port}")
        assert launched.wait() == 1
    assert str(port) in launched.words()["message"]
