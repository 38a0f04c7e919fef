"""What an administrator can set: one environment variable a field, named SPINRUN_ and the field in capitals."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from spinrun_protocol.commands import Accelerator

PREFIX = "SPINRUN_"
_MAY_BE_ZERO = ("run_as_user", "coalesce_seconds", "starting_seconds", "unscheduled_seconds")
_LARGEST_PORT = 65535
_LARGEST_NUMBER = 2**31 - 1
"""Kubernetes takes no larger user, and as seconds it is 68 years."""
_PREFIX = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/?")
_OWN_PREFIXES = ("spinrun.dev", "app.kubernetes.io")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

PullPolicy = Literal["Always", "IfNotPresent", "Never"]


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

    inherited_prefixes: tuple[str, ...] = ()
    """Prefixes of labels and annotations that a run's children have from the run, such as kueue.x-k8s.io. Those without a prefix
    they have in any case."""

    worker_image: str = "ghcr.io/spinrun/worker:0.1.0"
    """Image of trainer and agent, where the run names none."""

    vllm_image: str = "vllm/vllm-openai:v0.32.0"
    """Image of vLLM, where the run names none. On CPUs, the worker's image has a vLLM for CPUs."""

    image_pull_policy: PullPolicy = "IfNotPresent"
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

    starting_seconds: float = 5.0
    """How long the status of a run that is starting waits for more, so that a start that takes no longer is told in one write."""

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
            InvalidSettingError: One of them cannot be read, or no operator can work with it.
        """
        given = {field: environment.get(PREFIX + field.name.upper()) for field in fields(cls)}
        return cls(**{field.name: _parse(field.name, field.type, text) for field, text in given.items() if text is not None})


def _parse(name: str, kind: Any, text: str) -> Any:
    """The value that a text stands for."""
    if name == "inherited_prefixes":
        return tuple(_checked_prefix(name, part.strip(), text) for part in text.split(",") if part.strip())
    if kind == tuple[str, ...]:
        return tuple(_checked_namespace(name, part.strip(), text) for part in text.split(",") if part.strip())
    if choices := get_args(kind):
        if text not in choices:
            raise _invalid(name, f"one of {', '.join(choices)}", text)
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise _invalid(name, "true or false", text)
        return text.lower() == "true"
    if kind in (int, float):
        return _parse_number(name, kind, text)
    if name == "namespace":
        return _checked_namespace(name, text, text)
    if not text or any(character.isspace() or not character.isprintable() for character in text):
        raise _invalid(name, "an image's name, without spaces", text)
    return text


def _parse_number(name: str, kind: type[int] | type[float], text: str) -> float:
    wanted = "a number without a fraction" if kind is int else "a number, and finite"
    try:
        value = kind(text)
    except ValueError:
        raise _invalid(name, wanted, text) from None
    # Python alone reads 1_000, and the digits of other scripts.
    if not text.isascii() or "_" in text or (isinstance(value, float) and not math.isfinite(value)):
        raise _invalid(name, wanted, text)
    may_be_zero = name in _MAY_BE_ZERO
    if name.endswith("_port"):
        if not 1 <= value <= _LARGEST_PORT:
            raise _invalid(name, f"a port from 1 to {_LARGEST_PORT}", text)
    elif value < 0 or (value == 0 and not may_be_zero):
        raise _invalid(name, "zero or above" if may_be_zero else "above zero", text)
    elif value > _LARGEST_NUMBER:
        raise _invalid(name, f"at most {_LARGEST_NUMBER}", text)
    return value


def _checked_namespace(name: str, namespace: str, text: str) -> str:
    wanted = "the name of a namespace" if name == "namespace" else "names of namespaces, with commas between"
    if not _NAMESPACE.fullmatch(namespace):
        raise _invalid(name, wanted, text)
    return namespace


def _checked_prefix(name: str, prefix: str, text: str) -> str:
    if not _PREFIX.fullmatch(prefix) or prefix.removesuffix("/") in _OWN_PREFIXES:
        raise _invalid(name, "prefixes of labels other than the operator's own, with commas between", text)
    return prefix


def _invalid(name: str, wanted: str, text: str) -> InvalidSettingError:
    return InvalidSettingError(f"{PREFIX}{name.upper()} must be {wanted}, got {text!r}")
