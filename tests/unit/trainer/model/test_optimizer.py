import pytest
import torch
from torch import nn

from spinrun_api.spec import Trainer
from spinrun_worker.trainer.model.optimizer import learning_rate, make_optimizer
from spinrun_worker.trainer.schedule import Schedule


@pytest.mark.parametrize(
    ("schedule", "warmup", "want"),
    [
        ("constant", 0, [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("constant", 3, [0.25, 0.5, 0.75, 1.0, 1.0]),
        ("linear", 0, [1.0, 0.8, 0.6, 0.4, 0.2]),
        ("linear", 1, [0.5, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", 1, [0.5, 1.0, 0.8535533905932737, 0.5, 0.1464466094067263]),
        ("linear", 9, [0.1, 0.2, 0.3, 0.4, 0.5]),
    ],
)
def test_learning_rate_rises_then_follows_its_schedule(schedule: str, warmup: int, want: list[float]):
    trainer = Trainer.model_validate({"learningRate": 1.0, "schedule": schedule, "warmupSteps": warmup})

    assert [learning_rate(step, trainer, Schedule(5, 5, 1)) for step in range(5)] == pytest.approx(want)


def test_weight_decay_shrinks_matrices_only():
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = make_optimizer([matrix, vector], Trainer(weight_decay=0.5, learning_rate=0.1))
    for parameter in (matrix, vector):
        parameter.grad = torch.zeros_like(parameter)

    optimizer.step()

    assert matrix.detach().flatten().tolist() == pytest.approx([0.95] * 4)
    assert vector.tolist() == [1.0, 1.0]


def test_a_model_of_matrices_only_is_optimized():
    assert len(make_optimizer([nn.Parameter(torch.ones(2, 2))], Trainer()).param_groups) == 1


def test_steps_are_adams():
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimizer = make_optimizer([weight], Trainer(learning_rate=0.1))
    weight.grad = torch.tensor([[0.5, -3.0]])

    optimizer.step()

    # The first step of Adam is the sign of the gradient times the learning rate.
    assert weight.detach().flatten().tolist() == pytest.approx([0.9, -1.9])


def test_rmsprop_keeps_one_number_a_weight_and_begins_with_large_steps():
    weight = nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimizer = make_optimizer([weight], Trainer(optimizer="rmsprop", learning_rate=0.01))
    weight.grad = torch.tensor([[0.5, -3.0]])

    optimizer.step()

    # A mean of squares over 100 steps that has seen one: its root is a tenth of the gradient.
    assert weight.detach().flatten().tolist() == pytest.approx([0.9, -1.9])
    assert {name for name, value in optimizer.state[weight].items() if value.shape == weight.shape} == {"square_avg"}


def test_rmsprop_adds_weight_decay_to_the_gradients_of_matrices():
    matrix, vector = nn.Parameter(torch.ones(1, 1)), nn.Parameter(torch.ones(1))
    optimizer = make_optimizer([matrix, vector], Trainer(optimizer="rmsprop", weight_decay=0.5, learning_rate=0.01))
    for parameter in (matrix, vector):
        parameter.grad = torch.zeros_like(parameter)

    optimizer.step()

    assert matrix.item() == pytest.approx(0.9)
    assert vector.item() == 1.0


def test_windows_with_peaks_of_their_own_each_warm_up_and_fall_and_the_last_peak_holds():
    trainer = Trainer.model_validate({"learningRateByWindow": [1.0, 0.4], "schedule": "linear", "warmupSteps": 1})
    schedule = Schedule(11, 3, 1, replay_windows=1)  # windows of 3, 6 and 2 steps

    falling = [0.4, 0.32, 0.24, 0.16, 0.08]
    want = [0.5, 1.0, 0.5, 0.2, *falling, 0.2, 0.4]
    assert [learning_rate(step, trainer, schedule) for step in range(11)] == pytest.approx(want)
