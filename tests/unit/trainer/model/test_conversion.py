"""Arithmetic in bfloat16 on one rank, against the same weights rounded beforehand."""

from pathlib import Path

import pytest
import torch

from spinrun_api.spec import Model
from spinrun_worker.trainer.model.conversion import call_converted, convert_linears
from spinrun_worker.trainer.model.packing import pack
from spinrun_worker.trainer.model.policy import Policy, load_policy
from support.models import random_pairs, tiny_llama


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def policies(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Policy, Policy]:
    """The same weights in fp32 and, rounded, in bfloat16."""
    model = Model(source=str(tiny_llama(tmp_path, tie_word_embeddings=request.param)))
    rounded = load_policy(model)
    for parameter in rounded.parameters():  # and not the rotary frequencies
        parameter.data = parameter.data.to(torch.bfloat16)
    return load_policy(model), rounded


def test_forward_and_backward_are_those_of_rounded_weights(policies: tuple[Policy, Policy]):
    converted, rounded = policies
    convert_linears(converted)
    micro = pack(random_pairs(3), range(3))

    got, want = call_converted(converted, torch.bfloat16, micro), rounded(micro)
    got.sum().backward()
    want.sum().backward()

    assert torch.equal(got, want)
    gradients = {name: parameter.grad for name, parameter in rounded.named_parameters()}
    for name, parameter in converted.named_parameters():
        gradient, of_rounded = parameter.grad, gradients[name]
        assert gradient is not None
        assert of_rounded is not None
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, of_rounded.float(), rtol=0, atol=0.02 * of_rounded.abs().max().item(), msg=name)


def test_no_converted_linear_weight_is_kept_for_the_backward_pass(policies: tuple[Policy, Policy]):
    converted, _ = policies
    convert_linears(converted)
    kept: list[tuple[torch.dtype, torch.Size]] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append((tensor.dtype, tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        call_converted(converted, torch.bfloat16, pack(random_pairs(1), range(1)))

    projection = converted.decoder_layers()[0].get_parameter("mlp.gate_proj.weight")
    assert (torch.float32, projection.shape) in kept
    assert (torch.bfloat16, projection.shape) not in kept
    assert (torch.bfloat16, projection.T.shape) not in kept
