"""How children share a machine."""

from pathlib import Path

import pytest

from spinrun_cli.local import machine as machines
from spinrun_cli.local.machine import GpuPlan, Machine, known_without_probe, parse, share_cores, share_gpus
from spinrun_cli.overrides import read_run


@pytest.mark.parametrize(
    ("cores", "among", "overlap", "want"),
    [(2, 1, 0, 2), (2, 2, 0, 1), (2, 3, 0, 1), (5, 2, 0, 2), (2, 1, 1, 1), (8, 2, 1, 2), (1, 1, 1, 1)],
)
def test_processes_share_the_cores_that_there_are(cores: int, among: int, overlap: int, want: int) -> None:
    assert share_cores(cores, among, overlap=overlap) == want


@pytest.mark.parametrize(
    ("gpus", "servers", "ranks", "want"),
    [
        pytest.param("01", [1], 1, GpuPlan([("1",)], ("0",), None), id="one each"),
        pytest.param("0123", [2], 2, GpuPlan([("2", "3")], ("0", "1"), None), id="two each"),
        pytest.param("0123", [2, 1], 1, GpuPlan([("1", "2"), ("3",)], ("0",), None), id="a rollout on two and a scorer"),
        pytest.param("0", [1], 1, GpuPlan([("0",)], ("0",), 0.4), id="one for both"),
        pytest.param("0", [1, 1], 1, GpuPlan([("0",), ("0",)], ("0",), 0.2), id="one for three"),
        pytest.param("01", [1, 1], 2, GpuPlan([("0",), ("1",)], ("0", "1"), 0.4), id="two ranks and two rollouts on two"),
    ],
)
def test_gpus_are_shared_only_when_there_are_too_few(gpus: str, servers: list[int], ranks: int, want: GpuPlan) -> None:
    assert share_gpus(list(gpus), servers=servers, ranks=ranks) == want


@pytest.mark.parametrize(
    ("dtype", "flags", "want"),
    [
        pytest.param("bfloat16", "avx2", Machine("cpu", "bfloat16"), id="the run says so"),
        pytest.param("auto", "fpu avx2", Machine("cpu", "float32"), id="no instructions for bfloat16"),
        pytest.param("auto", "avx512f avx512_bf16", None, id="x86 with instructions is measured"),
        pytest.param("auto", "asimd bf16", None, id="Arm with instructions is measured"),
    ],
)
def test_a_processor_is_measured_only_when_that_can_change_anything(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, flags: str, want: Machine | None
) -> None:
    monkeypatch.setattr(machines, "_vllm_is_for_cpus", lambda: True)
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor : 0\nflags : {flags}\n")

    assert known_without_probe(read_run(run_file, [f"spec.model.dtype={dtype}"]), cpuinfo) == want


def test_the_probe_says_what_it_found_in_a_line() -> None:
    assert parse('{"accelerator": "cuda", "dtype": "auto", "gpus": ["0", "1"]}') == Machine("cuda", "auto", ("0", "1"))
    for line in ("", "Killed", "{}", "[]"):
        with pytest.raises((ValueError, KeyError, TypeError)):
            parse(line)
