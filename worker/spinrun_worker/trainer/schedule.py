"""How a run divides into windows, steps and prompts. Pure arithmetic: resume is exact because nothing here has a state."""

import math
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

from spinrun_api.spec import SpinRunSpec

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Schedule:
    """The run's windows and steps, counted from 0.

    Window k begins with version k and trains `steps_per_window` steps, and as many again for each window that it replays;
    without replay the last window may have fewer.
    """

    total_steps: int
    steps_per_window: int
    prompts_per_step: int
    windows_per_reference: int = 1
    """Windows that share a reference; 0: all."""
    replay_windows: int = 0
    """Windows before it whose pairs a window trains on too."""
    overlap: int = 0
    """Windows that the rollouts are ahead of the trainer."""
    uses_reference: bool = True
    """Whether the loss compares with a reference."""
    mixes_references: bool = False
    """Whether a reference but the first is a mixture of a version and the reference before."""

    @property
    def windows(self) -> int:
        """Windows in all."""
        return bisect_left(range(self.total_steps), self.total_steps, key=self._start)

    def first_step(self, window: int) -> int:
        """Steps done when the window begins."""
        return min(self._start(window), self.total_steps)

    def steps(self, window: int) -> int:
        """Steps of the window."""
        return self.first_step(window + 1) - self.first_step(window)

    def locate(self, step: int) -> tuple[int, int]:
        """(window, steps of it that are done) after a number of steps; (windows, 0) at the end of the run."""
        if step >= self.total_steps:
            return self.windows, 0
        window = bisect_right(range(self.total_steps), step, key=self._start) - 1
        return window, step - self._start(window)

    def prompts(self, window: int) -> tuple[int, int]:
        """(position of its first prompt in the stream of prompts, number of prompts) of the window."""
        own_steps = self.steps(window) // (1 + len(self.replayed(window)))
        return window * self.steps_per_window * self.prompts_per_step, own_steps * self.prompts_per_step

    def sampler(self, window: int) -> int:
        """The version that answers the window's prompts."""
        return max(0, window - self.overlap)

    def reference(self, window: int) -> int | None:
        """The version that the window's pairs are compared with; None where the loss compares with none."""
        if not self.uses_reference:
            return None
        return window - window % self.windows_per_reference if self.windows_per_reference else 0

    def is_mixture(self, reference: int) -> bool:
        """Whether the reference that windows have from this one on is a mixture: the first is version 0."""
        return self.mixes_references and reference > 0

    def mixes_at(self, window: int) -> bool:
        """Whether a mixture is made as the window begins, to be its reference."""
        return window < self.windows and self.reference(window) == window and self.is_mixture(window)

    def starts_at_its_reference(self, window: int) -> bool:
        """Whether a window is compared with the very weights that it begins with."""
        return self.reference(window) == window and not self.is_mixture(window)

    def replayed(self, window: int) -> range:
        """The windows whose pairs the window trains on beside its own."""
        return range(max(0, window - self.replay_windows), window)

    def _start(self, window: int) -> int:
        """Steps before a window, as if the run never ended."""
        growing = min(window, self.replay_windows)  # windows that replay all there are before them
        replays = growing * (growing - 1) // 2 + (window - growing) * self.replay_windows
        return (window + replays) * self.steps_per_window


def make_schedule(spec: SpinRunSpec, *, num_prompts: int) -> Schedule:
    """The schedule of a run over a data set of num_prompts prompts (at least one)."""
    method, duration = spec.method, spec.duration
    per_step, per_window = spec.trainer.least_prompts_per_step, method.steps_per_window
    endless = Schedule(
        sys.maxsize,
        per_window,
        per_step,
        method.windows_per_reference,
        method.replay_windows,
        method.overlap,
        method.uses_reference,
        method.reference_mixture is not None,
    )
    if duration.steps is not None:
        total = duration.steps
    elif duration.windows is not None:
        total = endless.first_step(duration.windows)
    else:
        assert duration.epochs is not None  # Duration has exactly one of the three
        total = endless.first_step(math.ceil(duration.epochs * num_prompts / (per_step * per_window)))
    return replace(endless, total_steps=total)


def divide(items: Sequence[Item], parts: int) -> list[Sequence[Item]]:
    """Items in order, in `parts` runs whose lengths differ by one at most, the longer ones first.

    With fewer items than parts the last ones are empty: those steps of a window have nothing to learn from and are skipped.
    """
    size, longer = divmod(len(items), parts)
    bounds = [index * size + min(index, longer) for index in range(parts + 1)]
    return [items[start:end] for start, end in pairwise(bounds)]


def split_into_steps(pairs: Mapping[int, Sequence[Item]], steps: int) -> list[dict[int, Sequence[Item]]]:
    """Pairs of a window, by the window that they come from, as its steps: each has its share of the pairs of every window."""
    divided = {window: divide(items, steps) for window, items in pairs.items()}
    return [{window: shares[step] for window, shares in divided.items()} for step in range(steps)]


def by_window(steps: Sequence[Mapping[int, Sequence[Item]]]) -> dict[int, list[Item]]:
    """Pairs by the window that they come from again, in their order before `split_into_steps`."""
    return {window: [item for step in steps for item in step[window]] for window in steps[0]}
