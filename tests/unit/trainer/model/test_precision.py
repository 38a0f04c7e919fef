import time

import pytest
import torch

from spinrun_worker.trainer.model import precision
from spinrun_worker.trainer.model.precision import choose_compute_dtype, matmul_gflops, use_deterministic_algorithms


@pytest.mark.parametrize(
    ("float32", "bfloat16", "want"),
    [
        pytest.param(300.0, 900.0, torch.bfloat16, id="matrix units"),
        pytest.param(300.0, 310.0, torch.float32, id="no worth while"),
        pytest.param(300.0, 4.0, torch.float32, id="emulated"),
    ],
)
def test_cpus_compute_in_the_faster_dtype(monkeypatch, float32: float, bfloat16: float, want: torch.dtype):
    speeds = {torch.float32: float32, torch.bfloat16: bfloat16}
    monkeypatch.setattr(precision, "matmul_gflops", speeds.__getitem__)
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)

    got, measurement = choose_compute_dtype(torch.device("cpu"))

    assert got == want
    assert measurement == {"float32_gflops": float32, "bfloat16_gflops": bfloat16}


def test_a_disturbed_measurement_does_not_choose_what_the_processor_lacks(monkeypatch):
    monkeypatch.setattr(precision, "matmul_gflops", {torch.float32: 1.3, torch.bfloat16: 1.8}.__getitem__)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "avx2": True, "avx512_bf16": False})

    got, _ = choose_compute_dtype(torch.device("cpu"))

    assert got == torch.float32


def test_the_measurement_ends_when_its_time_is_over(monkeypatch):
    """A clock that stands still but for the products, each of which takes as long as its operations at 0.4 GFLOP/s."""
    now = 0.0
    product = torch.mm

    def slow_product(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        nonlocal now
        now += 2 * len(first) ** 3 / 0.4e9
        return product(first.float(), second.float())

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(torch, "mm", slow_product)

    assert matmul_gflops(torch.bfloat16, seconds=0.1) == pytest.approx(0.4)
    assert now < 0.8


def test_a_busy_machine_does_not_change_the_number_of_threads():
    threads = torch.get_num_threads()

    use_deterministic_algorithms(torch.device("cpu"))

    assert torch.get_num_threads() == threads
