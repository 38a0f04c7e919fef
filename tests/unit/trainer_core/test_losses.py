import math
from typing import get_args

import pytest
import torch

from spinrun_api.spec import Method
from spinrun_worker.methods.losses import LOSSES, sigmoid


def loss_of(margins: list[float], *, beta: float = 0.1, label_smoothing: float = 0.0) -> torch.Tensor:
    """The loss where the policy prefers chosen over rejected by a margin more than the reference does."""
    zero_B = torch.zeros(len(margins), dtype=torch.float64)
    chosen_B = torch.tensor(margins, dtype=torch.float64)
    return sigmoid(chosen_B, zero_B, zero_B, zero_B, beta=beta, label_smoothing=label_smoothing)


@pytest.mark.parametrize(
    ("policy", "reference", "beta", "label_smoothing", "want"),
    [
        # h = (-10 + 12) - (-20 + 19) = 3; -log σ(0.3)
        pytest.param((-10.0, -20.0), (-12.0, -19.0), 0.1, 0.0, 0.5543552444685271, id="preferred"),
        # h = -3; -log σ(-0.3)
        pytest.param((-12.0, -19.0), (-10.0, -20.0), 0.1, 0.0, 0.8543552444685272, id="not preferred"),
        # -0.9 log σ(0.3) - 0.1 log σ(-0.3)
        pytest.param((-10.0, -20.0), (-12.0, -19.0), 0.1, 0.1, 0.5843552444685271, id="label smoothing"),
        # -log σ(6)
        pytest.param((-10.0, -20.0), (-12.0, -19.0), 2.0, 0.0, 0.0024756851377301, id="larger beta"),
        pytest.param((-5.0, -7.0), (-5.0, -7.0), 0.1, 0.3, math.log(2), id="at the reference"),
    ],
)
def test_sigmoid_is_the_published_dpo_loss(policy, reference, beta, label_smoothing, want):
    tensors = [torch.tensor([value], dtype=torch.float64) for value in (*policy, *reference)]

    got = sigmoid(*tensors, beta=beta, label_smoothing=label_smoothing)

    assert got.item() == pytest.approx(want, rel=1e-12)


def test_sigmoid_gradient_is_minus_beta_times_the_probability_of_the_wrong_order():
    margin = torch.tensor([0.5, -3.0], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(2, dtype=torch.float64)

    sigmoid(margin, zero, zero, zero, beta=0.2, label_smoothing=0.0).sum().backward()

    # arXiv 2305.18290, section 4: the weight is σ(-βh).
    assert margin.grad is not None
    assert margin.grad.tolist() == pytest.approx([-0.2 / (1 + math.exp(0.1)), -0.2 / (1 + math.exp(-0.6))], rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_sigmoid_stays_finite_far_from_the_reference(dtype, label_smoothing):
    margin = torch.tensor([2000.0, -2000.0], dtype=dtype, requires_grad=True)
    zero = torch.zeros(2, dtype=dtype)

    losses = sigmoid(margin, zero, zero, zero, beta=1.0, label_smoothing=label_smoothing)
    losses.sum().backward()

    assert losses.tolist() == pytest.approx([2000 * label_smoothing, 2000 * (1 - label_smoothing)])
    assert margin.grad is not None
    assert margin.grad.tolist() == pytest.approx([label_smoothing, label_smoothing - 1])


def test_each_pair_has_its_own_loss():
    together = loss_of([1.0, -2.0, 30.0])

    assert together.tolist() == [loss_of([margin]).item() for margin in (1.0, -2.0, 30.0)]


def test_every_loss_of_the_spec_is_registered():
    assert set(get_args(Method.model_fields["loss"].annotation)) == set(LOSSES)
