import pytest

from spinrun_worker.data.arithmetic import questions
from spinrun_worker.errors import ConfigurationError


def ask(config: str | None, split: str) -> list[dict[str, str | int]]:
    return questions(config, split, block="data.prompts")


def test_addition_15_is_the_default_and_has_225_questions_in_two_disjoint_splits():
    train, test = ask(None, "train"), ask("addition-15", "test")
    train_prompts, test_prompts = ({row["prompt"] for row in rows} for rows in (train, test))
    assert (len(train), len(test)) == (135, 90)
    assert not train_prompts & test_prompts
    assert len(train_prompts | test_prompts) == 225


@pytest.mark.parametrize(
    ("config", "want"),
    [
        ("addition-3", {"What is 2 + 3? Answer with just the number.": "5"}),
        ("subtraction-3", {"What is 1 - 3? Answer with just the number.": "-2"}),
        ("multiplication-3", {"What is 3 * 3? Answer with just the number.": "9"}),
    ],
)
def test_answers_are_right(config: str, want: dict[str, str]):
    rows = ask(config, "train") + ask(config, "test")
    answers = {row["prompt"]: row["answer"] for row in rows}
    assert len(answers) == 9
    assert want.items() <= answers.items()


def test_splits_are_the_same_in_every_process():
    # Pinned: another split would make a resumed run train on what it was evaluated on.
    assert [(row["a"], row["b"]) for row in ask("addition-3", "test")] == [(1, 2), (1, 3), (2, 3)]


def test_held_out_questions_are_spread_over_the_whole_range():
    assert {row["a"] for row in ask("addition-15", "test")} == set(range(1, 16))


@pytest.mark.parametrize("config", ["division-5", "addition", "addition-1", "addition-1001", "addition-15x", "-5"])
def test_a_bad_config_names_the_field_and_what_is_possible(config: str):
    with pytest.raises(ConfigurationError, match=r"data\.prompts\.config: .*addition, subtraction, multiplication.*" + config):
        ask(config, "train")


def test_a_bad_split_names_the_splits():
    with pytest.raises(ConfigurationError, match=r"data\.prompts\.split: .*train and test, got 'validation'"):
        ask(None, "validation")
