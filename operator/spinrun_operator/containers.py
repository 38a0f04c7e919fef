"""Reading what a kubelet says of a pod's containers: the trainer's, the other ones beside it, and those that come before."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from spinrun_kube import names
from spinrun_operator.observed import is_over
from spinrun_protocol.exit_codes import ExitCode

Json = dict[str, Any]

LONGEST_LINE = 300
"""Characters of a container's log that a message shows."""


@dataclass(frozen=True)
class Container:
    """A container of a pod as its kubelet sees it."""

    name: str
    is_init: bool
    """Whether it stands among the init containers, as a native sidecar does too."""
    status: Json

    @property
    def title(self) -> str:
        """How a message calls it."""
        return f"{'init container' if self.is_init else 'container'} {self.name}"

    @property
    def is_trainer(self) -> bool:
        """Whether it is the one whose end is the attempt's."""
        return self.name == names.TRAINER and not self.is_init

    @property
    def is_running(self) -> bool:
        """Whether it runs now."""
        return "running" in self.status.get("state", {})

    @property
    def last_end(self) -> Json | None:
        """How it ended, or ended the last time if it waits to be started again; None when it never did."""
        return self.end or self.status.get("lastState", {}).get("terminated")

    @property
    def end(self) -> Json | None:
        """How it ended; None while it waits or runs."""
        return self.status.get("state", {}).get("terminated")


def containers_of(pod: Json) -> Iterator[Container]:
    """All containers of the pod, those that come first in front."""
    for kind in ("initContainerStatuses", "containerStatuses"):
        for status in pod.get("status", {}).get(kind) or ():
            yield Container(status["name"], kind == "initContainerStatuses", status)


def trainer_end(pod: Json) -> Json | None:
    """How the pod's trainer ended; None while it has not. What runs beside it may keep the pod itself running."""
    return next((container.end for container in containers_of(pod) if container.is_trainer), None)


def refusal_of_input(pod: Json) -> Container | None:
    """The container of a rollout or a scorer that ends with exit code 2: its input is bad, and stays so however often it starts.

    The user's own containers are not among those: their exit codes mean what they mean.
    """
    for container in containers_of(pod):
        is_ours = container.name == names.CHECK if container.is_init else container.name in ("vllm", "agent")
        if is_ours and (container.last_end or {}).get("exitCode") == ExitCode.INVALID_CONFIGURATION and not container.is_running:
            return container
    return None


def has_started(pod: Json) -> bool:
    """Whether the pod's trainer runs or has run."""
    if pod.get("status", {}).get("phase") in ("Running", "Succeeded", "Failed"):
        return True
    # A pod is Pending while another of its containers cannot start.
    trainers = (container.status for container in containers_of(pod) if container.is_trainer)
    return any(status.get("state", {}).keys() & {"running", "terminated"} for status in trainers)


def is_outlived(pod: Json) -> bool:
    """Whether the trainer has ended and another container keeps the pod from ending.

    Native sidecars are not among those: the kubelet ends them when all other containers have ended.
    """
    others = [container for container in containers_of(pod) if not container.is_init and not container.is_trainer]
    return not is_over(pod) and trainer_end(pod) is not None and any(container.end is None for container in others)


def last_line(message: str) -> str:
    """The last line of what a container said at its end."""
    lines = message.strip().splitlines()
    # vLLM begins its lines with a process id, another one in each life.
    return re.sub(r"^\(\w+ pid=\d+\)\s*", "", lines[-1])[:LONGEST_LINE] if lines else ""
