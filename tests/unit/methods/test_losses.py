"""The losses against numbers worked by hand, and against TRL: its DPOTrainer computes on log-probs that the tests give it."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_args

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from spinrun_api.spec import Cringe, Method, Model
from spinrun_api.spec.method import LOSS_BLOCKS, WITHOUT_REFERENCE
from spinrun_protocol.wire import Sample
from spinrun_worker.errors import RunError
from spinrun_worker.methods.losses import LOSSES, PairLogprobs, divergences, pair_losses
from spinrun_worker.methods.pairing import pair_groups
from spinrun_worker.records import Pair, PromptRecord, ScoredGroup
from spinrun_worker.trainer.model.logprobs import sum_by_completion
from spinrun_worker.trainer.model.packing import pack
from spinrun_worker.trainer.model.policy import load_policy
from spinrun_worker.trainer.reference.self_check import self_check
from support.models import random_pairs
from unit.trainer.model.test_learner import fp64_policy, gradient, learner, referred

DOCS = Path(__file__).resolve().parents[3] / "docs"


@dataclass(frozen=True)
class OnePair:
    """Summed log-probs of a pair, nats, and the tokens of its completions."""

    policy_chosen: float
    policy_rejected: float
    reference_chosen: float = -10.0
    reference_rejected: float = -20.0
    chosen_tokens: int = 4
    rejected_tokens: int = 2
    chosen_reward: float = 0.75
    rejected_reward: float = 0.375
    contrast: float = -3.0

    def swapped(self) -> "OnePair":
        """Chosen and rejected the other way round."""
        chosen, rejected = (astuple(self)[start:8:2] for start in (0, 1))
        return OnePair(*(value for two in zip(rejected, chosen, strict=True) for value in two))


def tensors(pairs: Sequence[OnePair], dtype: torch.dtype = torch.float64) -> PairLogprobs:
    """The policy's log-probs take a gradient."""
    policy, reference, tokens, rewards = (
        torch.tensor([astuple(pair)[start : start + 2] for pair in pairs], dtype=dtype) for start in (0, 2, 4, 6)
    )
    contrast = torch.tensor([pair.contrast for pair in pairs], dtype=dtype)
    return PairLogprobs(policy.requires_grad_(), reference, tokens, rewards, contrast)


def method_with(loss: str, **settings: Any) -> Method:
    """A method that takes the loss."""
    name = "sppo" if loss in ("sppo", "sppoAdvantage") else "onlineDPO"
    return Method.model_validate({"name": name, "loss": loss, **settings})


def ours(pair: OnePair, **method: Any) -> tuple[float, list[float]]:
    """(loss, gradient by the policy's log-probs of chosen and rejected)."""
    inputs = tensors([pair])
    loss_B = pair_losses(inputs, Method.model_validate(method))
    loss_B.sum().backward()
    assert inputs.policy_B2.grad is not None
    return loss_B.item(), inputs.policy_B2.grad[0].tolist()


# --- numbers worked by hand -----------------------------------------------------------------------------------------

# Log-ratios of 2 and -1, so that h = 3; 4 and 2 tokens.
BY_HAND = OnePair(-8.0, -21.0)
LOG_SIGMOID_03, LOG_SIGMOID_MINUS_03 = -0.5543552444685271, -0.8543552444685272


@pytest.mark.parametrize(
    ("method", "want"),
    [
        # -log σ(0.3)
        pytest.param({}, -LOG_SIGMOID_03, id="sigmoid"),
        pytest.param({"sigmoid": {"labelSmoothing": 0.1}}, -0.9 * LOG_SIGMOID_03 - 0.1 * LOG_SIGMOID_MINUS_03, id="smoothed"),
        # -log σ(6)
        pytest.param({"beta": 2.0}, 0.0024756851377301, id="larger beta"),
        # 1 - 0.3
        pytest.param({"loss": "hinge"}, 0.7, id="hinge"),
        # 1 - 6 is below 0
        pytest.param({"loss": "hinge", "beta": 2.0}, 0.0, id="hinge beyond its margin"),
        # (2/4 + 1/2 - 5)²
        pytest.param({"loss": "ipo"}, 16.0, id="ipo per token"),
        # Scores of 1 - e^-2 and 1 - e^1: 1 - 0.1 (e - e^-2)
        pytest.param({"loss": "hinge", "hinge": {"divergence": "forwardKL"}}, 1 - 0.1 * (math.e - math.exp(-2)), id="forward KL"),
        # Scores of log (2 e^2 / (e^2 + 1)) and log (2 e^-1 / (e^-1 + 1)), whose difference is log ((1 + e) / (1 + e^-2))
        pytest.param(
            {"loss": "hinge", "hinge": {"divergence": "js"}},
            1 - 0.1 * math.log((1 + math.e) / (1 + math.exp(-2))),
            id="Jensen-Shannon",
        ),
        # Scores of 2 (1 - e^-1) and 2 (1 - e^0.5)
        pytest.param(
            {"loss": "hinge", "hinge": {"divergence": "alpha"}},
            1 - 0.1 * 2 * (math.exp(0.5) - math.exp(-1)),
            id="alpha one half",
        ),
        # (3 - 5)²
        pytest.param({"loss": "ipo", "ipo": {"average": False}}, 4.0, id="ipo summed"),
        pytest.param({"loss": "robust"}, -LOG_SIGMOID_03, id="robust without noise"),
        pytest.param(
            {"loss": "robust", "robust": {"labelSmoothing": 0.1}},
            (-0.9 * LOG_SIGMOID_03 + 0.1 * LOG_SIGMOID_MINUS_03) / 0.8,
            id="robust",
        ),
        # p (log p - log 0.999) + q (log q - log 0.001), p = σ(0.3) = 0.574442516811659
        pytest.param(
            {"loss": "exo"},
            0.574442516811659 * (LOG_SIGMOID_03 + 0.001000500333583534)
            + 0.425557483188341 * (LOG_SIGMOID_MINUS_03 + 6.907755278982137),
            id="exo",
        ),
        # With p, q as above: p (log p - log 0.9) + q (log q - log 0.1)
        pytest.param(
            {"loss": "exo", "exo": {"floor": 0.1}},
            0.574442516811659 * (LOG_SIGMOID_03 + 0.105360515657826)
            + 0.425557483188341 * (LOG_SIGMOID_MINUS_03 + 2.302585092994046),
            id="exo with another floor",
        ),
        # -log σ(0.1 (2/4 + 1/2))
        pytest.param({"loss": "sigmoidNorm"}, 0.6443966600735709, id="sigmoidNorm"),
        # -log σ(0.2) - log σ(0.1)
        pytest.param({"loss": "bco"}, 0.5981388693815918 + 0.6443966600735709, id="bco"),
        # x = 0.3, m = σ(0.6): (1-m) (-log σ(x)) + m e^-x
        pytest.param(
            {"loss": "discopop", "discopop": {"tau": 0.5}},
            -LOG_SIGMOID_03 / (1 + math.exp(0.6)) + math.exp(-0.3) / (1 + math.exp(-0.6)),
            id="discopop",
        ),
        # The chosen answer has become likelier: as sigmoid.
        pytest.param({"loss": "dpop"}, -LOG_SIGMOID_03, id="dpop"),
        # -log σ(2 (-8/4 + 21/2) - 1)
        pytest.param({"loss": "simpo", "beta": 2.0, "simpo": {"gamma": 1.0}}, math.log1p(math.exp(-16)), id="simpo"),
        # p = e^-2 and e^-10.5: 2 - ½ log σ(log odds - log odds)
        pytest.param(
            {"loss": "orpo", "orpo": {"weight": 0.5}},
            2 + 0.5 * math.log1p(math.exp(-(-2 - math.log1p(-math.exp(-2)) + 10.5 + math.log1p(-math.exp(-10.5))))),
            id="orpo",
        ),
        # -log σ(0.2) - ½ log σ(-0.2) - ½ log σ(0.1)
        pytest.param({"loss": "nca"}, 0.5981388693815918 + 0.3990694346907959 + 0.3221983300315217, id="nca"),
        # σ(-0.2) + σ(-0.1)
        pytest.param({"loss": "apoZero"}, 0.4501660026875221 + 0.47502081252106, id="apoZero"),
        # σ(0.2) + σ(-0.3)
        pytest.param({"loss": "apoDown"}, 0.549833997312478 + 0.425557483188341, id="apoDown"),
        # (2 - 5)² + (-1 + 5)²
        pytest.param({"loss": "sppoHard"}, 25.0, id="sppoHard"),
        # The margin is -8 + 21 = 13: σ((3 - 13) / 10) · (8 + 2 · 3)
        pytest.param({"loss": "cringe", "cringe": {"bias": 3.0, "weight": 2.0}}, 0.2689414213699951 * 14, id="cringe"),
        # σ(-13 / 2) · (8 + 3)
        pytest.param({"loss": "cringe", "cringe": {"temperature": 2.0}}, 0.0015011822567369917 * 11, id="cringe, sharper gate"),
        # ½ (2 - 8 · 0.25)² + ½ (-1 + 8 · 0.125)²
        pytest.param({"name": "sppo", "loss": "sppo", "sppo": {"eta": 8.0}}, 0.0, id="sppo at its targets"),
        # ½ (2 - 16 · 0.25)² + ½ (-1 + 16 · 0.125)²
        pytest.param({"name": "sppo", "loss": "sppo", "sppo": {"eta": 16.0}}, 2.5, id="sppo"),
        # ½ (2 - 0.75)² + ½ (-1 - 0.375)²
        pytest.param({"name": "sppo", "loss": "sppoAdvantage"}, 1.7265625, id="sppoAdvantage"),
        # ½ (2 - 4 · 0.75)² + ½ (-1 - 4 · 0.375)²
        pytest.param(
            {"name": "sppo", "loss": "sppoAdvantage", "sppoAdvantage": {"eta": 4.0}}, 3.625, id="sppoAdvantage with eta"
        ),
        # 0.7 + 0.5 · 8/4
        pytest.param({"loss": "hinge", "sftWeight": 0.5}, 1.7, id="with sftWeight"),
        # 0.7 + 0.5 · ½ (2² + 1²) / 2
        pytest.param({"loss": "hinge", "klWeight": 0.5}, 1.325, id="with klWeight"),
        pytest.param({"loss": "hinge", "klWeight": 0.5, "sftWeight": 0.5}, 2.325, id="with both"),
    ],
)
def test_loss_is_the_published_one(method: dict[str, Any], want: float):
    got, _ = ours(BY_HAND, **method)

    assert got == pytest.approx(want, rel=1e-9)


AT_REFERENCE = {
    "sigmoid": math.log(2),
    "sigmoidNorm": math.log(2),
    "hinge": 1.0,
    "ipo": 25.0,
    "robust": math.log(2),
    # ½ (log ½ - log 0.999) + ½ (log ½ - log 0.001)
    "exo": -math.log(2) + (0.001000500333583534 + 6.907755278982137) / 2,
    "nca": 2 * math.log(2),
    "bco": 2 * math.log(2),
    "apoZero": 1.0,
    "apoDown": 1.0,
    # ½ (log 2 + 1)
    "discopop": (math.log(2) + 1) / 2,
    "dpop": math.log(2),
    "sppoHard": 50.0,
}


@pytest.mark.parametrize("loss", AT_REFERENCE)
def test_loss_at_the_reference_does_not_depend_on_the_pair(loss: str):
    got = pair_losses(
        tensors([OnePair(-10.0, -20.0), OnePair(-3.0, -90.0, -3.0, -90.0, 7, 1)]), Method.model_validate({"loss": loss})
    )

    assert got.tolist() == pytest.approx([AT_REFERENCE[loss]] * 2, rel=1e-12)


def test_the_other_losses_depend_on_answers_or_rewards_at_the_reference_too():
    assert set(LOSSES) - set(AT_REFERENCE) == {"cringe", "simpo", "orpo", "sppo", "sppoAdvantage"}


def test_sppo_at_the_reference_is_the_distance_to_its_targets():
    # ½ (1000 · 0.25)² + ½ (1000 · 0.125)²
    assert ours(OnePair(-10.0, -20.0), name="sppo", loss="sppo")[0] == pytest.approx(39062.5, rel=1e-12)


@pytest.mark.parametrize("loss", sorted(WITHOUT_REFERENCE))
def test_loss_has_no_reference(loss: str):
    one, other = OnePair(-8.0, -21.0), OnePair(-8.0, -21.0, -30.0, -2.0)
    assert ours(one, loss=loss) == ours(other, loss=loss)


def test_dpop_takes_from_the_margin_what_the_chosen_answer_lost():
    # Log-ratios of -2 and -5: h = 3, and 3 - 0.5 · 2 = 2
    loss, gradients = ours(OnePair(-12.0, -25.0), loss="dpop", dpop={"weight": 0.5})
    wrong = 1 / (1 + math.exp(0.2))

    assert loss == pytest.approx(math.log1p(math.exp(-0.2)), rel=1e-12)
    assert gradients == pytest.approx([-0.1 * 1.5 * wrong, 0.1 * wrong], rel=1e-12)


def test_discopop_is_linear_where_the_order_is_wrong_by_far():
    loss, gradients = ours(OnePair(-2010.0, -20.0), loss="discopop")

    assert loss == pytest.approx(200.0)
    assert gradients == pytest.approx([-0.1, 0.1])


def test_orpo_takes_a_certain_answer_for_one_of_large_odds():
    loss, gradients = ours(OnePair(0.0, -21.0, 0.0, -20.0, 3, 2), loss="orpo")

    assert loss == pytest.approx(0.0, abs=1e-9)
    assert all(map(math.isfinite, gradients))


def test_sigmoid_gradient_is_minus_beta_times_the_probability_of_the_wrong_order():
    _, gradients = ours(BY_HAND, beta=0.2)

    # arXiv 2305.18290, section 4: the weight is σ(-βh).
    weight = 0.2 / (1 + math.exp(0.6))
    assert gradients == pytest.approx([-weight, weight], rel=1e-12)


def test_cringe_fades_out_where_the_chosen_answer_is_likelier_by_far():
    losses = [ours(OnePair(-50.0, -50.0 - margin), loss="cringe")[0] for margin in (-200.0, 0.0, 20.0, 200.0)]

    assert losses == pytest.approx([53.0, 53.0 / 2, 53.0 / (1 + math.exp(2)), 0.0], abs=1e-6)


def test_cringe_pulls_the_chosen_answer_up_by_likelihood_and_by_its_gate():
    _, gradients = ours(BY_HAND, loss="cringe")

    # Of gate g and content L = 8 + 3: by the chosen log-prob -g - L g (1 - g) / τ, by the rejected one L g (1 - g) / τ.
    gate = 1 / (1 + math.exp(1.3))
    through_gate = 11 * gate * (1 - gate) / 10
    assert gradients == pytest.approx([-gate - through_gate, through_gate], rel=1e-12)


def test_the_gradient_of_kl_weight_is_half_of_it_times_the_log_ratio_of_each_answer():
    _, without = ours(BY_HAND, loss="nca")
    _, gradients = ours(BY_HAND, loss="nca", klWeight=0.3)

    assert gradients == pytest.approx([without[0] + 0.15 * 2, without[1] - 0.15], rel=1e-12)


def test_over_samples_of_the_policy_the_gradient_of_the_divergence_is_that_of_its_estimates():
    logits = torch.tensor([0.3, -1.2, 0.9], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-0.4, 0.1, 0.2], dtype=torch.float64).log_softmax(0)

    # Answers as often as the policy gives them, chosen and rejected independent of each other.
    policy = logits.log_softmax(0)
    answers = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    shares = policy.detach().exp()[answers].prod(dim=1)
    unused = torch.ones(len(answers), 2)
    estimates = divergences(PairLogprobs(policy[answers], reference[answers], unused, unused))
    (got,) = torch.autograd.grad((shares * estimates).sum(), logits)

    policy = logits.log_softmax(0)
    (want,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_uses_a_reference_where_its_value_depends_on_one_and_with_kl_weight(loss: str):
    pairs = [OnePair(-8.0, -21.0), OnePair(-8.0, -21.0, -30.0, -2.0)]
    losses = [pair_losses(tensors([pair]), method_with(loss)).item() for pair in pairs]

    assert method_with(loss).uses_reference == (losses[0] != losses[1])
    assert method_with(loss, klWeight=0.1).uses_reference


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - WITHOUT_REFERENCE))
def test_kl_weight_leaves_the_loss_at_the_reference_as_it_is(loss: str):
    at_reference = tensors([OnePair(-10.0, -20.0)])

    assert pair_losses(at_reference, method_with(loss, klWeight=7.0)) == pair_losses(at_reference, method_with(loss))


def test_robust_may_be_negative():
    loss, _ = ours(OnePair(90.0, -20.0), loss="robust", robust={"labelSmoothing": 0.3})

    assert loss == pytest.approx(-7.4999, rel=1e-4)  # (0.7 · 4.5e-5 - 0.3 · 10) / 0.4


def test_an_empty_answer_has_no_log_prob_per_token_and_breaks_nothing():
    loss, gradients = ours(OnePair(0.0, -21.0, 0.0, -20.0, 0, 2), loss="ipo", sftWeight=1.0)

    assert loss == pytest.approx((0.5 - 5) ** 2)
    assert all(map(math.isfinite, gradients))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("loss", "label_smoothing"), [*((loss, 0.0) for loss in LOSSES), ("sigmoid", 0.1), ("robust", 0.1)])
def test_loss_and_gradient_stay_finite_far_from_the_reference(loss: str, label_smoothing: float, dtype: torch.dtype):
    far = [OnePair(chosen, rejected, 0.0, 0.0) for chosen in (-2000.0, 0.0, 2000.0) for rejected in (-2000.0, 0.0, 2000.0)]
    inputs = tensors(far, dtype)

    smoothed = {loss: {"labelSmoothing": label_smoothing}} if label_smoothing else {}
    losses_B = pair_losses(inputs, method_with(loss, beta=1.0, klWeight=0.1, **smoothed))
    losses_B.sum().backward()

    assert losses_B.isfinite().all()
    assert inputs.policy_B2.grad is not None
    assert inputs.policy_B2.grad.isfinite().all()


@pytest.mark.parametrize("loss", sorted(LOSS_BLOCKS.keys() - {"grpo"}))
def test_absent_block_stands_for_the_defaults_of_its_loss(loss: str):
    assert ours(BY_HAND, **method_with(loss).to_document()) == ours(BY_HAND, **method_with(loss, **{loss: {}}).to_document())


@pytest.mark.parametrize("loss", LOSSES)
def test_each_pair_has_its_own_loss(loss: str):
    method = method_with(loss, klWeight=0.5, sftWeight=0.0 if loss == "sppoAdvantage" else 0.5)
    pairs = [OnePair(-8.0, -21.0), OnePair(-40.0, -3.0, -35.0, -30.0, 9, 1), OnePair(-10.0, -20.0, chosen_tokens=50)]

    together = pair_losses(tensors(pairs), method).tolist()

    assert together == [pair_losses(tensors([pair]), method).item() for pair in pairs]


def test_every_loss_of_the_spec_is_registered_and_described():
    names = get_args(Method.model_fields["loss"].annotation)
    page = (DOCS / "methods.md").read_text()

    assert set(names) == {*LOSSES, "grpo"}, "grpo has no pairs, and a module of its own"
    assert [name for name in names if f"| `{name}` |" not in page] == []


# --- in the learner -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - WITHOUT_REFERENCE))
def test_self_check_knows_the_first_loss_of_each_method(loss: str, llama: Path):
    method = method_with(loss)
    trained = learner(load_policy(Model(source=str(llama))), method=method, tokensPerMicroBatch=64)
    pairs = random_pairs(5)

    first = trained.step(referred(trained, pairs), learning_rate=0.0)
    moved = trained.step(referred(trained, pairs, shift=2.0), learning_rate=0.0)

    assert first is not None
    assert first.figures["loss"] == pytest.approx(AT_REFERENCE.get(loss, first.loss_at_reference), rel=1e-12)
    self_check(first)
    assert moved is not None
    with pytest.raises(RunError, match="the first step of a window must have the loss at its reference"):
        self_check(moved)


def test_self_check_leaves_room_for_the_likelihood_of_the_chosen_answer(llama: Path):
    trained = learner(load_policy(Model(source=str(llama))), method=Method(sft_weight=0.5))

    first = trained.step(referred(trained, random_pairs(5)), learning_rate=0.0)

    assert first is not None
    assert first.figures["loss"] > math.log(2) + 1
    self_check(first)


def test_cringe_is_the_same_however_pairs_are_packed_and_by_hand(llama: Path):
    method = Method(loss="cringe", cringe=Cringe(top_k=1, weight=0.5))
    pairs = referred(learner(fp64_policy(llama)), random_pairs(5), shift=2.0)

    whole_loss, whole_gradient = gradient(fp64_policy(llama), pairs, method=method)
    loss, gradient_in_parts = gradient(fp64_policy(llama), pairs, method=method, tokensPerMicroBatch=16)

    # With one token to draw from there is no chance: it is the likeliest but the rejected one.
    plain = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float64, attn_implementation="eager")
    losses: list[Tensor] = []
    for pair in pairs:
        chosen_logits, rejected_logits = (
            plain(input_ids=torch.tensor([pair.prompt + completion])).logits[0, len(pair.prompt) - 1 : -1]
            for completion in (pair.chosen, pair.rejected)
        )
        chosen, rejected = (
            logits.log_softmax(-1)[torch.arange(len(completion)), list(completion)].sum()
            for logits, completion in ((chosen_logits, pair.chosen), (rejected_logits, pair.rejected))
        )
        contrast = sum(
            torch.stack([torch.cat([row[:own], row[own + 1 :]]).max(), row[own]]).log_softmax(0)[0]
            for row, own in zip(rejected_logits, pair.rejected, strict=True)
        )
        losses.append(torch.sigmoid(-(chosen - rejected) / 10) * (-chosen - 0.5 * contrast))
    want_loss = torch.stack(losses).mean()
    want_loss.backward()
    want_gradient = torch.cat([parameter.grad.flatten() for parameter in plain.parameters() if parameter.grad is not None])
    assert whole_loss == pytest.approx(want_loss.item(), rel=1e-5)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    for got_gradient in (whole_gradient, gradient_in_parts):
        torch.testing.assert_close(got_gradient, want_gradient, rtol=1e-4, atol=1e-6 * want_gradient.abs().max().item())


def test_losses_per_token_count_the_tokens_of_the_right_pair_however_pairs_are_packed(llama: Path):
    method = Method(loss="ipo", sft_weight=0.5)
    pairs = referred(learner(fp64_policy(llama)), random_pairs(7), shift=2.0)

    whole_loss, whole_gradient = gradient(fp64_policy(llama), pairs, method=method)
    loss, gradient_in_parts = gradient(fp64_policy(llama), pairs, method=method, tokensPerMicroBatch=16)

    want = 0.0
    for pair in pairs:
        assert pair.reference_chosen is not None
        log_likelihood = (pair.reference_chosen + 2) / len(pair.chosen)
        want += (2 / len(pair.chosen) + 2 / len(pair.rejected) - 5) ** 2 - 0.5 * log_likelihood
    assert whole_loss == pytest.approx(want / len(pairs), rel=1e-6)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    torch.testing.assert_close(gradient_in_parts, whole_gradient, rtol=1e-4, atol=1e-6 * whole_gradient.abs().max().item())


def token_logprobs_by(plain: Any, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
    """[tokens] log-probs of a completion by the model's own forward pass."""
    logits = plain(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(len(completion)), list(completion)]


def test_tokens_beyond_the_shorter_answer_count_by_length_desensitize_in_policy_and_reference(llama: Path):
    method = Method(loss="ipo", length_desensitize=0.25, kl_weight=0.1)
    bare = random_pairs(5)
    pairs = referred(learner(fp64_policy(llama), method=method), bare, shift=2.0)

    whole_loss, whole_gradient = gradient(fp64_policy(llama), pairs, method=method)
    loss, gradient_in_parts = gradient(fp64_policy(llama), pairs, method=method, tokensPerMicroBatch=16)

    plain = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float64, attn_implementation="eager")
    losses: list[Tensor] = []
    for pair in pairs:
        shorter = min(len(pair.chosen), len(pair.rejected))
        ratios: list[Tensor] = []
        answers = ((pair.chosen, pair.reference_chosen, 2.0), (pair.rejected, pair.reference_rejected, -2.0))
        for completion, reference, shift in answers:
            logprobs = token_logprobs_by(plain, pair.prompt, completion)
            weighted = logprobs[:shorter].sum() + 0.25 * logprobs[shorter:].sum()
            assert reference is not None
            assert reference == pytest.approx(weighted.item() - shift, rel=1e-5)
            ratios.append(weighted - reference)
        (chosen, rejected), (num_chosen, num_rejected) = ratios, (len(pair.chosen), len(pair.rejected))
        distance = chosen / num_chosen - rejected / num_rejected - 5
        losses.append(distance**2 + 0.1 * (chosen**2 + rejected**2) / 4)
    want_loss = torch.stack(losses).mean()
    want_loss.backward()
    want_gradient = torch.cat([parameter.grad.flatten() for parameter in plain.parameters() if parameter.grad is not None])
    assert any(len(pair.chosen) != len(pair.rejected) for pair in pairs)
    assert whole_loss == pytest.approx(want_loss.item(), rel=1e-5)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    for got_gradient in (whole_gradient, gradient_in_parts):
        torch.testing.assert_close(got_gradient, want_gradient, rtol=1e-4, atol=1e-6 * want_gradient.abs().max().item())


def test_the_first_step_knows_its_weighted_reference_to_the_last_bit(llama: Path):
    trained = learner(load_policy(Model(source=str(llama))), method=Method(length_desensitize=0.5), tokensPerMicroBatch=64)

    result = trained.step(referred(trained, random_pairs(5)), learning_rate=0.0)

    assert result is not None
    assert result.figures["loss"] == pytest.approx(math.log(2), abs=2e-16)


@pytest.mark.parametrize("advantage", ["prompt", "batch"])
def test_sppo_by_advantages_is_the_mean_over_all_answers_however_they_are_packed(advantage: str, llama: Path):
    method = method_with("sppoAdvantage", sppoAdvantage={"advantage": advantage, "eta": 3.0, "kappa": 0.5})
    rewards = [(0.5, 2.0, 1.0), (0.0, 1.0), (4.0,), (1.0, 3.0, 0.0, 2.0), (-2.0,)]
    answers = iter(random_pairs(20, seed=1))
    window = [
        ScoredGroup(
            PromptRecord(f"prompt-{number}", asked.prompt, ""),
            tuple(Sample(tokens=next(answers).chosen, text="", finish_reason="stop") for _ in of_prompt),
            of_prompt,
        )
        for number, (asked, of_prompt) in enumerate(zip(random_pairs(5), rewards, strict=True))
    ]
    pairs = [
        replace(
            pair,
            reference_chosen=pair.reference_chosen if pair.chosen else 0.0,
            reference_rejected=pair.reference_rejected if pair.rejected else 0.0,
        )
        for pair in referred(learner(fp64_policy(llama)), pair_groups(window, method, seed=0).pairs, shift=2.0)
    ]

    whole_loss, whole_gradient = gradient(fp64_policy(llama), pairs, method=method)
    loss, gradient_in_parts = gradient(fp64_policy(llama), pairs, method=method, tokensPerMicroBatch=16)

    def soft_mean(rewards: Sequence[float]) -> float:
        return 2 * math.log(sum(math.exp(0.5 * reward) for reward in rewards) / len(rewards))

    plain = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float64, attn_implementation="eager")
    # As if each answer were a sequence of its own, whose log-ratio is what `referred` pretends.
    log_ratios = {pair.chosen: 2.0 for pair in pairs} | {pair.rejected: -2.0 for pair in pairs}
    losses: list[Tensor] = []
    for group, of_prompt in zip(window, rewards, strict=True):
        baseline = soft_mean(of_prompt if advantage == "prompt" else [reward for each in rewards for reward in each])
        for sample, reward in zip(group.samples, of_prompt, strict=True):
            logprob = token_logprobs_by(plain, group.prompt.tokens, sample.tokens).sum()
            log_ratio = logprob - logprob.detach() + log_ratios[sample.tokens]
            losses.append((log_ratio - 3.0 * (reward - baseline)) ** 2)
    want_loss = torch.stack(losses).mean()
    want_loss.backward()
    want_gradient = torch.cat([parameter.grad.flatten() for parameter in plain.parameters() if parameter.grad is not None])
    assert len(losses) == 11
    assert whole_loss == pytest.approx(want_loss.item(), rel=1e-5)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    for got_gradient in (whole_gradient, gradient_in_parts):
        torch.testing.assert_close(got_gradient, want_gradient, rtol=1e-4, atol=1e-6 * want_gradient.abs().max().item())


@pytest.mark.parametrize("loss", sorted(WITHOUT_REFERENCE))
def test_without_a_reference_rewards_are_log_probs_per_token_and_nothing_is_said_of_a_reference(loss: str, llama: Path):
    trained = learner(load_policy(Model(source=str(llama))), method=method_with(loss, beta=2.0), tokensPerMicroBatch=64)
    pairs = random_pairs(5)

    result = trained.step(pairs, learning_rate=0.0)
    referred_to = trained.step(referred(trained, pairs, shift=2.0), learning_rate=0.0)

    assert result is not None
    assert referred_to is not None
    assert result.loss_at_reference is None
    assert {name for name in result.figures if "ref" in name} == set()
    # TRL's CPOTrainer and ORPOTrainer log beta times the log-prob per token.
    for column, side in enumerate(("chosen", "rejected")):
        rewards = [2.0 * two[column] / len(getattr(pair, side)) for two, pair in zip(result.logprobs, pairs, strict=True)]
        assert result.figures[f"rewards/{side}"] == pytest.approx(sum(rewards) / 5)
    assert referred_to == result, "what an older SpinRun has written of a reference is not read"


def test_figures_are_means_over_the_answers_that_are_there(llama: Path):
    trained = learner(load_policy(Model(source=str(llama))), method=method_with("sppoAdvantage", beta=0.5))
    (whole, alone) = random_pairs(2)
    alone = replace(alone, rejected=(), rejected_reward=0.0)
    pairs = [
        replace(pair, reference_chosen=chosen - up, reference_rejected=rejected - down)
        for pair, (chosen, rejected), up, down in zip(
            (whole, alone), trained.reference_logprobs([whole, alone]), (3.0, 1.0), (5.0, 0.0), strict=True
        )
    ]

    result = trained.step(pairs, learning_rate=0.0)

    assert result is not None
    want = {"rewards/chosen": 1.0, "rewards/rejected": 2.5, "rewards/margins": -0.25, "rewards/accuracies": 0.5}
    assert {name: result.figures[name] for name in want} == pytest.approx(want, rel=1e-5)
    assert pairs[0].reference_rejected is not None
    assert result.figures["ref_logps/rejected"] == pairs[0].reference_rejected


# --- against TRL ----------------------------------------------------------------------------------------------------

Original = Callable[..., tuple[float, list[float]]]


@pytest.fixture(scope="session")
def trl() -> Original:
    """The loss of TRL's DPOTrainer for one pair and its gradient, as `ours` gives them.

    With token_logprobs, [2, longest], those are the policy's, and the gradient is by each of them.

    What runs is TRL's own method. The trainer that it belongs to is replaced by the settings that it reads, as a real one would
    need a model on disk, and the model by one whose log-probs are those of the pair.
    """
    # Here, as it takes seconds and the other tests do not need it.
    from trl.trainer.dpo_trainer import DPOTrainer

    def loss_of(
        pair: OnePair,
        *losses: str,
        beta: float,
        label_smoothing: float = 0.0,
        weights: Sequence[float] = (1.0,),
        ld_alpha: float | None = None,
        discopop_tau: float = 0.05,
        token_logprobs: Tensor | None = None,
        divergence: str = "reverse_kl",
        alpha: float = 0.5,
        dtype: torch.dtype = torch.float64,
        weighted: bool = False,
    ) -> tuple[float, list[float]]:
        num_tokens = torch.tensor([pair.chosen_tokens, pair.rejected_tokens])
        # A prompt of one token, the completions after it, pads to the longer one.
        completion_mask = (torch.arange(1 + int(num_tokens.max())) - 1 < num_tokens[:, None]).long()
        completion_mask[:, 0] = 0
        inputs = tensors([pair], dtype)
        log_probs = token_logprobs
        if log_probs is None:
            # The first token carries the log-prob of the whole completion: its sum is then what we have, bit for bit.
            others = torch.zeros(2, completion_mask.shape[1] - 2, dtype=dtype)
            log_probs = torch.cat([inputs.policy_B2.view(2, 1), others], dim=1)
        unused = torch.zeros_like(log_probs)
        outputs = SimpleNamespace(
            log_probs=log_probs, entropy=unused, mean_logits=unused, is_top1=unused.bool(), log_sum_sq_probs=unused
        )
        trainer: Any = SimpleNamespace(
            model=SimpleNamespace(training=True),
            accelerator=SimpleNamespace(device="cpu", gather=_itself, gather_for_metrics=_itself),
            loss_types=losses,
            loss_weights=weights,
            beta=beta,
            label_smoothing=label_smoothing,
            f_divergence_type=divergence,
            f_alpha_divergence_coef=alpha,
            precompute_ref_logps=True,
            ld_alpha=ld_alpha,
            use_weighting=weighted,
            aux_loss_enabled=False,
            args=SimpleNamespace(discopop_tau=discopop_tau),
            _total_train_tokens=0,
            _tp_size=1,
            _metrics=defaultdict(lambda: defaultdict(list)),
        )
        batch = {
            "input_ids": torch.zeros_like(completion_mask),
            "attention_mask": torch.ones_like(completion_mask),
            "completion_mask": completion_mask,
            "ref_chosen_logps": inputs.reference_B2[:, 0],
            "ref_rejected_logps": inputs.reference_B2[:, 1],
        }
        loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs, batch, False)
        loss.backward()
        leaf = inputs.policy_B2 if token_logprobs is None else token_logprobs
        assert leaf.grad is not None
        return loss.item(), leaf.grad.flatten().tolist()

    return loss_of


def _itself(tensor: Tensor) -> Tensor:
    return tensor


INPUTS = [
    pytest.param(OnePair(-35.2, -41.7, -36.0, -39.9, 12, 17), id="preferred"),
    pytest.param(OnePair(-50.3, -30.1, -45.8, -38.4, 20, 9), id="not preferred"),
    pytest.param(OnePair(-10.0, -20.0), id="at the reference"),
    pytest.param(OnePair(-4.0, -11.5, chosen_tokens=1, rejected_tokens=300), id="both likelier"),
    pytest.param(OnePair(-2010.0, -20.0), id="chosen lost"),
    pytest.param(OnePair(-10.0, -2020.0), id="rejected lost"),
    pytest.param(OnePair(-2010.0, -2020.0), id="both lost"),
    pytest.param(OnePair(-1.0, -2.0, -2001.0, -2.0), id="chosen found"),
    pytest.param(OnePair(-1.0, -2.0, -1.0, -2002.0), id="rejected found"),
    pytest.param(OnePair(-1.0, -2002.0, -2001.0, -2.0), id="chosen found and rejected lost"),
    pytest.param(OnePair(-2001.0, -2.0, -1.0, -2002.0), id="chosen lost and rejected found"),
]
BETAS = [0.1, 0.5]
IN_TRL = {
    "sigmoid": "sigmoid",
    "sigmoidNorm": "sigmoid_norm",
    "hinge": "hinge",
    "ipo": "ipo",
    "robust": "robust",
    "nca": "nca_pair",
    "bco": "bco_pair",
    "apoZero": "apo_zero",
    "apoDown": "apo_down",
    "sppoHard": "sppo_hard",
}
"""TRL's names of the losses that are the same in all; exo and smoothed losses differ a little, see below."""


def assert_same(got: tuple[float, list[float]], want: tuple[float, list[float]]) -> None:
    # TRL's 1 - σ(x) has no digits left for large x, where our σ(-x) does: both are 0 but for that.
    assert got[0] == pytest.approx(want[0], rel=1e-6, abs=1e-12)
    assert got[1] == pytest.approx(want[1], rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("pair", INPUTS)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("name", IN_TRL)
def test_loss_and_gradient_are_those_of_trl(trl: Original, name: str, beta: float, pair: OnePair):
    assert_same(ours(pair, loss=name, beta=beta), trl(pair, IN_TRL[name], beta=beta))


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("lengths", [(7, 3), (2, 6), (4, 4)])
@pytest.mark.parametrize("scale", [1.0, 400.0])
@pytest.mark.parametrize("name", IN_TRL)
def test_length_desensitize_is_that_of_trl(
    trl: Original, name: str, scale: float, lengths: tuple[int, int], alpha: float, beta: float
):
    generator = torch.Generator().manual_seed(0)
    # What stands behind the end of an answer is 0 in TRL too, but counted: its gradient is of no interest.
    there = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    token_logprobs = -scale * torch.rand(2, max(lengths), dtype=torch.float64, generator=generator) * there
    reference = (-3.0 * scale, -2.5 * scale)
    packed = pack([Pair("p", (1,), (2,) * lengths[0], (3,) * lengths[1], 1.0, 0.0)], [0], tail_weight=alpha)

    given = token_logprobs.clone().requires_grad_()
    completions = torch.cat([row[:length] for row, length in zip(given, lengths, strict=True)])
    sums = sum_by_completion(completions, packed.lengths_S, packed.weight_C).view(1, 2)
    unused = torch.ones(1, 2)
    inputs = PairLogprobs(sums, torch.tensor([reference], dtype=torch.float64), torch.tensor([lengths]), unused)
    loss = pair_losses(inputs, Method.model_validate({"loss": name, "beta": beta})).sum()
    loss.backward()
    assert given.grad is not None

    pair = OnePair(0.0, 0.0, *reference, *lengths)
    want, want_gradient = trl(pair, IN_TRL[name], beta=beta, ld_alpha=alpha, token_logprobs=token_logprobs.requires_grad_())
    of_answers = [gradient for gradient, is_there in zip(want_gradient, there.flatten().tolist(), strict=True) if is_there]
    assert_same((loss.item(), given.grad[there].tolist()), (want, of_answers))


@pytest.mark.parametrize("pair", INPUTS)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("loss", ["sigmoid", "hinge"])
@pytest.mark.parametrize(("divergence", "in_trl"), [("forwardKL", "forward_kl"), ("js", "js_divergence")])
def test_other_divergences_are_those_of_trl_where_trl_has_a_number(
    trl: Original, divergence: str, in_trl: str, loss: str, beta: float, pair: OnePair
):
    got, got_gradient = ours(pair, loss=loss, beta=beta, **{loss: {"divergence": divergence}})
    want, want_gradient = trl(pair, loss, beta=beta, divergence=in_trl)

    if all(map(math.isfinite, (want, *want_gradient))):
        assert_same((got, got_gradient), (want, want_gradient))
    else:  # e^2000, where ours has no gradient any more
        assert pair.policy_chosen < -2000 or pair.policy_rejected < -2000
        assert math.isfinite(got)
        lost = (pair.policy_chosen < -2000, pair.policy_rejected < -2000)
        assert [each == 0 for each, is_lost in zip(got_gradient, lost, strict=True) if is_lost] == [True] * sum(lost)


@pytest.mark.parametrize("pair", INPUTS)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("loss", ["sigmoid", "hinge"])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_alpha_divergences_are_those_of_trl_and_of_their_formula(
    trl: Original, alpha: float, loss: str, beta: float, pair: OnePair
):
    settings = {"loss": loss, "beta": beta, loss: {"divergence": "alpha", "alpha": alpha}}
    inputs = tensors([pair], torch.float32)  # which TRL computes them in, whatever it is given
    single_B = pair_losses(inputs, Method.model_validate(settings))
    single_B.sum().backward()
    assert inputs.policy_B2.grad is not None
    want, want_gradient = trl(pair, loss, beta=beta, divergence="alpha_divergence", alpha=alpha, dtype=torch.float32)
    assert single_B.item() == pytest.approx(want, rel=1e-4, abs=1e-6)
    assert inputs.policy_B2.grad[0].tolist() == pytest.approx(want_gradient, rel=1e-4, abs=1e-6)

    got, got_gradient = ours(pair, **settings)
    policy = torch.tensor([pair.policy_chosen, pair.policy_rejected], dtype=torch.float64, requires_grad=True)
    log_ratios = policy - torch.tensor([pair.reference_chosen, pair.reference_rejected], dtype=torch.float64)
    scores = (((alpha - 1) * log_ratios).clamp(max=80).exp() - 1) / (alpha - 1)
    scaled = beta * (scores[0] - scores[1])
    formula = torch.logaddexp(torch.zeros_like(scaled), -scaled) if loss == "sigmoid" else torch.relu(1 - scaled)
    formula.backward()
    assert policy.grad is not None
    assert got == pytest.approx(formula.item(), rel=1e-12, abs=1e-12)
    assert got_gradient == pytest.approx(policy.grad.tolist(), rel=1e-12, abs=1e-12)


def test_alpha_is_one_half_unless_said_otherwise():
    absent, one_half = ({"divergence": "alpha"}, {"divergence": "alpha", "alpha": 0.5})

    assert ours(BY_HAND, sigmoid=absent) == ours(BY_HAND, sigmoid=one_half)


@pytest.mark.parametrize("divergence", ["forwardKL", "js", "alpha"])
@pytest.mark.parametrize("loss", ["sigmoid", "hinge"])
def test_at_the_reference_every_divergence_has_the_loss_of_dpo(divergence: str, loss: str):
    at_reference = OnePair(-10.0, -20.0)

    assert ours(at_reference, loss=loss, **{loss: {"divergence": divergence}})[0] == ours(at_reference, loss=loss)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("divergence", ["forwardKL", "js", "alpha"])
@pytest.mark.parametrize("loss", ["sigmoid", "hinge"])
def test_divergences_stay_finite_far_from_the_reference(loss: str, divergence: str, dtype: torch.dtype):
    far = [OnePair(chosen, rejected, 0.0, 0.0) for chosen in (-2000.0, 0.0, 2000.0) for rejected in (-2000.0, 0.0, 2000.0)]
    inputs = tensors(far, dtype)

    losses_B = pair_losses(inputs, method_with(loss, beta=1000.0, **{loss: {"divergence": divergence}}))
    losses_B.sum().backward()

    assert losses_B.isfinite().all()
    assert inputs.policy_B2.grad is not None
    assert inputs.policy_B2.grad.isfinite().all()


@pytest.mark.parametrize("pair", INPUTS)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("label_smoothing", [0.1, 0.49])
def test_robust_is_that_of_trl_for_flipped_labels(trl: Original, label_smoothing: float, beta: float, pair: OnePair):
    got = ours(pair, loss="robust", beta=beta, robust={"labelSmoothing": label_smoothing})

    assert_same(got, trl(pair, "robust", beta=beta, label_smoothing=label_smoothing))


@pytest.mark.parametrize("pair", INPUTS)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("floor", [1e-3, 0.2])
def test_exo_is_that_of_trl_but_for_the_rounding_of_its_floor(trl: Original, floor: float, beta: float, pair: OnePair):
    got, got_gradient = ours(pair, loss="exo", beta=beta, exo={"floor": floor})
    want, want_gradient = trl(pair, "exo_pair", beta=beta, label_smoothing=floor)

    # TRL keeps its floor, the label smoothing, in fp32: its logarithm is then 1e-7 off.
    assert got == pytest.approx(want, rel=1e-7, abs=2e-7)
    assert got_gradient == pytest.approx(want_gradient, rel=1e-7, abs=2e-7)


@pytest.mark.parametrize("pair", INPUTS)
@pytest.mark.parametrize("beta", BETAS)
def test_smoothed_sigmoid_mixes_two_of_trl_which_ignores_label_smoothing(trl: Original, beta: float, pair: OnePair):
    smoothing = 0.1
    as_it_is, flipped = (trl(each, "sigmoid", beta=beta, label_smoothing=smoothing) for each in (pair, pair.swapped()))

    want_loss = (1 - smoothing) * as_it_is[0] + smoothing * flipped[0]
    want_gradient = [
        (1 - smoothing) * one + smoothing * other for one, other in zip(as_it_is[1], reversed(flipped[1]), strict=True)
    ]
    assert as_it_is == trl(pair, "sigmoid", beta=beta)
    assert_same(ours(pair, beta=beta, sigmoid={"labelSmoothing": smoothing}), (want_loss, want_gradient))


@pytest.mark.parametrize("pair", INPUTS)
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("tau", [0.05, 0.7])
def test_discopop_is_that_of_trl_where_trl_has_a_number(trl: Original, tau: float, beta: float, pair: OnePair):
    got = ours(pair, loss="discopop", beta=beta, discopop={"tau": tau})
    want = trl(pair, "discopop", beta=beta, discopop_tau=tau)

    if math.isfinite(want[0]):
        assert_same(got, want)
    else:  # 0 · e^x of a margin that is wrong by far, where what is left is the logistic part
        assert_same(got, trl(pair, "sigmoid", beta=beta))


@pytest.mark.parametrize("pair", INPUTS)
@pytest.mark.parametrize("beta", [0.5, 2.5])
def test_simpo_is_that_of_trl(beta: float, pair: OnePair):
    from trl.experimental.cpo import CPOTrainer

    trainer: Any = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"), beta=beta, loss_type="simpo", simpo_gamma=0.7, label_smoothing=0.0, alpha=0.0
    )
    inputs = tensors([pair])
    losses, *_ = cast(Any, CPOTrainer.cpo_loss)(trainer, *inputs.per_token().policy_B2.unbind(1))
    losses.sum().backward()
    assert inputs.policy_B2.grad is not None

    assert_same(ours(pair, loss="simpo", beta=beta, simpo={"gamma": 0.7}), (losses.item(), inputs.policy_B2.grad[0].tolist()))


@pytest.mark.parametrize("pair", INPUTS)
def test_orpo_is_that_of_trl(pair: OnePair):
    from trl.experimental.orpo import ORPOTrainer

    trainer: Any = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), beta=0.3)
    inputs = tensors([pair])
    per_token_B2 = inputs.per_token().policy_B2
    ratios, *_ = cast(Any, ORPOTrainer.odds_ratio_loss)(trainer, *per_token_B2.unbind(1))
    loss = -per_token_B2[0, 0] - ratios.double().sum()
    loss.backward()
    assert inputs.policy_B2.grad is not None
    got, got_gradient = ours(pair, loss="orpo", orpo={"weight": 0.3})

    # TRL computes in fp32.
    assert got == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
    assert got_gradient == pytest.approx(inputs.policy_B2.grad[0].tolist(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("pair", INPUTS)
@pytest.mark.parametrize("beta", BETAS)
def test_dpop_without_its_weight_is_dpo(beta: float, pair: OnePair):
    assert ours(pair, loss="dpop", beta=beta, dpop={"weight": 0.0}) == ours(pair, beta=beta)


@pytest.mark.parametrize("pair", INPUTS)
@pytest.mark.parametrize("beta", BETAS)
def test_summed_ipo_is_that_of_trl_for_answers_of_one_token(trl: Original, beta: float, pair: OnePair):
    of_one_token = replace(pair, chosen_tokens=1, rejected_tokens=1)

    assert_same(ours(pair, loss="ipo", beta=beta, ipo={"average": False}), trl(of_one_token, "ipo", beta=beta))


@pytest.mark.parametrize("pair", INPUTS)
def test_sft_weight_adds_the_sft_loss_of_trl(trl: Original, pair: OnePair):
    got = ours(pair, loss="hinge", sftWeight=0.3)

    assert_same(got, trl(pair, "hinge", "sft", beta=0.1, weights=(1.0, 0.3)))


@pytest.mark.parametrize("pair", INPUTS)
@pytest.mark.parametrize("loss", [{"loss": "sigmoid"}, {"loss": "ipo", "sftWeight": 0.5, "klWeight": 0.1}, {"loss": "simpo"}])
def test_weights_by_likelihood_are_those_of_wpo_and_have_no_gradient(loss: dict[str, Any], pair: OnePair):
    # arXiv 2406.11827, unaligned: the product of both answers' geometric mean probabilities.
    weight = math.exp(pair.policy_chosen / pair.chosen_tokens) * math.exp(pair.policy_rejected / pair.rejected_tokens)
    without, gradient_without = ours(pair, **loss)

    got = ours(pair, **loss, weightByLikelihood=True)

    assert weight <= 1
    assert got[0] == pytest.approx(weight * without, rel=1e-12)
    assert got[1] == pytest.approx([weight * each for each in gradient_without], rel=1e-12)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("lengths", [(7, 3), (2, 6), (4, 4)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 400.0])
def test_weights_by_likelihood_are_trls_but_for_what_its_alignment_divides_by(
    trl: Original, scale: float, lengths: tuple[int, int], beta: float
):
    """TRL's weights are those of the paper's eq. 2: a token's probability over the sum of squares of all tokens'. With sums of 1,
    whose logarithm is 0, nothing is aligned."""
    generator = torch.Generator().manual_seed(0)
    there = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    token_logprobs = -scale * torch.rand(2, max(lengths), dtype=torch.float64, generator=generator) * there
    sums = token_logprobs.sum(dim=1)
    pair = OnePair(sums[0].item(), sums[1].item(), -3.0 * scale, -2.5 * scale, *lengths)

    want, want_gradient = trl(pair, "sigmoid", beta=beta, token_logprobs=token_logprobs.requires_grad_(), weighted=True)

    # A sum's gradient is that of each of its tokens.
    first_tokens = (want_gradient[0], want_gradient[max(lengths)])
    assert_same(ours(pair, beta=beta, weightByLikelihood=True), (want, list(first_tokens)))


@pytest.mark.parametrize("pair", INPUTS)
def test_weight_by_margin_multiplies_a_pairs_loss_by_the_difference_of_its_rewards(pair: OnePair):
    without, gradient_without = ours(pair, loss="hinge", sftWeight=0.5)

    got = ours(replace(pair, chosen_reward=3.5, rejected_reward=-1.0), loss="hinge", sftWeight=0.5, weightByMargin=True)

    assert got[0] == pytest.approx(4.5 * without, rel=1e-12)
    assert got[1] == pytest.approx([4.5 * each for each in gradient_without], rel=1e-12)


def test_both_weights_multiply_each_other():
    by_likelihood, _ = ours(BY_HAND, weightByLikelihood=True)

    # Rewards of 0.75 and 0.375
    assert ours(BY_HAND, weightByLikelihood=True, weightByMargin=True)[0] == pytest.approx(0.375 * by_likelihood, rel=1e-12)


def test_an_empty_answer_weighs_nothing_less():
    empty = OnePair(0.0, -21.0, 0.0, -20.0, 0, 2)

    assert ours(empty, weightByLikelihood=True)[0] == pytest.approx(math.exp(-10.5) * ours(empty)[0], rel=1e-12)


def test_a_step_is_divided_by_its_pairs_whatever_they_weigh_and_says_how_much_that_is(llama: Path):
    policy = load_policy(Model(source=str(llama)))
    pairs = [replace(pair, chosen_reward=float(index), rejected_reward=-1.0) for index, pair in enumerate(random_pairs(4))]

    weighted = learner(policy, method=Method(weight_by_margin=True)).step(pairs, learning_rate=0.0)

    assert weighted is not None
    assert weighted.figures["pair_weight"] == pytest.approx((1 + 2 + 3 + 4) / 4)
    assert weighted.figures["loss"] == pytest.approx((1 + 2 + 3 + 4) / 4 * math.log(2))
    self_check(weighted)


def test_weighted_losses_are_the_same_however_pairs_are_packed(llama: Path):
    method = Method(loss="ipo", sft_weight=0.5, weight_by_likelihood=True, weight_by_margin=True)
    pairs = referred(learner(fp64_policy(llama)), random_pairs(7), shift=2.0)

    whole_loss, whole_gradient = gradient(fp64_policy(llama), pairs, method=method)
    loss, gradient_in_parts = gradient(fp64_policy(llama), pairs, method=method, tokensPerMicroBatch=16)

    assert loss == pytest.approx(whole_loss, rel=1e-6)
    torch.testing.assert_close(gradient_in_parts, whole_gradient, rtol=1e-4, atol=1e-6 * whole_gradient.abs().max().item())


@pytest.mark.parametrize("pair", INPUTS)
@pytest.mark.parametrize("weights", [(0.8, 0.2, 1.0), (1.0, 3.0, 0.25)])
def test_several_losses_have_the_weighted_sum_that_they_have_in_trl(trl: Original, weights: tuple[float, ...], pair: OnePair):
    # The first weights are those of MPO, arXiv 2411.10442.
    sigmoid, bco, sft = weights
    losses = [{"name": "sigmoid", "weight": sigmoid}, {"name": "bco", "weight": bco}]

    got = ours(pair, losses=losses, sftWeight=sft)

    assert_same(got, trl(pair, "sigmoid", "bco_pair", "sft", beta=0.1, weights=weights))


def test_each_of_several_losses_has_its_own_block_and_beta():
    losses = [{"name": "ipo", "weight": 2.0}, {"name": "sppoHard", "beta": 0.001}, {"name": "cringe", "weight": 0.5}]
    blocks = {"ipo": {"average": False}, "cringe": {"bias": 3.0}}
    alone = [
        ours(BY_HAND, loss="ipo", ipo=blocks["ipo"], beta=0.2),
        ours(BY_HAND, loss="sppoHard", beta=0.001),
        ours(BY_HAND, loss="cringe", cringe=blocks["cringe"], beta=0.2),
    ]

    loss, gradient = ours(BY_HAND, losses=losses, beta=0.2, **blocks)

    shares = (2.0, 1.0, 0.5)
    assert loss == pytest.approx(sum(share * one for share, (one, _) in zip(shares, alone, strict=True)), rel=1e-12)
    want = [sum(share * each[side] for share, (_, each) in zip(shares, alone, strict=True)) for side in (0, 1)]
    assert gradient == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"sppo", "sppoAdvantage"}))
def test_a_single_entry_is_the_loss_itself_to_the_last_bit(loss: str):
    assert ours(BY_HAND, losses=[{"name": loss}]) == ours(BY_HAND, loss=loss)


def test_losses_without_a_reference_have_one_beside_a_loss_that_has():
    assert not Method.model_validate({"losses": [{"name": "simpo"}, {"name": "cringe"}]}).uses_reference
    assert Method.model_validate({"losses": [{"name": "simpo"}, {"name": "hinge"}]}).uses_reference


def test_several_losses_are_the_same_however_pairs_are_packed(llama: Path):
    method = Method.model_validate({"losses": [{"name": "sigmoid"}, {"name": "cringe", "weight": 0.5}, {"name": "orpo"}]})
    pairs = referred(learner(fp64_policy(llama)), random_pairs(5), shift=2.0)

    whole_loss, whole_gradient = gradient(fp64_policy(llama), pairs, method=method)
    loss, gradient_in_parts = gradient(fp64_policy(llama), pairs, method=method, tokensPerMicroBatch=16)

    assert loss == pytest.approx(whole_loss, rel=1e-6)
    torch.testing.assert_close(gradient_in_parts, whole_gradient, rtol=1e-4, atol=1e-6 * whole_gradient.abs().max().item())


@pytest.mark.parametrize("pair", INPUTS)
@pytest.mark.parametrize("beta", BETAS)
def test_hard_sppo_is_twice_that_of_its_authors(beta: float, pair: OnePair):
    chosen, rejected = pair.policy_chosen - pair.reference_chosen, pair.policy_rejected - pair.reference_rejected
    # uclaml/SPPO averages the two squares, with win probabilities of 1 and 0.
    authors = ((chosen - (1 - 0.5) / beta) ** 2 + (rejected - (0 - 0.5) / beta) ** 2) / 2

    assert ours(pair, loss="sppoHard", beta=beta)[0] == pytest.approx(2 * authors, rel=1e-12)


def test_sppo_with_certain_wins_is_half_of_hard_sppo():
    certain = OnePair(-35.2, -41.7, -36.0, -39.9, chosen_reward=1.0, rejected_reward=0.0)

    loss, gradient = ours(certain, name="sppo", loss="sppo", sppo={"eta": 1000.0})
    hard_loss, hard_gradient = ours(certain, loss="sppoHard", beta=0.001)

    assert loss == pytest.approx(hard_loss / 2, rel=1e-12)
    assert gradient == pytest.approx([each / 2 for each in hard_gradient], rel=1e-12)
