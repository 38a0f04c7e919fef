"""Control groups: one for each node, which holds all of its pods."""

import time
from pathlib import Path

from testcluster.errors import ClusterError

CGROUP = "spinrun"


def cgroup_hierarchies() -> list[Path]:
    """Where the kernel's control groups are mounted: once for each controller (version 1), or once (version 2)."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return [Path(fields[1]) for fields in mounts if fields[2] in ("cgroup", "cgroup2")]


def make_cgroups(node: str) -> None:
    """Makes the group that holds all of a node's pods, where the kubelet wants to find it."""
    for hierarchy in cgroup_hierarchies():
        (hierarchy / CGROUP / node).mkdir(parents=True, exist_ok=True)
        controllers = hierarchy / "cgroup.controllers"
        # Version 2 alone has the file, and gives a group only the controllers that its parents pass on.
        wanted = " ".join(f"+{name}" for name in controllers.read_text().split()) if controllers.exists() else ""
        for parent in (hierarchy, hierarchy / CGROUP) if wanted else ():
            (parent / "cgroup.subtree_control").write_text(wanted)


def remove_cgroups(timeout: float = 10) -> None:
    """Removes all groups of all nodes, once the last process in them has ended."""
    deadline = time.monotonic() + timeout
    for hierarchy in cgroup_hierarchies():
        # Longest first: a group with children cannot be removed.
        for group in sorted((hierarchy / CGROUP).glob("**/"), reverse=True):
            while group.exists():
                try:
                    group.rmdir()
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise ClusterError(f"still in use: {group}: {error}") from None
                    time.sleep(0.05)
