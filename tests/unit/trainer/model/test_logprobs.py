import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, PretrainedConfig

from spinrun_worker.trainer.model.logprobs import contrasts, logit_transform, sum_by_completion, token_logprobs
from spinrun_worker.trainer.model.packing import pack
from support.models import random_pairs

NUM_TOKENS, HIDDEN, VOCABULARY = 11, 6, 20


def head_and_inputs() -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        head = nn.Linear(HIDDEN, VOCABULARY, dtype=torch.float64)
        hidden = torch.randn(NUM_TOKENS, HIDDEN, dtype=torch.float64, requires_grad=True)
        return head, hidden, torch.randint(VOCABULARY, (NUM_TOKENS,))


@pytest.mark.parametrize("chunk_tokens", [1, 3, 10, 11, 1000])
def test_chunks_change_neither_log_probs_nor_gradients(chunk_tokens: int):
    transform = logit_transform(Gemma2Config(final_logit_softcapping=3.0))
    head, hidden, target = head_and_inputs()
    got = token_logprobs(
        hidden, target, head, vocabulary_size=VOCABULARY, transform=transform, max_logits=chunk_tokens * VOCABULARY
    )
    got.square().sum().backward()

    plain_head, plain_hidden, _ = head_and_inputs()
    logits = torch.tanh(plain_head(plain_hidden) / 3.0) * 3.0
    want = logits.log_softmax(-1)[torch.arange(NUM_TOKENS), target]
    want.square().sum().backward()

    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(hidden.grad, plain_hidden.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(head.weight.grad, plain_head.weight.grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(head.bias.grad, plain_head.bias.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_tokens", [3, 1000])
def test_contrasts_stand_beside_the_same_log_probs(chunk_tokens: int):
    head, hidden, target = head_and_inputs()
    noise = torch.randn(NUM_TOKENS, 3, dtype=torch.float64)

    def measured(noise: torch.Tensor | None) -> torch.Tensor:
        size = chunk_tokens * VOCABULARY
        return token_logprobs(
            hidden, target, head, vocabulary_size=VOCABULARY, transform=lambda logits: logits, noise_CK=noise, max_logits=size
        )

    both, alone = measured(noise), measured(None)

    assert torch.equal(both[:, 0], alone)
    torch.testing.assert_close(both[:, 1], contrasts(head(hidden), target, noise), rtol=1e-12, atol=1e-12)


def test_contrast_is_with_the_token_that_noise_draws_from_the_likeliest_others():
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0, 1.0]] * 3, dtype=torch.float64)
    # Its own token is the likeliest, the second, and none of the first three; noise draws the third of the others.
    got = contrasts(logits, torch.tensor([0, 1, 4]), torch.tensor([[0.0, 0.0, 100.0]] * 3))

    # log(e^s* / (e^s* + e^s)) of 2 against 5, 2 against 4 and 3 against 1.
    assert got.tolist() == pytest.approx([-math.log1p(math.exp(gap)) for gap in (3, 2, -2)], rel=1e-12)


def test_the_noise_of_pairs_draws_by_probability():
    (pair,) = random_pairs(1, completion=(2000, 2000))
    noise = pack([pair], [0], top_k=3).noise_CK
    assert noise is not None
    logits = torch.tensor([2.0, 1.0, 0.0, 9.0]).expand(len(noise), 4)

    values = contrasts(logits, torch.full((len(noise),), 3), noise)

    # log σ(s* - 9) is s* - 9 to 1e-3.
    shares = [(values - (other - 9.0)).abs().lt(0.1).float().mean() for other in (2.0, 1.0, 0.0)]
    # 4000 draws: a share is off by 0.008 at most, one time in three.
    assert torch.stack(shares).tolist() == pytest.approx(torch.tensor([2.0, 1.0, 0.0]).softmax(0).tolist(), abs=0.03)


def test_contrasts_stay_finite_far_apart():
    logits = torch.tensor([[2000.0, -2000.0], [-2000.0, 2000.0]], requires_grad=True)

    values = contrasts(logits, torch.tensor([0, 0]), torch.zeros(2, 1))
    values.sum().backward()

    assert values.tolist() == [-4000.0, 0.0]
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_no_more_logits_exist_at_once_than_allowed():
    head, hidden, target = head_and_inputs()
    sizes: list[int] = []

    def watched(chunk: torch.Tensor) -> torch.Tensor:
        sizes.append(len(chunk))
        return head(chunk)

    logprobs = token_logprobs(
        hidden, target, watched, vocabulary_size=VOCABULARY, transform=lambda logits: logits, max_logits=4 * VOCABULARY + 7
    )
    assert sizes == [4, 4, 3]

    logprobs.sum().backward()
    assert sorted(sizes[3:]) == [4, 4], "the last chunk must not be computed twice"


def test_low_precision_logits_are_normalised_in_fp32():
    head, hidden, target = head_and_inputs()
    low = token_logprobs(hidden.bfloat16(), target, head.bfloat16(), vocabulary_size=VOCABULARY, transform=lambda logits: logits)

    assert low.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        pytest.param({}, 6.0, id="plain"),
        pytest.param({"logits_scaling": 4.0}, 1.5, id="granite divides"),
        pytest.param({"logit_scale": 0.25}, 1.5, id="cohere multiplies"),
        pytest.param({"final_logit_softcapping": 2.0}, 2.0 * 0.9950547536867305, id="gemma caps"),
    ],
)
def test_logits_change_as_the_model_family_changes_them(settings: dict[str, Any], want: float):
    got = logit_transform(PretrainedConfig(**settings))(torch.tensor(6.0, dtype=torch.float64))

    assert got.item() == pytest.approx(want, rel=1e-12)


def test_sums_are_weighted_in_all_columns():
    values = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    lengths, weights = torch.tensor([2, 1]), torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)

    assert sum_by_completion(values, lengths, weights).tolist() == [[2.0, 20.0], [0.75, 7.5]]
    assert sum_by_completion(values[:, 0], lengths, weights).tolist() == [2.0, 0.75]


def test_sums_follow_the_completions_and_empty_ones_are_zero():
    logprobs = torch.arange(6.0, requires_grad=True)

    sums = sum_by_completion(logprobs, torch.tensor([2, 0, 3, 1]))
    (sums * torch.tensor([1.0, 10.0, 100.0, 1000.0])).sum().backward()

    assert sums.tolist() == [1.0, 0.0, 9.0, 5.0]
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [1.0, 1.0, 100.0, 100.0, 100.0, 1000.0]
