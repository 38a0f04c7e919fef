from dataclasses import replace
from pathlib import Path

import pytest

from spinrun_api.spec import Model
from spinrun_worker.trainer.model import learner as learner_module
from spinrun_worker.trainer.model.flops import ModelFlops
from spinrun_worker.trainer.model.policy import load_policy
from support.models import random_pairs, tiny_llama
from unit.trainer.model.test_learner import learner

# Of the tiny Llama: two layers of attention (128 x 128 twice, 128 x 64 twice), feed-forward (128 x 256 three times) and norms.
BODY = 2 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 256 + 2 * 128) + 128
HEAD = 512 * 128


@pytest.mark.parametrize("tied", [True, False])
def test_a_step_is_six_operations_a_weight_and_token_and_the_output_matrix_sees_completions_only(tied: bool, tmp_path: Path):
    policy = load_policy(Model(source=str(tiny_llama(tmp_path, tie_word_embeddings=tied))))
    pair = replace(random_pairs(1)[0], prompt=(1, 2, 3, 4), chosen=(5, 6), rejected=(7,))

    assert ModelFlops(policy).of_step([pair, pair]) == 2 * 6 * (BODY * 7 + HEAD * 3)


def test_utilization_is_the_share_of_the_measured_peak(llama: Path, monkeypatch):
    asked: list[object] = []

    def peak(dtype: object, **_: object) -> float:
        asked.append(dtype)
        return 2.0

    monkeypatch.setattr(learner_module, "matmul_gflops", peak)
    trained = learner(load_policy(Model(source=str(llama))))
    pairs = random_pairs(3)
    flops = ModelFlops(trained.policy).of_step(pairs)

    assert trained.utilization(pairs, seconds=0.5) == pytest.approx(flops / (0.5 * 2e9))
    assert trained.utilization(pairs, seconds=1.0) == pytest.approx(flops / 2e9)
    assert asked == [trained.policy.arithmetic_dtype], "the peak is measured once"
