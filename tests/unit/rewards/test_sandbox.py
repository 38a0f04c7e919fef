import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from spinrun_worker.errors import RunError
from spinrun_worker.rewards import sandbox
from spinrun_worker.rewards.sandbox import Sandbox, SandboxPool
from spinrun_worker.rewards.score import Failure, Item

USER_MODULE = """
import os, pathlib, subprocess, time

def pid(prompt, completion, answer, **columns):
    return os.getpid()

def length(prompt, completion, answer, **columns):
    return len(completion)

def hang(prompt, completion, answer, **columns):
    pathlib.Path(completion).write_text(str(os.getpid()))
    while True:
        pass

def sleep(prompt, completion, answer, **columns):
    child = subprocess.Popen(["sleep", "60"])
    pathlib.Path(completion).write_text(str(child.pid))
    time.sleep(60)

def die(prompt, completion, answer, **columns):
    os._exit(3)

def slow(prompt, completion, answer, **columns):
    time.sleep(0.2)
    return os.getpid()
"""


@pytest.fixture(autouse=True)
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mywild.py").write_text(USER_MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def item(completion: str = "", number: int = 0) -> Item:
    return Item(f"prompt-{number}", "question", completion, None, {})


def test_a_long_item_passes_whole():
    box = Sandbox(timeout_seconds=10, entry_point="mywild:length")
    score = box.score(item("ü" * 3_000_000))
    box.close()
    assert score == 3_000_000


def test_close_ends_the_process():
    box = Sandbox(timeout_seconds=10, entry_point="mywild:pid")
    pid = box.score(item())
    assert isinstance(pid, float)
    box.close()
    assert not psutil.pid_exists(int(pid))


def test_a_killed_process_is_replaced_for_the_next_item():
    box = Sandbox(timeout_seconds=10, entry_point="mywild:pid")
    first = box.score(item())
    assert isinstance(first, float)
    os.kill(int(first), signal.SIGKILL)
    lost = box.score(item())
    assert lost == Failure("crashed", "the rule's process died: killed by SIGKILL")
    assert box.score(item()) not in (first, lost)
    box.close()


def test_what_the_users_code_started_is_killed_with_it(tmp_path: Path):
    box = Sandbox(timeout_seconds=1, entry_point="mywild:sleep")
    assert box.score(item(str(tmp_path / "pid"))) == Failure("too slow", "no reward in 1 s")
    grandchild = int((tmp_path / "pid").read_text())
    box.close()
    psutil.wait_procs([psutil.Process(grandchild)] if psutil.pid_exists(grandchild) else [], timeout=5)
    assert not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE


ORPHAN_MAKER = """
import sys
from spinrun_worker.rewards import sandbox
from spinrun_worker.rewards.sandbox import Sandbox
from spinrun_worker.rewards.score import Item
Sandbox(timeout_seconds=float(sys.argv[3]), entry_point=sys.argv[1]).score(Item("p", "question", sys.argv[2], None, {}))
"""


def test_no_orphan_is_left_when_the_trainer_is_killed_in_the_middle_of_a_hang(tmp_path: Path):
    pid_file = tmp_path / "pid"
    trainer = subprocess.Popen([sys.executable, "-c", ORPHAN_MAKER, "mywild:hang", str(pid_file), "1"])
    try:
        wait_until_written(pid_file, trainer)
    finally:
        trainer.kill()
        trainer.wait()
    orphan = int(pid_file.read_text())
    gone, _ = psutil.wait_procs([psutil.Process(orphan)] if psutil.pid_exists(orphan) else [], timeout=10)
    assert gone or not psutil.pid_exists(orphan)


def wait_until_written(path: Path, writer: subprocess.Popen[bytes]) -> None:
    while not (path.exists() and path.read_text()):
        try:
            writer.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError("ended before it wrote")


def test_an_idle_process_ends_with_its_trainer(tmp_path: Path):
    script = ORPHAN_MAKER.replace("Sandbox(", "print(int(Sandbox(").replace("{}))", "{}))), flush=True)\nsys.stdin.read()")
    trainer = subprocess.Popen(
        [sys.executable, "-c", script, "mywild:pid", "", "60"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert trainer.stdout is not None
    orphan = psutil.Process(int(trainer.stdout.readline()))
    trainer.kill()
    trainer.communicate()
    gone, _ = psutil.wait_procs([orphan], timeout=10)
    assert gone


def test_items_are_spread_over_processes_and_come_back_in_order():
    pool = SandboxPool(processes=2, timeout_seconds=10, entry_point="mywild:slow")
    scores = pool([item(number=number) for number in range(4)])
    pool.close()
    assert len(set(scores)) == 2


def test_a_rule_that_never_answers_stops_the_run_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandbox, "MAX_DEATHS_IN_A_ROW", 3)
    pool = SandboxPool(processes=1, timeout_seconds=10, entry_point="mywild:die")
    with pytest.raises(RunError, match=r"3 answers in a row got no reward; the last, of prompt prompt-2: .*exit code 3"):
        pool([item(number=number) for number in range(10)])
    pool.close()


def test_a_process_that_never_gets_ready_is_an_error_of_the_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "myslow.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(sandbox, "STARTUP_SECONDS", 0.1)
    with pytest.raises(RunError, match=r"was not ready after 0\.1 s"):
        Sandbox(timeout_seconds=1, entry_point="myslow:f").start()


def test_a_process_that_dies_as_it_starts_is_an_error_of_the_attempt(tmp_path: Path):
    (tmp_path / "mydead.py").write_text("import os\nos._exit(9)\n")
    with pytest.raises(RunError, match="died as it started: exit code 9"):
        Sandbox(timeout_seconds=1, entry_point="mydead:f").start()
