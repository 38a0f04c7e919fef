"""The optimizer, and its learning rate as a function of the step."""

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW, Optimizer, RMSprop

from spinrun_api.spec import Trainer, of_window
from spinrun_worker.trainer.schedule import Schedule


def make_optimizer(parameters: Iterable[nn.Parameter], trainer: Trainer) -> Optimizer:
    """The optimizer over parameters, sharded or not, with weight decay on matrices only. Each step sets its learning rate."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": trainer.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if trainer.optimizer == "rmsprop":
        return RMSprop(groups, lr=trainer.learning_rate)
    # Fused: one pass over memory instead of ten.
    return AdamW(groups, lr=trainer.learning_rate, fused=True)


def learning_rate(step: int, trainer: Trainer, schedule: Schedule) -> float:
    """Learning rate of a step.

    It follows the schedule over the whole run or, with learningRateByWindow, over the step's window.

    Args:
        step: The step, counted from 0.
        trainer: The spec's block.
        schedule: The run's windows.
    """
    if trainer.learning_rate_by_window is None:
        return _rate(step, schedule.total_steps, trainer.learning_rate, trainer)
    window, position = schedule.locate(step)
    return _rate(position, schedule.steps(window), of_window(trainer.learning_rate_by_window, window), trainer)


def _rate(step: int, num_steps: int, peak: float, trainer: Trainer) -> float:
    """Learning rate of a step out of num_steps.

    It rises linearly over the warm-up steps, reaching the peak at the first step after them, then stays constant, or falls so
    that it would be zero at step num_steps, one after the last.
    """
    warmup = trainer.warmup_steps
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, num_steps - warmup)
    match trainer.schedule:
        case "constant":
            return peak
        case "linear":
            return peak * (1 - progress)
        case "cosine":
            return peak * (1 + math.cos(math.pi * progress)) / 2
