import json
import math
from collections.abc import Iterator, Mapping
from datetime import date
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from spinrun_api.spec import Rule, RuleKind, Truncated
from spinrun_protocol.wire import Sample
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.records import PromptRecord
from spinrun_worker.rewards import RuleReward, build_rule
from spinrun_worker.rewards.sandbox_process import score_of
from spinrun_worker.rewards.score import Failure, Item


def prompt(name: str, answer: str | None, columns: dict[str, Any] | None = None) -> PromptRecord:
    return PromptRecord(name, (1,), f"question {name}", answer, columns or {})


def samples(*texts: str) -> tuple[Sample, ...]:
    return tuple(Sample(tokens=(1,), text=text, finish_reason="stop") for text in texts)


USER_MODULE = """
import json, math, os, pathlib, sys, time
from fractions import Fraction

calls = 0

def length(prompt, completion, answer, **columns):
    return len(completion)

def write_down(prompt, completion, answer, **columns):
    pathlib.Path(columns["path"]).write_text(json.dumps([prompt, completion, answer, columns]))
    return 1

def only_level(prompt, completion, answer, level):
    return level

def own_names(question, response, truth, **columns):
    return question == "question p" and response == "hi" and truth == "4" and "question" not in columns

def counted(prompt, completion, answer, **columns):
    global calls
    calls += 1
    return calls

def wild(prompt, completion, answer, **columns):
    print("whatever it prints goes nowhere near the results")
    return {
        "true": lambda: True, "int": lambda: 3, "fraction": lambda: Fraction(1, 4), "none": lambda: None, "text": lambda: "1",
        "nan": lambda: math.nan, "inf": lambda: math.inf, "huge": lambda: 10 ** 400, "raise": lambda: 1 / 0,
        "exit": lambda: sys.exit(0), "die": lambda: os._exit(7), "hang": lambda: time.sleep(60),
    }[completion]()

async def later(prompt, completion, answer, **columns):
    return 1.0

def two(prompt, completion):
    return 1.0

constant = 3
"""


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "myrules.py").write_text(USER_MODULE)
    (tmp_path / "mybroken.py").write_text("import no_such_library\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def python_rule(function: str, timeout_seconds: float = 10) -> RuleReward:
    return build_rule(Rule(kind="python", entry_point=f"myrules:{function}", timeout_seconds=timeout_seconds))


RULES = [
    (Rule(kind="lastNumber"), "4", (1.0, 0.0)),
    (Rule(kind="gsm8k"), "2 + 2 = 4\n#### 4", (1.0, 0.0)),
    (Rule(kind="exact"), "it is 4", (1.0, 0.0)),
    (Rule(kind="choice"), "B", (0.0, 1.0)),
    (Rule(kind="regex", pattern="{answer}$"), "4", (1.0, 0.0)),
    (Rule(kind="math"), "\\frac{8}{2}", (1.0, 0.0)),
]


def test_every_kind_of_rule_is_tested_here_and_named_in_the_readme():
    assert {rule.kind for rule, _, _ in RULES} | {"python"} == set(get_args(RuleKind))
    readme = (Path(__file__).resolve().parents[3] / "README.md").read_text()
    assert [kind for kind in get_args(RuleKind) if f"`{kind}`" not in readme] == []


@pytest.mark.parametrize(("rule", "answer", "want"), RULES, ids=lambda value: value.kind if isinstance(value, Rule) else None)
def test_every_rule_scores_every_sample(rule: Rule, answer: str, want: tuple[float, float]):
    scorer = build_rule(rule)
    result = scorer.score([(prompt("p", answer), samples("it is 4", "(B)")), (prompt("q", answer), samples("(B)"))])
    scorer.close()
    assert result.rewards == (want, want[1:])
    assert result.messages == []


def test_failures_are_counted_by_kind_with_the_first_prompt_as_example():
    scorer = build_rule(Rule(kind="lastNumber"))
    good, bad, worse = prompt("good", "1"), prompt("bad", "one"), prompt("worse", "none")
    result = scorer.score([(good, samples("1", "2")), (bad, samples("1", "2")), (worse, samples("1"))])
    assert result.rewards == ((1.0, 0.0), (None, None), (None,))
    assert result.messages == [
        "answers without a reward: 3 (unusable answer); the first, of prompt bad: the true answer must hold a number, got 'one'"
    ]


@pytest.mark.parametrize("pattern", ["^(a|aa)+$", "(.*a){25}$", "^(a|aa)+{answer}$"])
def test_a_slow_regex_costs_those_samples_only(pattern: str):
    scorer = build_rule(Rule(kind="regex", pattern=pattern, timeout_seconds=0.5))
    slow = "a" * 5000 + "!"
    result = scorer.score([(prompt("p", "x"), samples(slow, slow, "a" * 25, "aax"))])
    scorer.close()
    assert result.rewards[0][:2] == (None, None)
    assert 1.0 in result.rewards[0][2:]
    assert [(failure.kind, failure.count, failure.prompt_id) for failure in result.failures] == [("too slow", 2, "p")]


@pytest.mark.parametrize("pattern", ["-x", "--rule", "é", '"', "{answer}"])
def test_every_pattern_reaches_its_process(pattern: str):
    scorer = build_rule(Rule(kind="regex", pattern=pattern))
    assert scorer.score([(prompt("p", "yes"), samples(f"… {pattern}yes"))]).rewards == ((1.0,),)
    scorer.close()


def test_a_broken_pattern_is_named_at_the_start():
    with pytest.raises(ConfigurationError, match=r"^preference\.rule\.pattern: is not a valid regular expression: .*position"):
        build_rule(Rule(kind="regex", pattern="("))


RIGHT: dict[RuleKind, str] = {
    "lastNumber": "it is 4",
    "gsm8k": "#### 4",
    "exact": "4",
    "choice": "(B)",
    "regex": "4",
    "math": "$4$",
}
"""What each rule finds right."""
CUT_OFF: Mapping[Truncated | None, Mapping[bool, float | None]] = {
    None: {True: 0.0, False: 1.0},
    "zero": {True: 0.0, False: 0.0},
    "drop": {True: None, False: None},
    "score": {True: 1.0, False: 1.0},
}
"""The reward of a right answer that was cut off, by the setting and whether the rule looks for a final answer."""


@pytest.mark.parametrize("truncated", CUT_OFF)
@pytest.mark.parametrize("kind", RIGHT)
def test_a_right_answer_that_was_cut_off_gets_what_the_rule_says(kind: RuleKind, truncated: Truncated | None):
    scorer = build_rule(Rule(kind=kind, truncated=truncated, pattern="4" if kind == "regex" else None, timeout_seconds=60))
    (whole,) = samples(RIGHT[kind])
    cut = whole.model_copy(update={"finish_reason": "length"})
    truth = "B" if kind == "choice" else "4"
    result = scorer.score([(prompt("p", truth), (cut, whole, cut)), (prompt("q", truth), (cut,))])
    scorer.close()
    want = CUT_OFF[truncated][kind in ("lastNumber", "gsm8k", "choice", "math")]
    assert result.rewards == ((want, 1.0, want), (want,))
    reasons = ["answers without a reward: 3 (cut off); the first, of prompt p: cut off at maxTokens, after 1 tokens"]
    assert result.messages == (reasons if want is None else [])


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(("truncated", "want"), [(None, (1, 2)), ("score", (1, 2)), ("zero", (0, 1)), ("drop", (None, 1))])
def test_the_users_function_is_asked_about_answers_that_were_cut_off_only_where_they_are_scored(
    truncated: Truncated | None, want: tuple[float | None, ...]
):
    scorer = build_rule(Rule(kind="python", entry_point="myrules:counted", timeout_seconds=60, truncated=truncated))
    (whole,) = samples("hi")
    result = scorer.score([(prompt("p", None), (whole.model_copy(update={"finish_reason": "length"}), whole))])
    scorer.close()
    assert result.rewards == (want,)


def test_a_true_answer_that_cannot_be_read_is_no_fault_of_an_answer_that_was_cut_off():
    scorer = build_rule(Rule(kind="lastNumber"))
    cut = Sample(tokens=(1,), text="4", finish_reason="length")
    result = scorer.score([(prompt("p", "four"), (cut,)), (prompt("q", "4"), (cut,))])
    assert result.rewards == ((None,), (0.0,))
    assert [failure.kind for failure in result.failures] == ["unusable answer"]


def test_scoring_nothing_is_nothing():
    assert build_rule(Rule(kind="exact")).score([]).rewards == ()


@pytest.mark.usefixtures("user_module")
def test_the_users_function_sees_prompt_completion_answer_and_columns(tmp_path: Path):
    path = str(tmp_path / "seen")
    scorer = python_rule("write_down")
    # Columns that are called like a parameter give way to it; what JSON does not know arrives as text.
    columns = {"path": path, "prompt": "x", "answer": "x", "level": 3, "day": date(2026, 1, 2), "steps": [1, None]}
    result = scorer.score([(prompt("p", "4", columns), samples("hi"))])
    scorer.close()
    assert (result.rewards, result.messages) == (((1.0,),), [])
    want = ["question p", "hi", "4", {"path": path, "level": 3, "day": "2026-01-02", "steps": [1, None]}]
    assert json.loads(Path(path).read_text()) == want


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(("function", "want"), [("only_level", 3.0), ("own_names", 1.0), ("length", 2.0)])
def test_columns_fit_the_functions_parameters(function: str, want: float):
    scorer = python_rule(function)
    columns = {"level": 3, "prompt": "x", "completion": "x", "question": "x"}
    result = scorer.score([(prompt("p", "4", columns), samples("hi"))])
    scorer.close()
    assert (result.rewards, result.messages) == (((want,),), [])


@pytest.mark.usefixtures("user_module")
def test_the_users_module_keeps_its_state_from_one_answer_to_the_next():
    scorer = python_rule("counted")
    first = scorer.score([(prompt("p", None), samples("a", "b"))]).rewards
    second = scorer.score([(prompt("p", None), samples("c"))]).rewards
    scorer.close()
    assert (first, second) == (((1.0, 2.0),), ((3.0,),))


@pytest.mark.usefixtures("user_module")
def test_what_goes_wrong_in_the_users_function_costs_that_sample_only():
    scorer = python_rule("wild", timeout_seconds=2)
    texts = ("true", "raise", "int", "none", "text", "nan", "inf", "huge", "exit", "die", "hang", "fraction")
    result = scorer.score([(prompt("p", None), samples(*texts)), (prompt("q", None), samples("int"))])
    scorer.close()
    rewards = dict(zip(texts, result.rewards[0], strict=True))
    assert {text: reward for text, reward in rewards.items() if reward is not None} == {"true": 1.0, "int": 3.0, "fraction": 0.25}
    assert result.rewards[1] == (3.0,)
    assert {failure.kind: failure.count for failure in result.failures} == {
        "no number": 5,
        "raised": 2,
        "crashed": 1,
        "too slow": 1,
    }
    messages = {failure.kind: failure.message for failure in result.failures}
    assert messages["raised"] == "ZeroDivisionError: division by zero"
    assert messages["no number"] == "returned None"
    assert messages["crashed"] == "the rule's process died: exit code 7"
    assert messages["too slow"] == "no reward in 2 s"
    assert {failure.prompt_id for failure in result.failures} == {"p"}


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (True, 1.0),
        (np.True_, 1.0),
        (np.False_, 0.0),
        (np.float32(0.5), 0.5),
        (np.int64(-3), -3.0),
        (np.array(0.25), 0.25),
        (np.array([2]), 2.0),
        (np.array([[True]]), 1.0),
        (torch.tensor(0.5), 0.5),
        (torch.tensor([1.5], dtype=torch.bfloat16, requires_grad=True), 1.5),
        (torch.tensor(True), 1.0),
        (Decimal("0.75"), 0.75),
        (Fraction(1, 8), 0.125),
    ],
    ids=repr,
)
def test_whatever_is_a_finite_number_is_a_reward(value: object, want: float) -> None:
    assert score_of(lambda _: value, Item("p", "", "", None, {})) == want


class Shy:
    """Shows nothing of itself."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "want"),
    [
        (None, "returned None"),
        (math.inf, "returned inf"),
        ("1", "returned str: '1'"),
        (1j, "returned complex: 1j"),
        ([1.0], "returned list: [1.0]"),
        ({"item": 1}, "returned dict: {'item': 1}"),
        (np.array([1, 2]), "returned numpy.ndarray: array([1, 2])"),
        (np.array([]), "returned numpy.ndarray: array([], dtype=float64)"),
        (np.array("1"), "returned numpy.ndarray: array('1', dtype='<U1')"),
        (np.array(math.nan), "returned numpy.ndarray: array(nan)"),
        (np.complex64(1), "returned numpy.complex64: np.complex64(1+0j)"),
        (torch.tensor([0.5, 1.0]), "returned torch.Tensor: tensor([0.5000, 1.0000])"),
        (Decimal("NaN"), "returned decimal.Decimal: Decimal('NaN')"),
        (Decimal("sNaN"), "returned decimal.Decimal: Decimal('sNaN')"),
        (np.ndarray, "returned type: <class 'numpy.ndarray'>"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whatever_is_not_a_finite_number_is_refused_by_name(value: object, want: str) -> None:
    assert score_of(lambda _: value, Item("p", "", "", None, {})) == Failure("no number", want)


def test_a_value_that_cannot_be_shown_costs_that_sample_only() -> None:
    assert score_of(lambda _: Shy(), Item("p", "", "", None, {})) == Failure("raised", "RuntimeError: no")


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("entry_point", "want"),
    [
        ("no_such_module:f", "cannot import no_such_module:f: ModuleNotFoundError"),
        ("mybroken:f", "cannot import mybroken:f: ModuleNotFoundError: No module named 'no_such_library'"),
        ("myrules:no_such_function", "cannot import myrules:no_such_function: AttributeError"),
        ("myrules:constant", "must be a plain function, got 3"),
        ("myrules:later", "must be a plain function"),
        ("myrules:two", r"must take \(prompt, completion, answer, \*\*columns\)"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_refused_at_the_start(entry_point: str, want: str):
    with pytest.raises(ConfigurationError, match=want):
        build_rule(Rule(kind="python", entry_point=entry_point))


@pytest.fixture(scope="module")
def math_scorer() -> Iterator[RuleReward]:
    scorer = build_rule(Rule(kind="math", timeout_seconds=60))
    yield scorer
    scorer.close()


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (r"\$18.90", (r"\boxed{18.90}", r"\boxed{\$18.90}", "The cost is $18.90.")),
        (r"\$32,\!348", (r"\boxed{32348}", r"\boxed{\$32{,}348}", "$32,348$")),
        (r"\$9{,}500", (r"\boxed{9500}", r"\boxed{9\,500}", "9'500")),
        (r"10\,080", (r"\boxed{10080}", r"\boxed{10,080}", r"\boxed{10\!080}")),
        ("10080", (r"\boxed{10\,080}", "\\boxed{10\u202f080}")),
        ("$18", (r"\boxed{18}", r"\boxed{\$18}")),
        (r"$\$18.90$", ("18.9",)),
        (r"-\$5", (r"\boxed{-5}", r"\boxed{-\$5}")),
        (r"\text{\$}18", ("$18$",)),
        ("€5", ("5", r"\boxed{€5}")),
        ("18.90 dollars", (r"\boxed{18.9}", r"\boxed{18.90 dollars}")),
        ("1.234,50", (r"\boxed{1234.5}",)),
        ("(1,234)", (r"\boxed{(1,234)}",)),
        (r"\frac{1}{2}", ("0.5", r"\boxed{\frac12}")),
    ],
)
def test_math_reads_currencies_and_thousands(math_scorer: RuleReward, answer: str, right: tuple[str, ...]) -> None:
    result = math_scorer.score([(prompt("p", answer), samples(*right, r"\boxed{77}", "no idea", ""))])
    assert result.rewards == ((*[1.0] * len(right), 0.0, 0.0, 0.0),)


@pytest.mark.parametrize("answer", ["", "?", r"\$", r"x \le", r"\text{}"])
def test_a_true_answer_that_math_cannot_read_gives_no_reward(math_scorer: RuleReward, answer: str) -> None:
    assert math_scorer.score([(prompt("p", answer), samples("1", "?"))]).rewards == ((None, None),)
    assert math_scorer.unusable_answers([prompt("good", "1"), prompt("bad", answer)]) == {
        "bad": f"math-verify cannot read the true answer {answer!r}"
    }


@pytest.mark.usefixtures("user_module")
def test_the_users_function_is_not_asked_about_true_answers() -> None:
    scorer = python_rule("wild")
    assert scorer.unusable_answers([prompt("p", None)]) == {}
    scorer.close()


def test_an_answer_that_would_take_math_for_ever_costs_that_sample_only():
    scorer = build_rule(Rule(kind="math", timeout_seconds=2))
    texts = ("$9^{9^{9^{9}}}$", "42", "\\boxed{10^{1000000000}}", "$\\frac{84}{2}$", "41")
    result = scorer.score([(prompt("p", "42"), samples(*texts))])
    scorer.close()
    assert result.rewards == ((None, 1.0, None, 1.0, 0.0),)
    assert [(failure.kind, failure.count) for failure in result.failures] == [("too slow", 2)]
