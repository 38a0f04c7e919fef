"""What a machine has that a cluster could leave behind, apart from processes."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self


def lines_of(*command: str) -> frozenset[str]:
    """The lines that a program writes, without those that count packets or tell the time."""
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return frozenset(line for line in done.stdout.splitlines() if not line.startswith(("#", ":")))


def folders(root: str) -> frozenset[str]:
    """Every folder below this one."""
    return frozenset(str(path) for path in Path(root).glob("**/"))


@dataclass(frozen=True)
class Machine:
    """One look at this machine."""

    mounts: frozenset[str]
    interfaces: frozenset[str]
    routes: frozenset[str]
    packet_filter: frozenset[str]
    cgroups: frozenset[str]
    run: frozenset[str]
    state_of_programs: frozenset[str]
    hosts: frozenset[str]
    kernel_settings: frozenset[str]

    @classmethod
    def look(cls, state: Path) -> Self:
        """What is there now. state: the cluster's folder."""
        # Not all mounts: images may be built meanwhile.
        places = (str(state), "/run", "/var/lib", "/proc", "/sys")
        settings = ("vm.overcommit_memory", "vm.panic_on_oom", "kernel.panic", "kernel.panic_on_oops", "net.ipv4.ip_forward")
        return cls(
            mounts=frozenset(
                line for line in Path("/proc/mounts").read_text().splitlines() if line.split()[1].startswith(places)
            ),
            interfaces=frozenset(path.name for path in Path("/sys/class/net").iterdir()),
            routes=lines_of("ip", "route", "show", "table", "all"),
            packet_filter=lines_of("iptables-save"),
            cgroups=folders("/sys/fs/cgroup"),
            run=folders("/run"),
            state_of_programs=frozenset(
                str(path) for root in ("/etc", "/opt", "/var/lib", "/var/log") for path in Path(root).iterdir()
            ),
            hosts=frozenset(Path("/etc/hosts").read_text().splitlines()),
            kernel_settings=lines_of("sysctl", *settings),
        )

    def added_since(self, before: "Machine") -> dict[str, frozenset[str]]:
        """What is there now and was not before."""
        return {name: new for name, now in vars(self).items() if (new := now - vars(before)[name])}
