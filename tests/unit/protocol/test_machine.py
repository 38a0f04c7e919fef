"""What this machine lets a process use."""

import os
from pathlib import Path

import pytest

from spinrun_protocol.machine import available_cores


@pytest.mark.parametrize(
    ("files", "want"),
    [
        ({"cpu.max": "150000 100000"}, 1),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.max": "10000000 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_cores_are_those_that_the_container_may_use(tmp_path: Path, files: dict[str, str], want: int | None) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content + "\n")
    assert available_cores(tmp_path) == (want or len(os.sched_getaffinity(0)))
