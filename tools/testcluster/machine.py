"""What a machine must have to hold nodes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from testcluster.cgroups import cgroup_hierarchies
from testcluster.errors import MachineError

PACKAGES = ("containerd", "runc", "containernetworking-plugins", "iptables", "iproute2", "busybox-static")
PROGRAMS = ("containerd", "ctr", "runc", "iptables", "ip", "busybox", "mount", "nsenter", "unshare")
CNI_PLUGINS = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))


def prepare_machine() -> None:
    """Installs what is missing; raises MachineError where this machine cannot have nodes."""
    if os.geteuid() != 0:
        raise MachineError("needs root, to make network interfaces, mounts and cgroups: run it with sudo, or use kind")
    if not cgroup_hierarchies():
        raise MachineError("no cgroup file system is mounted, so nothing can limit a pod: mount one at /sys/fs/cgroup")
    if _missing_programs() and shutil.which("apt-get"):
        install = ("apt-get", "install", "--yes", "--no-install-recommends", *PACKAGES)
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (install, ("apt-get", "update"), install):
            if subprocess.run(command, stdout=sys.stderr, env=environment).returncode == 0 and command is install:
                break
    if missing := _missing_programs():
        raise MachineError(f"not installed: {', '.join(missing)}. Install the packages {' '.join(PACKAGES)} or their like")


def cni_plugins() -> Path | None:
    """The folder of the CNI plugins, where they are installed."""
    return next((folder for folder in CNI_PLUGINS if (folder / "ptp").exists()), None)


def find_busybox() -> Path | None:
    """The program busybox, where it is installed."""
    found = shutil.which("busybox")
    return Path(found).resolve() if found else None


def _missing_programs() -> list[str]:
    """What PACKAGES would bring and is not there."""
    missing = [name for name in PROGRAMS if not shutil.which(name)]
    busybox = find_busybox()
    if busybox and not _is_static(busybox):
        missing.append("busybox (statically linked)")
    if cni_plugins() is None:
        missing.append("the CNI plugins")
    return missing


def _is_static(program: Path) -> bool:
    """Whether a program needs no library, and so runs in an image that has nothing else."""
    return b"/ld-linux" not in program.read_bytes()
