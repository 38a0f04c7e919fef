from collections import Counter

import pytest

from spinrun_api.spec import GENERATORS as GENERATORS_OF_THE_SPEC
from spinrun_worker.data.generators import GENERATORS
from spinrun_worker.data.letters import WORDS, questions
from spinrun_worker.errors import ConfigurationError

Rows = list[dict[str, str | int]]


def ask(config: str | None, split: str) -> Rows:
    return questions(config, split, block="data.prompts")


def things(row: dict[str, str | int]) -> list[str]:
    return str(row["items"]).replace(" or ", ", ").split(", ")


def test_the_spec_and_the_worker_know_the_same_generators():
    assert set(GENERATORS) == set(GENERATORS_OF_THE_SPEC)


def test_sort_2_is_the_default_and_has_all_325_sets_of_two_letters():
    train, test = ask(None, "train"), ask("sort-2", "test")
    assert (len(train), len(test)) == (195, 130)


@pytest.mark.parametrize("config", ["sort-3", "sort-8", "count-2", "count-5", "count-8", "longest-2", "longest-3", "longest-8"])
def test_splits_have_300_and_200_questions_and_none_in_common(config: str):
    train, test = ask(config, "train"), ask(config, "test")
    assert (len(train), len(test)) == (300, 200)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}


@pytest.mark.parametrize("config", ["sort-2", "sort-8", "longest-2", "longest-8"])
def test_no_question_is_another_one_in_another_order(config: str):
    rows = [*ask(config, "train"), *ask(config, "test")]
    assert len({frozenset(things(row)) for row in rows}) == len(rows)


@pytest.mark.parametrize("config", ["sort-2", "sort-4"])
def test_sorted_letters_are_those_of_the_question(config: str):
    for row in ask(config, "train"):
        assert str(row["answer"]).split(", ") == sorted(things(row))
        assert f": {row['items']}. " in str(row["prompt"])


@pytest.mark.parametrize("config", ["count-2", "count-5"])
def test_counted_letters_are_counted(config: str):
    for row in ask(config, "test"):
        counted = str(row["prompt"]).split("the letter ")[1][0]
        assert things(row).count(counted) == int(row["answer"])


@pytest.mark.parametrize("config", ["longest-2", "longest-4"])
def test_the_longest_word_is_longer_than_every_other(config: str):
    for row in ask(config, "train"):
        assert {row["answer"]} == {word for word in things(row) if len(word) == max(map(len, things(row)))}


def test_no_answer_is_right_by_habit():
    """Not the letters as they are, nor turned round, nor always the same number, nor the first word."""
    rows = ask("sort-2", "train")
    assert 0.4 < sum(row["answer"] == row["items"] for row in rows) / len(rows) < 0.6
    assert max(Counter(row["answer"] for row in ask("count-5", "train")).values()) <= 0.25 * 300
    words = ask("longest-2", "train")
    assert 0.4 < sum(things(row)[0] == row["answer"] for row in words) / len(words) < 0.6


def test_splits_are_the_same_in_every_process():
    # Pinned: another split would make a resumed run train on what it was evaluated on.
    found = {config: [row["items"] for row in ask(config, "test")[:3]] for config in ("sort-2", "sort-3", "count-4", "longest-2")}
    assert found == {
        "sort-2": ["I, A", "G, V", "S, W"],
        "sort-3": ["A, K, Q", "Z, Q, N", "C, H, Q"],
        "count-4": ["Z, T, Y, Q", "L, P, L, T", "E, E, E, C"],
        "longest-2": ["milk or necklace", "summer or keyboard", "winter or night"],
    }


def test_words_differ():
    assert len(set(WORDS)) == len(WORDS) == 152


@pytest.mark.parametrize("config", ["spell-3", "sort", "sort-1", "sort-9", "sort-12", "count-3x", "-3"])
def test_a_bad_config_names_the_field_and_what_is_possible(config: str):
    with pytest.raises(ConfigurationError, match=r"data\.prompts\.config: .*sort, count, longest.* 2 to 8.*" + config):
        ask(config, "train")


def test_a_bad_split_names_the_splits():
    with pytest.raises(ConfigurationError, match=r"data\.prompts\.split: letters has the splits train and test, got 'dev'"):
        ask(None, "dev")
