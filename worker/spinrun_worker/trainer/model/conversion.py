"""Arithmetic in a narrower dtype than the weights', without FSDP: for one rank, whose weights are whole.

Weights are converted where they are used, and again in the backward pass, so that no copy of them outlives a layer.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call


class _ConvertingLinear(torch.autograd.Function):
    """x @ weight.T in the dtype of x; the gradient of the weight has the weight's dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.to(x.dtype).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (gradient,), (x, weight) = gradients, ctx.saved_tensors
        of_x = gradient @ weight.to(x.dtype) if ctx.needs_input_grad[0] else None
        of_weight = gradient.flatten(0, -2).T @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return of_x, None if of_weight is None else of_weight.to(weight.dtype)


def convert_linears(model: nn.Module) -> None:
    """Have every linear layer compute in the dtype of its input."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.forward = partial(_linear, module)


def _linear(module: nn.Linear, input: Tensor) -> Tensor:
    if input.dtype == module.weight.dtype:
        return nn.functional.linear(input, module.weight, module.bias)
    product = cast(Tensor, _ConvertingLinear.apply(input, module.weight))
    return product if cast(Tensor | None, module.bias) is None else product + module.bias.to(input.dtype)


def call_converted(model: nn.Module, dtype: torch.dtype, *inputs: object) -> Tensor:
    """Call a model with its weights converted to a dtype, after `convert_linears`.

    The weights of linear layers are converted inside those layers; the others, such as embeddings and norms, here.

    Args:
        model: The model.
        dtype: The dtype of the arithmetic.
        *inputs: Passed to the model.
    """
    of_linears = {id(parameter) for parameter in _parameters_of(model, nn.Linear)}
    of_linears -= {id(parameter) for parameter in _parameters_of(model, nn.Embedding)}  # an output matrix may be tied to them
    others = {name: weight.to(dtype) for name, weight in model.named_parameters() if id(weight) not in of_linears}
    return cast(Tensor, functional_call(model, others, inputs))


def _parameters_of(model: nn.Module, kind: type[nn.Module]) -> Iterator[nn.Parameter]:
    for module in model.modules():
        if type(module) is kind:
            yield from module.parameters(recurse=False)
