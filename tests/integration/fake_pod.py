"""What a fake pod does and what the API is told of it: no I/O here. `fake_kubelet` gives it life."""

import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Running:
    """The containers run until something else happens."""

    ready: bool = True


@dataclass(frozen=True)
class Exit:
    """A container ends. Where the restart policy says so it starts again, else the pod may be Succeeded or Failed."""

    code: int = 0
    reason: str = ""
    """Empty: Completed for code 0, Error for others."""
    message: str = ""
    """The text of the termination message file."""
    after: float = 0.0
    """Seconds that it runs before."""
    container: str | None = None
    """The one that ends; None: all of them."""
    times: int = 1
    """How often it ends so before it runs on, where the restart policy starts it again."""


@dataclass(frozen=True)
class Waiting:
    """A container does not start: ErrImagePull, ImagePullBackOff, CreateContainerConfigError."""

    reason: str
    message: str = ""
    container: str | None = None
    """The one that waits; None: all of them."""


@dataclass(frozen=True)
class Evicted:
    """The node evicts the pod because it is low on memory or disk."""

    message: str = "The node was low on resource: memory."
    after: float = 0.0
    """Seconds that it runs before."""


Behaviour = Running | Exit | Waiting | Evicted
NEVER_READY = Running(ready=False)
OOM_KILLED = Exit(137, "OOMKilled")
TERMINATED = Exit(143)
"""A program that SIGTERM ends."""
KILLED = Exit(137)
"""A program that the node kills without asking."""
NEVER_STARTED = Exit(137, "ContainerStatusUnknown")
"""What a kubelet says of a container that still waits when its pod is deleted."""


@dataclass(eq=False)
class Script:
    """What the pods that match do. The newest script that matches a pod decides."""

    behaviour: Behaviour
    name: str = "*"
    """A glob, as of a shell."""
    namespace: str = "*"
    labels: Mapping[str, str] = field(default_factory=dict)
    on_delete: Exit = TERMINATED
    """How the containers end when the pod is deleted: what the program does with SIGTERM."""
    limit: int | None = None
    """Only the first so many pods that match follow it; None: all."""
    cancel: Callable[[], None] = lambda: None
    """From then on no pod follows it."""
    _followers: set[str] = field(default_factory=set, init=False)

    def takes(self, pod: Json) -> bool:
        """Whether the pod follows it; one that did keeps following it, whatever the limit."""
        if not self._matches(pod["metadata"]):
            return False
        if self.limit is not None and len(self._followers) >= self.limit:
            return pod["metadata"]["uid"] in self._followers
        self._followers.add(pod["metadata"]["uid"])
        return True

    def _matches(self, metadata: Json) -> bool:
        return (
            fnmatch.fnmatchcase(metadata["name"], self.name)
            and fnmatch.fnmatchcase(metadata["namespace"], self.namespace)
            and self.labels.items() <= metadata.get("labels", {}).items()
        )


def now() -> str:
    """The time as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Container:
    """One container of a pod, or one of its init containers."""

    name: str
    image: str
    restarts_on: str
    """Always, OnFailure or Never."""
    state: Json = field(default_factory=lambda: {"waiting": {"reason": "ContainerCreating"}})
    last_state: Json = field(default_factory=dict)
    ready: bool = False
    restarts: int = 0

    def start(self, *, ready: bool = True) -> None:
        """Runs; one that runs already only changes its readiness, and one that has ended stays so."""
        if "waiting" in self.state:
            self.state = {"running": {"startedAt": now()}}
        self.ready = ready and "running" in self.state

    def hold(self, reason: str, message: str) -> None:
        """Waits for a reason; one that runs or has ended does not."""
        if "waiting" in self.state:
            self.state = {"waiting": {"reason": reason, "message": message}}

    def end(self, how: Exit) -> None:
        """Ends; one that has ended stays as it is."""
        if "terminated" in self.state:
            return
        started = self.state.get("running", {}).get("startedAt", now())
        reason = how.reason or ("Error" if how.code else "Completed")
        ended = {"exitCode": how.code, "reason": reason, "message": how.message, "startedAt": started, "finishedAt": now()}
        self.state, self.ready = {"terminated": ended}, False

    def back_off(self) -> bool:
        """Waits to be started again, if its restart policy does not accept this end. Returns whether it does."""
        ended = self.state.get("terminated")
        if not ended or self.restarts_on == "Never" or (self.restarts_on == "OnFailure" and not ended["exitCode"]):
            return False
        self.last_state, self.restarts = self.state, self.restarts + 1
        self.state = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off restarting failed container"}}
        return True

    def status(self) -> Json:
        """An entry of the pod's containerStatuses."""
        return {
            "name": self.name,
            "image": self.image,
            "imageID": f"fake://{self.image}",
            "ready": self.ready,
            "started": "running" in self.state,
            "restartCount": self.restarts,
            "state": self.state,
            "lastState": self.last_state,
        }


def containers_of(specs: list[Json], restart_policy: str) -> list[Container]:
    """Containers before their start."""
    return [Container(spec["name"], spec["image"], spec.get("restartPolicy", restart_policy)) for spec in specs]


def phase_of(containers: list[Container]) -> str:
    """The phase of a pod as the kubelet derives it from its containers."""
    ends = [container.state.get("terminated") for container in containers]
    if all(ends):
        return "Failed" if any(end["exitCode"] for end in ends if end) else "Succeeded"
    waits_for_first_start = any("waiting" in each.state and not each.restarts for each in containers)
    return "Pending" if waits_for_first_start else "Running"


def condition(kind: str, holds: bool, reason: str = "", message: str = "") -> Json:
    """A condition of a pod or node that changes now."""
    status = "True" if holds else "False"
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": now()}
