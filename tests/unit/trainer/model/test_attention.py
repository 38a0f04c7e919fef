from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spinrun_worker.trainer.model import attention
from spinrun_worker.trainer.model.attention import PairLengths, PairsLayout, UnsupportedModelError, attend_pairs

HEADS, KEY_HEADS, HEAD_SIZE = 4, 2, 8
LAYOUT = (PairLengths(5, 3, 4), PairLengths(1, 1, 1), PairLengths(9, 6, 0), PairLengths(3, 0, 5))
NUM_TOKENS = sum(map(sum, LAYOUT))


def tensors(*, grad: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, NUM_TOKENS, HEAD_SIZE, generator=generator, dtype=torch.float64).requires_grad_(grad)
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    return query, key, value


def dense_mask(window: int | None) -> Tensor:
    """[T, T] by the rule itself: same pair, not later, not from rejected to chosen, within the window of positions."""
    tokens = [
        (number, part, position)
        for number, (prompt, chosen, rejected) in enumerate(LAYOUT)
        for part, positions in (
            ("prompt", range(prompt)),
            ("chosen", range(prompt, prompt + chosen)),
            ("rejected", range(prompt, prompt + rejected)),
        )
        for position in positions
    ]
    mask = torch.zeros(NUM_TOKENS, NUM_TOKENS, dtype=torch.bool)
    for row, (number, part, position) in enumerate(tokens):
        for column, (other_number, other_part, other_position) in enumerate(tokens[: row + 1]):
            sees = number == other_number and (part, other_part) != ("rejected", "chosen")
            mask[row, column] = sees and (window is None or position - other_position < window)
    return mask


def dense(query: Tensor, key: Tensor, value: Tensor, *, window: int | None, scaling: float, softcap: float | None) -> Tensor:
    key, value = (states.repeat_interleave(HEADS // KEY_HEADS, dim=1) for states in (key, value))
    scores = query @ key.transpose(-1, -2) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~dense_mask(window), float("-inf")).softmax(-1)
    return (weights @ value).transpose(1, 2)


@pytest.mark.parametrize("short", [pytest.param(0, id="one by one"), pytest.param(256, id="together")])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("window", [None, 1, 4, 100])
def test_pairs_attend_as_a_dense_mask_says(window: int | None, softcap: float | None, short: int, monkeypatch):
    monkeypatch.setattr(attention, "SHORT", short)
    inputs, inputs_of_dense = tensors(), tensors()
    layout = PairsLayout(LAYOUT)

    got, weights = attend_pairs(
        nn.Identity(), *inputs, None, pairs=layout, scaling=0.3, sliding_window=window, softcap=softcap, dropout=0.0
    )
    want = dense(*inputs_of_dense, window=window, scaling=0.3, softcap=softcap)
    got.square().sum().backward()
    want.square().sum().backward()

    assert weights is None
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    for mine, theirs in zip(inputs, inputs_of_dense, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-10)


def test_the_layout_notes_the_windows_that_layers_ask_for():
    layout = PairsLayout(LAYOUT)
    for window in (None, 4):
        attend_pairs(nn.Identity(), *tensors(grad=False), None, pairs=layout, sliding_window=window)

    assert layout.windows == {None, 4}


@pytest.mark.parametrize("extra", ["s_aux", "position_bias"])
def test_attention_that_is_more_than_scores_is_refused(extra: str):
    more: dict[str, Any] = {extra: torch.zeros(HEADS)}
    with pytest.raises(UnsupportedModelError, match="Identity uses attention sinks"):
        attend_pairs(nn.Identity(), *tensors(grad=False), None, pairs=PairsLayout(LAYOUT), **more)
