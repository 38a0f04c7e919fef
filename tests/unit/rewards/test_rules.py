import time

import pytest

from spinrun_worker.errors import ConfigurationError
from spinrun_worker.rewards.rules import choice, exact, gsm8k, last_number, regex_rule
from spinrun_worker.rewards.score import UnusableAnswerError


@pytest.mark.parametrize(
    ("completion", "answer", "want"),
    [
        ("12", "12", 1),
        ("12.", "12", 1),
        ("The answer is 12.", "12", 1),
        ("3 + 9 = 12", "12", 1),
        ("12 is not 13", "12", 0),
        ("12.0", "12", 1),
        ("12.5", "12", 0),
        ("0.50", ".5", 1),
        ("it costs $1,234.50!", "1234.5", 1),
        ("1,000,000", "1000000", 1),
        ("1,2,3", "3", 1),
        ("(1,2345)", "2345", 1),
        ("= -3", "-3", 1),
        ("= −3", "-3", 1),
        ("-3", "3", 0),
        ("+3", "3", 1),
        ("10-3", "3", 1),
        ("x-3", "3", 1),
        ("(5)-3", "3", 1),
        ("10 - 7 = 3", "3", 1),
        ("2e3", "2000", 1),
        ("2e9999999999", "9999999999", 1),
        ("007", "7", 1),
        ("twelve", "12", 0),
        ("", "12", 0),
        ("12", "so it is 1,2 and then 12 apples", 1),
        ("0.1", "0.10000000000000000001", 0),
        ("١٢", "12", 0),
        (r"So it costs \boxed{\$9{,}500}.", "9500", 1),
        ("The total is $9{,}500.", "9500", 1),
        ("The total is $9{,}500.", "500", 0),
        (r"\boxed{10,\!080}", "10080", 1),
        (r"\boxed{10\,080}", "10080", 1),
        (r"\boxed{10\,080}", "80", 0),
        ("10080", r"10\!080", 1),
        ("80", r"10\!080", 0),
        ("12\u2009345 or 12\u202f345", "12\u00a0345", 1),
        ("CHF 1'234.50", "1234.5", 1),
        (r"It is $\frac{3}{4}$", "0.75", 1),
        ("It is 3/4", "4", 0),
        ("25%", "25", 1),
        ("0.25", "25%", 1),
        ("-$5", "5", 0),
        (r"3 \times 10^{8} m/s", "3e8", 1),
    ],
)
def test_last_number(completion: str, answer: str, want: float):
    assert last_number(completion, answer) == want


@pytest.mark.parametrize(
    ("completion", "answer", "want"),
    [
        ("so\n#### 42", "She has 40 + 2 = <<40+2=42>>42\n#### 42", 1),
        ("#### 42 and not 7", "#### 42", 1),
        ("#### $1,042", "1042", 1),
        ("#### 41\nno:\n#### 42", "#### 42", 1),
        ("the answer is 42.", "#### 42", 1),
        ("#### none, so 42", "#### 42", 1),
        ("42 ####", "#### 42", 1),
        ("#### 43", "#### 42", 0),
        ("nothing", "#### 42", 0),
        ("#### -5", "7 - 12 = -5\n#### -5", 1),
        ("#### 12{,}345", "12,345", 1),
        ("#### 12345", "#### 12{,}345", 1),
        ("#### 345", "#### 12{,}345", 0),
        (r"#### \$10\,080 in 3 years", "10080", 1),
    ],
)
def test_gsm8k(completion: str, answer: str, want: float):
    assert gsm8k(completion, answer) == want


@pytest.mark.parametrize(
    ("completion", "answer", "want"),
    [(" Paris\n", "Paris ", 1), ("paris", "Paris", 0), ("Paris.", "Paris", 0), ("", "Paris", 0)],
)
def test_exact_trims_and_nothing_more(completion: str, answer: str, want: float):
    assert exact(completion, answer) == want


@pytest.mark.parametrize(
    ("completion", "answer", "want"),
    [
        ("B", "B", 1),
        ("b", "(B)", 1),
        ("(B)", "B", 1),
        ("B.", "B", 1),
        ("B) 4", "B", 1),
        ("Answer: B", "B", 1),
        ("answer: (B) because", "B", 1),
        ("The answer is B", "B", 1),
        ("The final answer is **B**.", "B", 1),
        ("Answer: $\\boxed{B}$", "B", 1),
        ("(A) is tempting, but (B) is right", "B", 1),
        ("Answer: A. No, answer: B", "B", 1),
        ("It must be the second.\nB", "B", 1),
        ("A. Then we see\nC. last", "C", 1),
        ("A", "B", 0),
        ("A big dog", "A", 0),
        ("Born in the U.S. of course", "S", 0),
        ("I think not", "I", 0),
        ("", "B", 0),
        ("B", r"\boxed{\text{B}}", 1),
        ("(B)", "Answer: B", 1),
        ("B", "<answer>b</answer>", 1),
    ],
)
def test_choice(completion: str, answer: str, want: float):
    assert choice(completion, answer) == want


@pytest.mark.parametrize(
    ("rule", "answer", "want"),
    [(last_number, "none", "number"), (gsm8k, "#### none", "number"), (choice, "Paris", "one letter")],
)
def test_a_true_answer_that_cannot_be_compared_is_no_fault_of_the_model(rule, answer: str, want: str):
    with pytest.raises(UnusableAnswerError, match=want):
        rule("12 B", answer)


def test_regex_searches_and_escapes_the_answer():
    rule = regex_rule(r"(?i)answer:\s*{answer}\b")
    assert rule("Answer: 3.5", "3.5") == 1
    assert rule("Answer: 3x5", "3.5") == 0
    assert rule("3.5", "3.5") == 0


def test_regex_without_an_answer_is_a_format_rule():
    rule = regex_rule(r"^<think>.*</think>")
    assert (rule("<think>x</think>", None), rule("x", None)) == (1, 0)


def test_a_broken_pattern_is_named():
    with pytest.raises(ConfigurationError, match=r"preference\.rule\.pattern: is not a valid regular expression: .*position"):
        regex_rule("(")


@pytest.mark.parametrize(
    "completion", ["9" * 1_000_000, "1," * 500_000, "-" * 1_000_000, "1e" * 500_000, "A. " * 300_000, "(" * 1_000_000]
)
@pytest.mark.parametrize("rule", [last_number, gsm8k, choice])
def test_an_endless_answer_is_scored_in_no_time(rule, completion: str):
    started = time.monotonic()
    rule(completion, "7" if rule is not choice else "B")
    assert time.monotonic() - started < 5
