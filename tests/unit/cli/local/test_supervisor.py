"""The supervisor with fake children: what is started again, what ends the run, and that nothing is left."""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from spinrun_api.run import SpinRun
from spinrun_cli.local import keeper
from spinrun_cli.local import supervisor as supervisors
from spinrun_cli.local.adopt import adopt
from spinrun_cli.local.child import Child
from spinrun_cli.local.folder import RunFolder
from spinrun_cli.local.machine import Machine
from spinrun_cli.local.processes import ProcessBuilder
from spinrun_cli.local.supervisor import LocalResult, Supervisor
from spinrun_cli.overrides import read_run
from spinrun_cli.show.snapshot import Snapshot
from spinrun_protocol.commands import Process
from spinrun_protocol.termination import TerminationMessage
from support.processes import is_running
from unit.cli.local import fakes


class FakeReporter:
    def __init__(self) -> None:
        self.messages: list[str] = []
        self.snapshots: list[Snapshot] = []

    def show(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)

    def say(self, message: str) -> None:
        self.messages.append(message)

    warn = say


class Stage:
    """A run with fake children in a folder of its own."""

    def __init__(self, tmp_path: Path, run: SpinRun) -> None:
        self.fakes = tmp_path / "fakes"
        self.folder = RunFolder(tmp_path / "run")
        self.folder.root.mkdir()
        self.run, _ = adopt(self.folder, run, resume=False)
        self.folder.prepare()
        self.reporter = FakeReporter()

    def supervisor(self, **options: Any) -> Supervisor:
        options = {"backoff": lambda _: 0.01, "checkpoint_seconds": 10.0, "stop_seconds": 5.0} | options
        return Supervisor(self.run, self.folder, self.reporter, machine=Machine("cpu", "float32"), **options)

    async def play(self, scripts: dict[str, str], **options: Any) -> LocalResult:
        fakes.write_scripts(self.fakes, scripts)
        return await asyncio.wait_for(self.supervisor(**options).run(), 60)

    def lives(self, role: str) -> list[str]:
        """What each life of a role did, in order."""
        lines = [line.split() for line in (self.fakes / "lives").read_text().splitlines()]
        return [line[2] for line in lines if line[0] == role]

    def survivors(self) -> list[int]:
        pids = [int(line) for line in (self.fakes / "pids").read_text().split()]
        return [pid for pid in pids if is_running(pid)]


@pytest.fixture
def stage(tmp_path: Path, run_file: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage(tmp_path, read_run(run_file))
    fakes.install(stage.fakes, monkeypatch.setattr)
    monkeypatch.setattr(supervisors, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(keeper, "POLL_SECONDS", 0.05)
    return stage


async def test_a_completed_trainer_ends_the_run_and_all_processes(stage: Stage) -> None:
    outcome = await stage.play({"trainer": "complete"})

    assert (outcome.exit_code, outcome.message) == (0, "5 windows")
    assert stage.lives("trainer") == ["complete"]
    assert stage.survivors() == []


async def test_what_rank_0_says_is_kept_for_those_who_watch(stage: Stage) -> None:
    await stage.play({"trainer": "crash\ncomplete"})

    progress = stage.folder.progress()
    assert progress is not None
    assert (progress.attempt, progress.activity, progress.window, progress.total_steps) == (1, "generate", 1, 20)


@pytest.mark.parametrize(
    ("script", "want_lives", "want_code", "want_message"),
    [
        pytest.param("exit 1\nexit 137\ncomplete", 3, 0, "5 windows", id="failures are tried again"),
        pytest.param("exit 1", 3, 1, "after 3 failed attempts (lifecycle.backoffLimit 2)", id="until backoffLimit"),
        pytest.param("exit 3\nexit 3\nexit 3\nexit 3\ncomplete", 5, 0, "5 windows", id="preemptions are not counted"),
        pytest.param("die 2", 1, 2, "beta is too large", id="bad configuration fails at once"),
        pytest.param("die 4", 1, 1, "the ledger cannot be written: beta is too large", id="an unavailable ledger stops the run"),
        pytest.param("exit 42", 1, 1, "exit code 42", id="a rule of failurePolicy decides first"),
    ],
)
async def test_the_trainers_exit_code_decides_what_follows(
    stage: Stage, script: str, want_lives: int, want_code: int, want_message: str
) -> None:
    document = stage.run.to_document()
    document["spec"]["lifecycle"] = {"backoffLimit": 2, "failurePolicy": [{"exitCodes": [42], "action": "Fail"}]}
    stage.run = SpinRun.model_validate(document)

    outcome = await stage.play({"trainer": script})

    assert outcome.exit_code == want_code
    assert want_message in outcome.message
    assert len(stage.lives("trainer")) == want_lives
    assert stage.survivors() == []


async def test_a_trainer_that_completed_as_a_port_moved_is_not_started_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = stage.supervisor()
    attempts: list[int] = []

    async def attempt(_: ProcessBuilder) -> tuple[int, TerminationMessage | None]:
        attempts.append(len(attempts))
        supervisor._keeper._moved.discard(supervisor._trainer)
        if len(attempts) == 1:
            supervisor._keeper.restart(supervisor._trainer)
        return 0, None

    monkeypatch.setattr(supervisor, "_attempt", attempt)

    outcome = await supervisor._train(ProcessBuilder(stage.run, stage.folder, Machine("cpu", "float32"), {}))

    assert (outcome.exit_code, len(attempts)) == (0, 1)


async def test_each_attempt_has_a_higher_number_than_any_before(stage: Stage) -> None:
    (stage.folder.ledger / "OWNER.json").write_text('{"uid": "x", "attempt": 7}')

    await stage.play({"trainer": "exit 1\ncomplete"})

    attempts = [line.split()[1] for line in (stage.fakes / "lives").read_text().splitlines() if line.startswith("trainer")]
    assert attempts == ["8", "9"]


async def test_a_failed_trainer_shows_its_termination_message_and_the_end_of_its_log(stage: Stage) -> None:
    outcome = await stage.play({"trainer": "die 7"}, backoff=lambda _: 0.0)

    assert "beta is too large" in outcome.message
    assert "  | trainer says die <b>7</b>" in outcome.message


@pytest.mark.parametrize("role", ["vllm", "agent"])
async def test_a_dead_rollout_is_started_again_and_the_trainer_is_left_alone(stage: Stage, role: str) -> None:
    running = asyncio.create_task(stage.play({role: "crash\nserve", "trainer": "serve"}))
    await until(lambda: (stage.fakes / "lives").exists() and stage.lives(role) == ["crash", "serve"])
    await until(lambda: bool(stage.reporter.snapshots) and stage.reporter.snapshots[-1].children[f"{role}-0"] == "ready")

    await interrupt(running)

    assert stage.lives("trainer") == ["serve"]
    assert any(f"{role}-0 ended with exit code 137" in message for message in stage.reporter.messages)


async def test_a_vllm_that_never_answers_ends_the_run_with_its_last_lines(stage: Stage) -> None:
    outcome = await stage.play({"vllm": "exit 9"})

    assert outcome.exit_code == 1
    assert f"vllm-0 does not start: exit code 9, {keeper.MAX_DEATHS} times" in outcome.message
    assert "  | vllm says exit <b>9</b>" in outcome.message
    assert len(stage.lives("vllm")) == keeper.MAX_DEATHS
    assert stage.survivors() == []


@pytest.mark.parametrize("role", ["vllm", "agent"])
async def test_a_server_that_refuses_its_input_is_not_started_again(stage: Stage, role: str) -> None:
    outcome = await stage.play({role: "exit 2"})

    assert outcome.exit_code == 2
    assert f"{role}-0 refuses its input (exit code 2)" in outcome.message
    assert len(stage.lives(role)) == 1
    assert stage.survivors() == []


@pytest.mark.parametrize(
    ("role", "restarted"), [("vllm", "agent"), ("agent", "trainer")], ids=["vllm: its agent", "agent: the trainer"]
)
async def test_a_lost_race_for_a_port_is_retried_with_another_port(stage: Stage, role: str, restarted: str) -> None:
    running = asyncio.create_task(stage.play({role: "taken\nserve"}))
    await until(lambda: starts(stage, restarted) == 2)
    await until(lambda: set(stage.reporter.snapshots[-1].children.values()) == {"ready"})

    await interrupt(running)

    assert len(set(asked_ports(stage, role))) == 2
    assert stage.survivors() == []


async def test_a_trainer_is_started_again_when_an_agent_moved_while_it_was_being_started(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Child.start

    async def slow_start(child: Child, process: Process, environment: Mapping[str, str]) -> None:
        if child.name == "trainer":
            await until(lambda: starts(stage, "agent") == 2)
        await start(child, process, environment)

    monkeypatch.setattr(Child, "start", slow_start)
    running = asyncio.create_task(stage.play({"agent": "taken\nserve"}))
    await until(lambda: starts(stage, "trainer") == 2)

    await interrupt(running)

    assert stage.survivors() == []


def serve_a_reward_model(stage: Stage, **scorer: Any) -> None:
    document = stage.run.to_document()
    document["spec"]["preference"] = {"rewardModel": {"source": "/models/stern"}}
    document["spec"]["scorer"] = scorer
    stage.run = SpinRun.model_validate(document)


async def test_scorers_live_and_end_with_the_run_and_the_trainer_knows_them(stage: Stage) -> None:
    serve_a_reward_model(stage, replicas=2)
    running = asyncio.create_task(stage.play({}))
    await until(lambda: bool(stage.reporter.snapshots) and len(stage.reporter.snapshots[-1].children) == 5)
    await until(lambda: set(stage.reporter.snapshots[-1].children.values()) == {"ready"})
    ports = [(stage.folder.logs / f"scorer-{index}.log").read_text().split(" scorer ")[1].split()[0] for index in (0, 1)]

    await interrupt(running)

    assert stage.lives("scorer") == ["serve", "serve"]
    told = (stage.fakes / "scorers").read_text()
    assert told == ",".join(f"http://127.0.0.1:{port}" for port in ports)
    assert stage.survivors() == []


async def test_a_dead_scorer_is_started_again_and_the_trainer_is_left_alone(stage: Stage) -> None:
    serve_a_reward_model(stage)
    running = asyncio.create_task(stage.play({"scorer": "crash\nserve"}))
    await until(lambda: (stage.fakes / "lives").exists() and stage.lives("scorer") == ["crash", "serve"])
    await until(lambda: bool(stage.reporter.snapshots) and stage.reporter.snapshots[-1].children["scorer-0"] == "ready")

    await interrupt(running)

    assert stage.lives("trainer") == ["serve"]
    assert any("scorer-0 ended with exit code 137" in message for message in stage.reporter.messages)


async def test_a_scorer_that_never_answers_ends_the_run_with_its_last_lines(stage: Stage) -> None:
    serve_a_reward_model(stage)

    outcome = await stage.play({"scorer": "exit 9"})

    assert outcome.exit_code == 1
    assert f"scorer-0 does not start: exit code 9, {keeper.MAX_DEATHS} times" in outcome.message
    assert "  | scorer says exit <b>9</b>" in outcome.message
    assert stage.survivors() == []


async def test_a_scorer_that_lost_its_port_has_another_one_which_the_trainer_learns(stage: Stage) -> None:
    serve_a_reward_model(stage)
    running = asyncio.create_task(stage.play({"scorer": "taken\nserve"}))
    await until(lambda: starts(stage, "trainer") == 2)
    await until(lambda: set(stage.reporter.snapshots[-1].children.values()) == {"ready"})

    await interrupt(running)

    assert len(set(asked_ports(stage, "scorer"))) == 2
    assert (stage.fakes / "scorers").read_text() == f"http://127.0.0.1:{asked_ports(stage, 'scorer')[-1]}"


async def test_two_replicas_have_a_vllm_and_an_agent_each(stage: Stage) -> None:
    document = stage.run.to_document()
    document["spec"]["rollout"] = {"replicas": 2}
    stage.run = SpinRun.model_validate(document)
    running = asyncio.create_task(stage.play({}))
    await until(lambda: bool(stage.reporter.snapshots) and len(stage.reporter.snapshots[-1].children) == 5)
    await until(lambda: set(stage.reporter.snapshots[-1].children.values()) == {"ready"})

    await interrupt(running)

    assert stage.lives("vllm") == stage.lives("agent") == ["serve", "serve"]


async def test_what_rank_0_says_is_shown_unless_it_speaks_of_another_run(stage: Stage) -> None:
    running = asyncio.create_task(stage.play({}))
    await until(lambda: bool(stage.reporter.snapshots) and stage.reporter.snapshots[-1].progress is not None)
    progress = stage.reporter.snapshots[-1].progress
    assert progress is not None
    assert (progress.window, progress.step, progress.prompts_total) == (1, 4, 64)

    await interrupt(running)


async def test_a_trainer_that_does_not_end_is_killed_after_its_time(stage: Stage) -> None:
    fakes.write_scripts(stage.fakes, {"trainer": "stubborn"})
    supervisor = stage.supervisor(checkpoint_seconds=0.3)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: bool(stage.reporter.snapshots) and stage.reporter.snapshots[-1].progress is not None)

    await interrupt(running)

    assert stage.survivors() == []


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the run has come to a state that it reaches without help."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - other processes set no event of ours
            await asyncio.sleep(0.02)


async def interrupt(running: "asyncio.Task[LocalResult]") -> None:
    os.kill(os.getpid(), signal.SIGINT)
    outcome = await asyncio.wait_for(running, 30)
    assert outcome.exit_code == 130


def starts(stage: Stage, role: str) -> int:
    """How often a role was started, from its log: a life that is ended early may not have come to write its own line."""
    return len(asked_ports(stage, role))


def asked_ports(stage: Stage, role: str) -> list[str]:
    """The port of each life of a role, from the header that its log has for each."""
    log = stage.folder.logs / ("trainer.log" if role == "trainer" else f"{role}-0.log")
    lines = log.read_text().splitlines() if log.exists() else []
    return [line.split(f" {role} ")[1].split()[0] for line in lines if line.startswith("--- ")]


def test_key_of_the_preference_is_not_in_the_environment_of_all_children(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPINRUN_PREFERENCE_KEY", "sk-1")
    assert "sk-1" not in stage.supervisor()._environment.values()
