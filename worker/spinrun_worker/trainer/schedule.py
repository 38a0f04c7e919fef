"""How a run divides into windows, steps and prompts. Pure arithmetic: resume is exact because nothing here has a state."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from spinrun_api.spec import SpinRunSpec

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Schedule:
    """The run's windows and steps, counted from 0.

    Window k samples from version k and trains up to `steps_per_window` steps; the last window may have fewer.
    """

    total_steps: int
    steps_per_window: int
    prompts_per_step: int

    @property
    def windows(self) -> int:
        """Windows in all."""
        return math.ceil(self.total_steps / self.steps_per_window)

    def first_step(self, window: int) -> int:
        """Steps done when the window begins."""
        return min(window * self.steps_per_window, self.total_steps)

    def steps(self, window: int) -> int:
        """Steps of the window."""
        return self.first_step(window + 1) - self.first_step(window)

    def locate(self, step: int) -> tuple[int, int]:
        """(window, steps of it that are done) after a number of steps; (windows, 0) at the end of the run."""
        if step >= self.total_steps:
            return self.windows, 0
        return divmod(step, self.steps_per_window)

    def prompts(self, window: int) -> tuple[int, int]:
        """(position of its first prompt in the stream of prompts, number of prompts) of the window."""
        return self.first_step(window) * self.prompts_per_step, self.steps(window) * self.prompts_per_step


def make_schedule(spec: SpinRunSpec, *, num_prompts: int) -> Schedule:
    """The schedule of a run over a data set of num_prompts prompts (at least one)."""
    per_window = spec.method.ref_update_freq
    per_step = spec.trainer.prompts_per_step
    duration = spec.duration
    if duration.steps is not None:
        total = duration.steps
    elif duration.windows is not None:
        total = duration.windows * per_window
    else:
        assert duration.epochs is not None  # Duration has exactly one of the three
        total = math.ceil(duration.epochs * num_prompts / (per_step * per_window)) * per_window
    return Schedule(total_steps=total, steps_per_window=per_window, prompts_per_step=per_step)


def divide(items: Sequence[Item], parts: int) -> list[Sequence[Item]]:
    """Items in order, in `parts` runs whose lengths differ by one at most, the longer ones first.

    With fewer items than parts the last ones are empty: those steps of a window have nothing to learn from and are skipped.
    """
    size, longer = divmod(len(items), parts)
    bounds = [index * size + min(index, longer) for index in range(parts + 1)]
    return [items[start:end] for start, end in pairwise(bounds)]
