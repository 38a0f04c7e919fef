"""A language model as judge: which of two answers it prefers, as a probability.

Source: OAIF, arXiv 2402.04792: the probabilities of "1" and "2" where the judge names its choice, normalised. Any two answers
are shown in both orders, and the mean counts (comparison.py).
"""

import math
import re
from typing import Annotated, Any

from pydantic import Field

from spinrun_api import spec
from spinrun_worker.rewards.comparison import Comparison
from spinrun_worker.rewards.dialect import Reply, Strict, UnusableReplyError
from spinrun_worker.rewards.wording import filled

TOP_LOGPROBS = 20
"""Likeliest tokens to request; no API gives more."""

_CHOICE = re.compile(r"(?<![\w.,])[12](?![\w]|[.,]\d)")

_CHOICE_ALONE = re.compile(r"\W*[12]\W*")

# A little above 0 by rounding.
Logprob = Annotated[float, Field(le=0.01, allow_inf_nan=False)]


class TopToken(Strict):
    """A token that might have been sampled."""

    token: str
    logprob: Logprob


class SaidToken(TopToken):
    """A token that was sampled, and others that might have been."""

    top_logprobs: list[TopToken] = Field(default_factory=list[TopToken], max_length=100)


class ChatLogprobs(Strict):
    """A reply's text, token by token."""

    content: list[SaidToken] | None = None


class ChatMessage(Strict):
    """A reply's text."""

    content: str | None = None


class ChatChoice(Strict):
    """One of the replies that a chat completion offers."""

    message: ChatMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    """length: the reply was cut off at max_tokens."""


class ChatReply(Reply):
    """The part of an OpenAI-compatible chat completion that matters here."""

    choices: list[ChatChoice] = Field(min_length=1, max_length=16)


class ChatDialect:
    """Asks a chat API to compare two answers, for the probability that the first one is better."""

    path = "/chat/completions"

    def __init__(self, judge: spec.Judge) -> None:
        self._judge = judge
        self._limit = "max_tokens"
        # Without randomness, so that the same comparison has the same outcome.
        self._wishes: dict[str, Any] = {"temperature": 0, "logprobs": True, "top_logprobs": TOP_LOGPROBS}

    def body(self, question: Comparison) -> dict[str, Any]:
        """The body of a request."""
        texts = {"prompt": question.prompt, "first": question.first, "second": question.second}
        message = {"role": "user", "content": filled(self._judge.template, **texts)}
        return {"model": self._judge.model, "messages": [message], self._limit: self._judge.max_tokens, **self._wishes}

    def read(self, question: Comparison, content: bytes) -> float:  # noqa: ARG002
        """The probability. Raises as Dialect.read."""
        return probability_of_first(ChatReply.model_validate_json(content).choices[0])

    def adapt(self, complaint: str) -> None:
        """Reasoning models accept neither a temperature nor this name of the limit, and many APIs give no log-probs."""
        if "max_completion_tokens" in complaint:
            self._limit = "max_completion_tokens"
        elif "logprob" in complaint:
            self._wishes = {name: value for name, value in self._wishes.items() if "logprobs" not in name}
        elif "temperature" in complaint:
            self._wishes = {name: value for name, value in self._wishes.items() if name != "temperature"}


def probability_of_first(choice: ChatChoice) -> float:
    """The probability that the judge prefers the first answer: 1 or 0 where the reply has no log-probs of its choice.

    Raises:
        UnusableReplyError: The reply's last line does not name exactly one of the two, or was cut off with more in it than that.
    """
    last_line = (choice.message.content or "").strip().rpartition("\n")[2]
    if choice.finish_reason == "length" and not _CHOICE_ALONE.fullmatch(last_line):
        raise UnusableReplyError(f"the reply was cut off at preference.judge.maxTokens, which is too few, and ends: {last_line}")
    said = set(_CHOICE.findall(last_line))
    if len(said) != 1:
        raise UnusableReplyError(f"the last line of the reply must name 1 or 2, and is: {last_line}")
    (number,) = said
    tokens = (choice.logprobs.content if choice.logprobs else None) or []
    spoken = next((token for token in reversed(tokens) if token.token.strip() == number), None)
    if spoken is None:
        return float(number == "1")
    logprobs = {top.token: top.logprob for top in spoken.top_logprobs} | {spoken.token: spoken.logprob}
    weights = [sum(math.exp(value) for token, value in logprobs.items() if token.strip() == which) for which in ("1", "2")]
    return weights[0] / sum(weights) if sum(weights) > 0 else float(number == "1")
