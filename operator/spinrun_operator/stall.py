"""How long each run's attempt has not got any further, by a clock that no change of the machine's time moves."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from spinrun_api.run import SpinRun
from spinrun_kube import names
from spinrun_operator.observed import Observed, is_deleted
from spinrun_operator.queue import Key
from spinrun_protocol.wire import Progress

Json = dict[str, Any]


@dataclass
class _Seen:
    """What was seen of an attempt last, by where it was seen, and when any of that was new."""

    since: float
    by_source: dict[str, Hashable] = field(default_factory=dict[str, Hashable])


class StallClock:
    """Remembers when something about a run was last new. An operator that was just started has seen nothing before."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._runs: dict[Key, _Seen] = {}

    def note(self, key: Key, source: str, seen: Hashable) -> None:
        """Takes note of what is seen.

        Args:
            key: The run.
            source: Where it is seen, such as the pods; each is compared with what it showed before.
            seen: What changes whenever the attempt gets any further.
        """
        run = self._runs.setdefault(key, _Seen(self._clock()))
        if source not in run.by_source or run.by_source[source] != seen:
            run.by_source[source] = seen
            run.since = self._clock()

    def seconds(self, key: Key) -> float:
        """How long nothing was new."""
        run = self._runs.get(key)
        return 0.0 if run is None else self._clock() - run.since

    def forget(self, key: Key) -> None:
        """The run waits for something else, or is gone: the time begins again when it is next seen."""
        self._runs.pop(key, None)


def seen_of_progress(progress: Progress) -> Hashable:
    """What changes whenever the trainer has got something done, by what it tells."""
    return (
        progress.attempt,
        progress.activity,
        progress.window,
        progress.step,
        progress.version,
        progress.prompts_done,
        # Trainers of older versions do not count.
        progress.beats,
    )


def seen_of_pods(run: SpinRun, observed: Observed, attempt: int) -> Hashable | None:
    """What changes whenever the attempt's pods, or the rollouts and scorers that it waits for, get further.

    None while the attempt has no pods, or one of them waits for a node: a full cluster is not the attempt's fault.
    """
    job, pods = observed.own_child(run, "Job", names.job_name(run, attempt)), observed.attempt_pods(run, attempt)
    if job is None or is_deleted(job) or not pods or not all(map(_has_node, pods)):
        return None
    servers = [observed.own_child(run, "StatefulSet", name(run)) for name in (names.rollout_name, names.scorer_name)]
    ready = [(each or {}).get("status", {}).get("readyReplicas", 0) for each in servers]
    return job["metadata"]["uid"], *ready, *((pod["metadata"]["uid"], pod.get("status", {}).get("phase")) for pod in pods)


def _has_node(pod: Json) -> bool:
    return bool(pod.get("spec", {}).get("nodeName"))
