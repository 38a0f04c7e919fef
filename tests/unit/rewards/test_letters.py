"""The letter that a text settles on."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinrun_worker.rewards.letters import settled_letter, stated_letter

STATEMENTS = [
    r"The last option fits best: $\boxed{E}$",
    r"\boxed{\text{E}}",
    r"\boxed{\mathbf{E}}",
    r"\boxed{\textbf{(E)}\ 12}",
    r"\boxed{(E) 12}",
    r"\boxed{E. 12}",
    r"\boxed{e}",
    r"\fbox{E}",
    r"so \[\boxed{\text{E}}\]",
    r"Final Answer: The final answer is $\boxed{E}$. I hope it is correct.",
    r"The answer is \(\boxed{\mathrm{E}}\)",
    "<answer>E</answer>",
    "<think>Not A.</think><answer> E </answer>",
    "<answer>\n(E) Paris\n</answer>",
    "<ANSWER>e</ANSWER>",
    "<answer>Option E</answer>",
    "The answer is option E",
    "The correct option is E, as we see",
    "The best choice would be (E) because of that",
    "The answer is most likely E.",
    "Answer: e",
    "Answer: E",
    "ANSWER - E",
    "answer: $E$",
    "**Answer:** E",
    "**Answer**: E",
    "Answer: **E**",
    "Answer:\n\nE) Paris",
    "The correct answer is: e)",
    "Answer:" + " " * 3000 + "E",
    "E",
    "e.",
    "**E**",
    "(e)",
    "It must be the last.\n\n  **(E)**  \n",
]
MARKS = [
    "Option E is right.",
    "I choose E",
    "I would pick (E), not another",
    "It is (E) then",
    "E. Paris is the capital",
    "E) Paris is the capital",
    "I believe **E** is right",
    r"The right one is \textbf{E} then",
    "that is option e.",
]
LOWER_CASE = ["it is (e) then", "it is e) Paris then"]
NONE = [
    "",
    "A big dog",
    "a cat",
    "The answer is a big dog",
    "Answer: an apple",
    "The answer is not known",
    "the option(s) here",
    "f(X) = 3",
    "I think not",
    "Born in the U.S. of course",
    r"\boxed{x + 1}",
    r"\boxed{\pi}",
    r"\boxed{\text{Apple}}",
    r"\boxed{A, B}",
    "Answer: A and B",
    "Answer: A, B",
    "several answers",
    "Answer: I think it is the second",
]


@pytest.mark.parametrize("text", [*STATEMENTS, *MARKS, *LOWER_CASE])
def test_a_letter_is_found(text: str) -> None:
    assert settled_letter(text) == "E"


@pytest.mark.parametrize("text", NONE)
def test_a_text_that_settles_on_nothing_has_no_letter(text: str) -> None:
    assert settled_letter(text) is None


@pytest.mark.parametrize("statement", STATEMENTS)
def test_an_explicit_statement_comes_before_marks_wherever_they_stand(statement: str) -> None:
    assert settled_letter(f"Option A is tempting, and (B) is too.\n{statement}") == "E"
    if len(statement) > 5 and not statement.endswith("\n"):
        assert settled_letter(f"{statement}\nOption A is wrong, and (B) is too.") == "E"


@pytest.mark.parametrize("statement", STATEMENTS)
def test_the_last_explicit_statement_counts(statement: str) -> None:
    assert settled_letter(f"Answer: A. No, wait.\n{statement}") == "E"
    assert settled_letter(f"{statement}\nNo: the answer is A, I think") == "A"


@pytest.mark.parametrize("mark", MARKS)
def test_the_last_mark_counts_and_comes_before_lower_case(mark: str) -> None:
    assert settled_letter(f"Not (A). {mark}") == "E"
    assert settled_letter(f"{mark} So option A it is") == "A"
    assert settled_letter(f"{mark} See part (a) of it") == "E"


def test_a_mark_is_not_an_explicit_statement() -> None:
    assert [stated_letter(text) for text in (*MARKS, *LOWER_CASE)] == [None] * (len(MARKS) + len(LOWER_CASE))


PARTS = [" ", "\n", "answer", "answer ", "Answer: ", r"\boxed{", r"\text{", "<answer>", "(", "*", "A. ", " :", "the ", "option A"]


@settings(max_examples=100)
@given(st.lists(st.sampled_from([*PARTS, "A", "e", ")", "}", "is", ".", "$", "</answer>", "\\"]), max_size=30))
def test_whatever_is_found_is_a_letter(parts: list[str]) -> None:
    letter = settled_letter("".join(parts))
    assert letter in (None, "A", "E")


@pytest.mark.parametrize("part", PARTS)
def test_a_long_text_takes_linear_time(part: str) -> None:
    """Twenty times the text would take four hundred times as long if the time were quadratic."""

    def seconds(length: int) -> float:
        started = time.process_time()
        settled_letter("Answer" + part * (length // len(part)) + "!")
        return time.process_time() - started

    short = min(seconds(10_000) for _ in range(3))
    assert min(seconds(200_000) for _ in range(2)) < 100 * short + 0.5
