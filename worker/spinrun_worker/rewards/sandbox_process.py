"""The process in which a rule's code may hang, crash or misbehave. Started by `sandbox.Sandbox`.

Speaks JSON lines over the socket that it inherits: sends {"ready": true} or {"error": …} once, then answers each item with
{"reward": number} or {"failure": [kind, message]}. It ends when the other side is gone.
"""

import argparse
import importlib
import inspect
import json
import logging
import math
import numbers
import operator
import re
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from spinrun_worker.errors import ConfigurationError
from spinrun_worker.rewards.numbers import without_separators
from spinrun_worker.rewards.rules import choice, regex_rule
from spinrun_worker.rewards.score import Failure, Item, Score, UnusableAnswerError

MEMORY_BYTES = 4 * 2**30
"""Address space of all rules but the user's own: an answer such as 9^{9^9} must not take the memory of the trainer beside it."""

ORPHAN_GRACE_SECONDS = 2.0
"""The parent kills at the time limit; this much later the kernel does, so that no orphan hangs after the parent died."""

MAX_MESSAGE = 500

RuleFunction = Callable[[Item], object]

# A bare dollar sign opens a formula, and two backslashes are a line break.
_CURRENCY = re.compile(
    r"\\(?:text|mathrm)\{ ?(?:\\?\$|[€£¥₹]) ?\}|(?<!\\)\\\$ ?|[€£¥₹] ?(?=\\?[0-9.{])"
    r"|(?<=[0-9}]) ?(?:dollars?|cents?|euros?|USD|EUR|GBP)\b"
)


class StartError(Exception):
    """What the rule needs is not there; the message says what."""


def main() -> None:
    """Score items until the other side closes the socket."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--rule", type=json.loads, required=True, help="kind, timeoutSeconds, and pattern or entryPoint, as JSON")
    arguments = parser.parse_args()
    channel = socket.socket(fileno=arguments.socket)

    def send(reply: dict[str, object]) -> None:
        channel.sendall(json.dumps(reply).encode() + b"\n")

    try:
        rule = _rule(arguments.rule)
    except StartError as error:
        send({"error": f"preference.rule: {error}"})
        sys.exit(1)
    except ConfigurationError as error:
        send({"error": str(error)})
        sys.exit(1)
    send({"ready": True})
    for line in channel.makefile("rb"):
        _arm(arguments.rule["timeoutSeconds"] + ORPHAN_GRACE_SECONDS)
        score = score_of(rule, Item(**json.loads(line)))
        _arm(0)
        send({"failure": [score.kind, score.message]} if isinstance(score, Failure) else {"reward": score})


def _rule(document: Mapping[str, Any]) -> RuleFunction:
    """The rule that a spec's block describes. Raises StartError, or ConfigurationError for a broken pattern."""
    kind = document["kind"]
    if kind == "python":
        return python_rule(document["entryPoint"])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    if kind == "math":
        return math_rule()
    if kind == "regex":
        search = regex_rule(document["pattern"])
        return lambda item: search(item.completion, item.answer)
    assert kind == "choice", "the others need no process"
    return lambda item: choice(item.completion, item.answer or "")


def score_of(rule: RuleFunction, item: Item) -> Score:
    """The reward that a rule gives, or what went wrong."""
    try:
        value = rule(item)
        reward = finite_number(value)
        shown = "" if reward is not None else _shown(value)
    except UnusableAnswerError as error:
        return Failure("unusable answer", str(error))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's code raises costs this sample only
        return Failure("raised", f"{type(error).__name__}: {error}"[:MAX_MESSAGE])
    return Failure("no number", f"returned {shown}"[:MAX_MESSAGE]) if reward is None else reward


def finite_number(value: object) -> float | None:
    """The value as a float: a real number, a Decimal, or what an array or a tensor of one element holds. True is 1.

    Returns:
        None for everything else, and for numbers that are not finite or too large for a float.
    """
    if not isinstance(value, numbers.Real | Decimal):
        value = _only_element(value)
    if not isinstance(value, numbers.Real | Decimal):
        return None
    try:
        reward = float(value)
    except (OverflowError, ValueError):  # 10**400, Decimal("sNaN")
        return None
    return reward if math.isfinite(reward) else None


def _only_element(value: object) -> object:
    """What an array or a tensor of one element holds, as numpy, torch and others give it; None for everything else."""
    item = getattr(value, "item", None)
    try:
        return item() if callable(item) else None
    except Exception:  # noqa: BLE001 - each library has its own error for several elements
        return None


def _shown(value: object) -> str:
    """What a rule returned, with its type where the value alone does not tell."""
    if value is None or isinstance(value, numbers.Real):
        return repr(value)
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{name}: {value!r}"


def math_rule() -> RuleFunction:
    """The rule that gives 1 when math-verify finds completion and answer equal, else 0."""
    math_verify: Any = importlib.import_module("math_verify")  # it has no types
    # It warns once that its own time limit, by signals, is off; ours works where signals do not.
    logging.getLogger("math_verify").setLevel(logging.ERROR)

    @lru_cache(maxsize=1024)
    def parsed_answer(answer: str) -> list[Any]:
        text = readable(answer)
        # One dollar sign opens no formula: it is a currency.
        text = text.replace("$", "") if text.count("$") == 1 else text
        # LaTeX is recognised in an environment only; most data sets give the bare expression.
        expression = text if "$" in text or "\\boxed" in text else f"\\boxed{{{text}}}"
        found = math_verify.parse(expression, parsing_timeout=None)
        # Of what it cannot read it gives the text alone.
        if all(isinstance(each, str) for each in found):
            raise UnusableAnswerError(f"math-verify cannot read the true answer {answer[:80]!r}")
        return found

    def rule(item: Item) -> float:
        want = parsed_answer(item.answer or "")
        found = math_verify.parse(readable(item.completion), parsing_timeout=None)
        return float(math_verify.verify(want, found, timeout_seconds=None))

    return rule


def readable(text: str) -> str:
    r"""The text as math-verify can read it: `\$18.90`, `€5` and 5 dollars without the currency, and thousands as plain digits.

    It takes `10\,080` for a mixed number. Thousands with commas are left to it, since `(1,234)` is an interval.
    """
    return without_separators(_CURRENCY.sub("", text))


def python_rule(entry_point: str) -> RuleFunction:
    """The user's function, called as function(prompt, completion, answer, **columns).

    A function without ** gets only the columns that it names. A column named like one of the first three parameters is left out.
    One that names `messages` gets the conversation, and so does one with ** where the data has conversations; where the data has
    single texts, a column of that name comes first.

    Args:
        entry_point: The function, as module:function.

    Raises:
        StartError: There is no such function, or it does not take these arguments.
    """
    module_name, _, name = entry_point.partition(":")
    try:
        function = operator.attrgetter(name)(importlib.import_module(module_name))
    except (Exception, SystemExit) as error:
        raise StartError(f"cannot import {entry_point}: {type(error).__name__}: {error}") from error
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise StartError(f"{entry_point} must be a plain function, got {function!r}")
    try:
        signature = inspect.signature(function)
        signature.bind_partial("prompt", "completion", "answer")
    except (TypeError, ValueError) as error:
        raise StartError(f"{entry_point} must take (prompt, completion, answer, **columns): {error}") from error
    parameters = list(signature.parameters.values())
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    taken = {parameter.name for parameter in parameters[:3]}
    named = {parameter.name for parameter in parameters} - taken

    def rule(item: Item) -> object:
        given = dict(item.columns)
        if item.conversation:
            given["messages"] = item.conversation
        elif "messages" in named:
            given.setdefault("messages", [{"role": "user", "content": item.prompt}])
        columns = {key: value for key, value in given.items() if key not in taken and (takes_all or key in named)}
        return function(item.prompt, item.completion, item.answer, **columns)

    return rule


def _arm(seconds: float) -> None:
    """Have the kernel kill this process after this many seconds; 0 calls it off. Works even when the interpreter hangs."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


if __name__ == "__main__":
    main()
