import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from spinrun_api.spec import Rule
from spinrun_worker.errors import RunError
from spinrun_worker.rewards import sandbox
from spinrun_worker.rewards.sandbox import Sandbox, SandboxPool, passed_environment
from spinrun_worker.rewards.score import Failure, Item

USER_MODULE = """
import json, os, pathlib, subprocess, time

def environment(prompt, completion, answer, **columns):
    pathlib.Path(completion).write_text(json.dumps(dict(os.environ)))
    return 1

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


def python(entry_point: str, timeout_seconds: float) -> Rule:
    return Rule(kind="python", entry_point=entry_point, timeout_seconds=timeout_seconds)


def item(completion: str = "", number: int = 0) -> Item:
    return Item(f"prompt-{number}", "question", completion, None, {})


def test_a_long_item_passes_whole():
    box = Sandbox(python("mywild:length", 10))
    score = box.score(item("ü" * 3_000_000))
    box.close()
    assert score == 3_000_000


def test_close_ends_the_process():
    box = Sandbox(python("mywild:pid", 10))
    pid = box.score(item())
    assert isinstance(pid, float)
    box.close()
    assert not psutil.pid_exists(int(pid))


def test_a_killed_process_is_replaced_for_the_next_item():
    box = Sandbox(python("mywild:pid", 10))
    first = box.score(item())
    assert isinstance(first, float)
    os.kill(int(first), signal.SIGKILL)
    lost = box.score(item())
    assert lost == Failure("crashed", "the rule's process died: killed by SIGKILL")
    assert box.score(item()) not in (first, lost)
    box.close()


def test_what_the_users_code_started_is_killed_with_it(tmp_path: Path):
    box = Sandbox(python("mywild:sleep", 1))
    assert box.score(item(str(tmp_path / "pid"))) == Failure("too slow", "no reward in 1 s")
    grandchild = int((tmp_path / "pid").read_text())
    box.close()
    psutil.wait_procs([psutil.Process(grandchild)] if psutil.pid_exists(grandchild) else [], timeout=5)
    assert not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE


ORPHAN_MAKER = """
import sys
from spinrun_api.spec import Rule
from spinrun_worker.rewards.sandbox import Sandbox
from spinrun_worker.rewards.score import Item
rule = Rule(kind="python", entry_point=sys.argv[1], timeout_seconds=float(sys.argv[3]))
Sandbox(rule).score(Item("p", "question", sys.argv[2], None, {}))
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
    pool = SandboxPool(python("mywild:slow", 10), processes=2)
    scores = pool([item(number=number) for number in range(4)])
    pool.close()
    assert len(set(scores)) == 2


def test_a_rule_that_never_answers_stops_the_run_by_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandbox, "MAX_DEATHS_IN_A_ROW", 3)
    pool = SandboxPool(python("mywild:die", 10), processes=1)
    with pytest.raises(RunError, match=r"3 answers in a row got no reward; the last, of prompt prompt-2: .*exit code 3"):
        pool([item(number=number) for number in range(10)])
    pool.close()


def test_a_process_that_never_gets_ready_is_an_error_of_the_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "myslow.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(sandbox, "STARTUP_SECONDS", 0.1)
    with pytest.raises(RunError, match=r"was not ready after 0\.1 s"):
        Sandbox(python("myslow:f", 1)).start()


def test_a_process_that_dies_as_it_starts_is_an_error_of_the_attempt(tmp_path: Path):
    (tmp_path / "mydead.py").write_text("import os\nos._exit(9)\n")
    with pytest.raises(RunError, match="died as it started: exit code 9"):
        Sandbox(python("mydead:f", 1)).start()


SECRETS = {
    "HF_TOKEN": "hf_x",
    "SPINRUN_PREFERENCE_KEY": "sk-x",
    "SPINRUN_TOKEN_FILE": "/etc/spinrun/token/token",
    "WANDB_API_KEY": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "DATABASE_URL": "postgres://u:p@host/db",
    "ANYTHING_ELSE": "x",
    "HTTPS_PROXY": "http://user:password@proxy:3128",
}
PLAIN = {
    "LANG": "C.UTF-8",
    "NO_PROXY": "localhost",
    "HF_HOME": "/home/x/huggingface",
    "SPINRUN_RULE_API_KEY": "passed on purpose",
}


def test_a_rule_of_the_users_sees_no_token_but_what_is_passed_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in (SECRETS | PLAIN).items():
        monkeypatch.setenv(name, value)
    box = Sandbox(python("mywild:environment", 10))
    box.score(item(str(tmp_path / "environment")))
    box.close()
    seen = json.loads((tmp_path / "environment").read_text())
    assert seen.keys() & SECRETS.keys() == set()
    assert {name: seen.get(name) for name in PLAIN} == PLAIN
    assert seen["PYTHONPATH"] == str(tmp_path)


@pytest.mark.parametrize(
    "rule", [Rule(kind="regex", pattern="a"), Rule(kind="choice"), Rule(kind="math")], ids=lambda rule: rule.kind
)
def test_no_process_of_a_rule_has_the_trainers_secrets(rule: Rule, monkeypatch: pytest.MonkeyPatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    box = Sandbox(rule)
    box.start()
    (child,) = (each for each in psutil.Process().children() if json.dumps(rule.to_document()) in each.cmdline())
    seen = child.environ()
    box.close()
    assert seen.keys() & SECRETS.keys() == set()
    assert seen["PATH"] == os.environ["PATH"]


def test_proxies_are_passed_unless_they_have_a_password():
    proxies = {"HTTP_PROXY": "http://proxy:3128", "https_proxy": "http://user:p@proxy:3128", "ALL_PROXY": "socks5://token@proxy"}
    assert passed_environment(proxies) == {"HTTP_PROXY": "http://proxy:3128"}


def test_a_regex_that_would_search_for_ever_costs_that_item_only():
    box = Sandbox(Rule(kind="regex", pattern="^(a|aa)+$", timeout_seconds=1))
    started = time.monotonic()
    assert box.score(item("a" * 200 + "!")) == Failure("too slow", "no reward in 1 s")
    assert time.monotonic() - started < 20
    assert box.score(item("aaa")) == 1
    box.close()


def test_a_pattern_that_is_always_too_slow_does_not_end_the_attempt(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sandbox, "MAX_DEATHS_IN_A_ROW", 3)
    pool = SandboxPool(Rule(kind="regex", pattern="^(a|aa)+$", timeout_seconds=0.02), processes=1)
    scores = pool([item("a" * 200 + "!", number) for number in range(5)])
    pool.close()
    assert scores == [Failure("too slow", "no reward in 0.02 s")] * 5
