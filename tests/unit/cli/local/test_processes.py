"""What the processes of a local run are started with, and their share of the machine."""

import os
from pathlib import Path
from typing import Any

import pytest

from spinrun_api.run import SpinRun
from spinrun_cli.local.child import Child
from spinrun_cli.local.folder import RunFolder
from spinrun_cli.local.machine import Machine
from spinrun_cli.local.processes import LocalRollout, LocalScorer, ProcessBuilder
from spinrun_cli.overrides import read_run
from spinrun_protocol import machine
from spinrun_protocol.commands import Process

REWARD_MODEL = {"rewardModel": {"source": "/models/stern"}}


def builder(tmp_path: Path, run: SpinRun, **environment: str) -> ProcessBuilder:
    return ProcessBuilder(run, RunFolder(tmp_path), Machine("cpu", "float32"), environment)


def with_scorer(run: SpinRun, **scorer: Any) -> SpinRun:
    """The run with a reward model that it serves."""
    document = run.to_document()
    document["spec"] |= {"preference": REWARD_MODEL, "scorer": scorer}
    return SpinRun.model_validate(document)


def use_cores(monkeypatch: pytest.MonkeyPatch, number: int, cgroup: Path = Path("/nowhere")) -> None:
    """A machine with so many cores, of which the cgroup may allow fewer."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(number)))
    monkeypatch.setattr(machine, "CGROUP", cgroup)


@pytest.mark.parametrize(
    ("scorer", "threads", "dtype"), [({}, 4, "float32"), ({"replicas": 2, "dtype": "bfloat16"}, 2, "bfloat16")], ids=str
)
def test_scorers_share_the_cores_among_themselves_for_the_rollouts_wait_meanwhile(
    tmp_path: Path, run_file: Path, monkeypatch: pytest.MonkeyPatch, scorer: Any, threads: int, dtype: str
) -> None:
    use_cores(monkeypatch, 4)
    processes = builder(tmp_path, with_scorer(read_run(run_file), **scorer))

    process = processes.scorer(LocalScorer(0, processes.folder, set()))

    assert process.environment["OMP_NUM_THREADS"] == str(threads)
    arguments = dict(zip(process.command[3::2], process.command[4::2], strict=False))
    assert (arguments["--model"], arguments["--dtype"], arguments["--host"]) == ("/models/stern", dtype, "127.0.0.1")


@pytest.mark.parametrize(("overlap", "replicas", "threads"), [(0, 2, (2, None)), (1, 1, (2, "2")), (1, 2, (1, "2"))])
def test_rollouts_that_are_ahead_and_the_trainer_have_half_of_the_cores_each(
    tmp_path: Path, run_file: Path, monkeypatch: pytest.MonkeyPatch, overlap: int, replicas: int, threads: tuple[int, str | None]
) -> None:
    use_cores(monkeypatch, 4)
    overrides = [f"spec.method.overlap={overlap}", f"spec.rollout.replicas={replicas}"]
    processes = builder(tmp_path, read_run(run_file, overrides))

    of_rollout = processes.vllm(LocalRollout(0, processes.folder, set())).environment["OMP_NUM_THREADS"]
    of_trainer = processes.trainer(1, 1, (), ()).environment.get("OMP_NUM_THREADS")

    assert (int(of_rollout), of_trainer) == threads


def test_vllm_has_no_more_threads_than_the_containers_quota_allows(
    tmp_path: Path, run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text("300000 100000\n")
    use_cores(monkeypatch, 64, cgroup=tmp_path)
    processes = builder(tmp_path, with_scorer(read_run(run_file)))

    rollout = processes.vllm(LocalRollout(0, processes.folder, set()))
    scorer = processes.scorer(LocalScorer(0, processes.folder, set()))

    assert [process.environment["OMP_NUM_THREADS"] for process in (rollout, scorer)] == ["3", "3"]


def test_number_of_threads_that_the_user_gives_the_trainer_stays(tmp_path: Path, run_file: Path) -> None:
    processes = builder(tmp_path, read_run(run_file, ["spec.method.overlap=1"]), OMP_NUM_THREADS="3")
    assert "OMP_NUM_THREADS" not in processes.trainer(1, 1, (), ()).environment


def test_only_the_trainer_gets_the_key_of_the_preference(tmp_path: Path, run_file: Path) -> None:
    processes = builder(tmp_path, read_run(run_file), SPINRUN_PREFERENCE_KEY="sk-1")
    rollout = LocalRollout(0, processes.folder, set())
    assert processes.trainer(1, 1, [rollout], ()).environment["SPINRUN_PREFERENCE_KEY"] == "sk-1"
    for process in (processes.agent(rollout), processes.vllm(rollout)):
        assert "sk-1" not in process.environment.values()


async def test_working_directory_is_not_where_children_import_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('a stranger')")
    monkeypatch.chdir(tmp_path)
    child = Child("probe", tmp_path / "probe.log")
    program = "import json, sys; print('safe path', sys.flags.safe_path)"

    await child.start(Process(["python3", "-c", program], {}), {})
    code = await child.wait()

    assert (code, child.last_lines()[-1]) == (0, "safe path True")


async def test_folder_that_the_user_names_is_where_children_import_from(tmp_path: Path) -> None:
    (tmp_path / "my_rules.py").write_text("WORTH = 7")
    child = Child("probe", tmp_path / "probe.log")

    await child.start(Process(["python3", "-c", "import my_rules; print(my_rules.WORTH)"], {}), {"PYTHONPATH": str(tmp_path)})

    assert (await child.wait(), child.last_lines()[-1]) == (0, "7")


async def test_log_and_last_lines_tell_no_secret(tmp_path: Path) -> None:
    child = Child("probe", tmp_path / "probe.log")
    program = "print('HF_TOKEN=' + 's3cr3t')"
    await child.start(Process(["python3", "-c", program, "--api-key", "s3" + "cr3t9"], {}), {})
    await child.wait()
    (started, *_) = child.log.read_text().splitlines()
    assert "--api-key [redacted]" in started
    assert child.last_lines()[-1] == "HF_TOKEN=[redacted]"
