"""What this machine lets a process use."""

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available_cores(cgroup: Path | None = None) -> int:
    """Cores that this process may use: those it may run on, or a container's CPU limit when that is lower.

    Args:
        cgroup: Folder of the cgroup, v1 or v2; None: that of this container.
    """
    cores = len(os.sched_getaffinity(0))
    quota = _cpu_quota(cgroup or CGROUP)
    return cores if quota is None else max(1, min(cores, int(quota)))


def _cpu_quota(cgroup: Path) -> float | None:
    """CPU limit of the container in cores, from cgroup v2 or v1; None where there is none."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text(encoding="utf-8").split()
        else:
            quota = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text(encoding="utf-8").strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text(encoding="utf-8").strip()
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return None
