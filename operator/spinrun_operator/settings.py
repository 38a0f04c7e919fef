"""What an administrator can set: one environment variable a field, named SPINRUN_ and the field in capitals."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from spinrun_protocol.commands import Accelerator

PREFIX = "SPINRUN_"
_MAY_BE_ZERO = ("run_as_user", "coalesce_seconds", "unscheduled_seconds")


class InvalidSettingError(ValueError):
    """A setting that cannot be read; the message names it, its value and what it should be."""


@dataclass(frozen=True)
class Settings:
    """Settings of the operator. Text lists are separated by commas."""

    watch_namespaces: tuple[str, ...] = ()
    """Namespaces whose SpinRuns are served; none: all of the cluster."""

    namespace: str = "spinrun-system"
    """The operator's own namespace: its pods may read every trainer's progress."""

    monitoring_namespaces: tuple[str, ...] = ()
    """Namespaces whose pods may read the metrics of agents and trainers."""

    worker_image: str = "ghcr.io/spinrun/worker:0.1.0"
    """Image of trainer and agent, where the run names none."""

    vllm_image: str = "vllm/vllm-openai:v0.32.0"
    """Image of vLLM, where the run names none. On CPUs, the worker's image has a vLLM for CPUs."""

    image_pull_policy: str = "IfNotPresent"
    """imagePullPolicy of the pods' containers."""

    accelerator: Accelerator = "cuda"
    """cuda: the containers of trainer and vLLM ask for GPUs, unless the run's pod template says otherwise. cpu: they do not."""

    run_as_user: int = 1000
    """User and group of the pods' processes, and group of their volumes. 0: let the cluster choose, as OpenShift does."""

    trainer_grace_seconds: int = 300
    """Time that a trainer has to write a checkpoint before it is killed."""

    pod_monitor: bool = True
    """Make a PodMonitor for each run, where the cluster knows that kind."""

    workers: int = 32
    """Runs that are reconciled at the same time."""

    coalesce_seconds: float = 0.2
    """How long a change of a child waits for others, so that a burst of changes makes one reconcile."""

    resync_seconds: float = 300.0
    """Time between two looks at everything, which find what an event missed."""

    trouble_seconds: float = 15.0
    """Time between two looks at something that is not as it should be."""

    unscheduled_seconds: float = 30.0
    """How long a pod may find no node before that counts as trouble."""

    restart_delay_seconds: float = 10.0
    """Wait before the first attempt that follows a failed one; it doubles with each further one."""

    max_restart_delay_seconds: float = 300.0
    """Longest wait before an attempt."""

    progress_seconds: float = 10.0
    """Time between two questions to a trainer about its progress."""

    progress_write_seconds: float = 30.0
    """Shortest time between two status writes that are only about steps and figures. A new window is written at once."""

    request_timeout_seconds: float = 20.0
    """Longest wait for an answer of the API server."""

    watch_silence_seconds: float = 90.0
    """Silence after which a watch is taken for dead; the API server breaks it at least once a minute."""

    stuck_seconds: float = 300.0
    """Time after which a key that waits in the queue, or a watch that does not work, makes the liveness probe fail."""

    http_port: int = 8080
    """Port of /metrics, /healthz and /readyz."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """How much is logged."""

    log_format: Literal["json", "text"] = "json"
    """How lines of log look: of the trainers and agents that it makes and, where the variable is set, its own."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Reads the variables that are there.

        Raises:
            InvalidSettingError: One of them cannot be read.
        """
        given = {field: environment.get(PREFIX + field.name.upper()) for field in fields(cls)}
        return cls(**{field.name: _parse(field.name, field.type, text) for field, text in given.items() if text is not None})


def _parse(name: str, kind: Any, text: str) -> Any:
    """The value that a text stands for."""
    variable = PREFIX + name.upper()
    if choices := get_args(kind):
        if kind == tuple[str, ...]:
            return tuple(part.strip() for part in text.split(",") if part.strip())
        if text not in choices:
            raise InvalidSettingError(f"{variable} must be one of {', '.join(choices)}, got {text!r}")
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise InvalidSettingError(f"{variable} must be true or false, got {text!r}")
        return text.lower() == "true"
    try:
        value = kind(text)
    except ValueError:
        raise InvalidSettingError(f"{variable} must be a number, got {text!r}") from None
    if kind in (int, float) and not (value > 0 or name in _MAY_BE_ZERO):
        raise InvalidSettingError(f"{variable} must be above zero, got {text!r}")
    return value
