"""The optimizer, and its learning rate as a function of the step."""

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import AdamW, Optimizer, RMSprop

from spinrun_api.spec import Trainer


def make_optimizer(parameters: Iterable[nn.Parameter], trainer: Trainer) -> Optimizer:
    """The optimizer over parameters, sharded or not; weight decay on matrices only. Each step sets its own learning rate."""
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


def learning_rate(step: int, trainer: Trainer, total_steps: int) -> float:
    """Learning rate of a step, counted from 0.

    It rises in a line over the warm-up steps, reaching the peak at the first step after them, then stays, or falls so that it
    would be zero at step total_steps, the one after the last.
    """
    warmup = trainer.warmup_steps
    if step < warmup:
        return trainer.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total_steps - warmup)
    match trainer.schedule:
        case "constant":
            return trainer.learning_rate
        case "linear":
            return trainer.learning_rate * (1 - progress)
        case "cosine":
            return trainer.learning_rate * (1 + math.cos(math.pi * progress)) / 2
