"""One node of a cluster: its name, addresses and folders."""

from dataclasses import dataclass
from pathlib import Path

MAX_NODES = 9


@dataclass(frozen=True)
class Node:
    """One node of the cluster in the folder `state`."""

    state: Path
    number: int
    """From 1."""

    @property
    def name(self) -> str:
        """Its name in the cluster, and of its process."""
        return f"node-{self.number}"

    @property
    def address(self) -> str:
        """Where kubelet and node ports answer."""
        return f"10.201.0.{self.number + 1}"

    @property
    def pods(self) -> str:
        """The addresses of its pods."""
        return f"10.202.{self.number}.0/24"

    @property
    def folder(self) -> Path:
        """What it keeps from one `up` to the next: images, and the pods' own files."""
        return self.state / self.name

    @property
    def kubeconfig(self) -> Path:
        """The kubelet's."""
        return self.state / f"{self.name}.kubeconfig"


def all_nodes(state: Path) -> list[Node]:
    """The nodes that were ever started in this folder."""
    return [node for number in range(1, MAX_NODES + 1) if (node := Node(state, number)).folder.exists()]
