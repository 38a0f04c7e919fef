"""Answers prompts through vLLM, and lets nothing pass but whole groups of samples from one version."""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Literal

from spinrun_protocol.wire import Prompt, PromptFailed, Sample, SampleGroup, SamplesRequest, Sampling
from spinrun_worker.rollout.gate import Gate, Served, VersionChangedError
from spinrun_worker.rollout.metrics import RolloutMetrics
from spinrun_worker.vllm.engine import Completion, CompletionChoice, Engine, EngineError, RequestRefusedError

logger = logging.getLogger(__name__)

_FINISH_REASONS: dict[str | None, Literal["stop", "length"]] = {"stop": "stop", "length": "length"}


class PromptError(Exception):
    """The prompt itself is at fault: no rollout of this run can answer it."""


class InvalidOutputError(Exception):
    """vLLM's answer is not a group of samples of the prompt."""


class Slots:
    """Limits how many sequences vLLM works on at once. First come, first served."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = asyncio.Semaphore(total)
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def take(self, count: int) -> AsyncGenerator[None]:
        """Hold this many slots, or all of them if there are fewer."""
        taken = 0
        try:
            # One at a time: otherwise two could each hold half of what they need.
            async with self._turn:
                while taken < min(count, self._total):
                    await self._free.acquire()
                    taken += 1
            yield
        finally:
            for _ in range(taken):
                self._free.release()


class Sampler:
    """Answers prompts, one per call."""

    def __init__(
        self, engine: Engine, gate: Gate, metrics: RolloutMetrics, *, max_sequences: int, engine_failed: Callable[[], None]
    ) -> None:
        """Answer nothing yet.

        Args:
            engine: The vLLM.
            gate: Which version it serves.
            metrics: The agent's metrics.
            max_sequences: Concurrent samples in vLLM.
            engine_failed: Called when vLLM has not answered.
        """
        self._engine = engine
        self._gate = gate
        self._metrics = metrics
        self._slots = Slots(max_sequences)
        self._engine_failed = engine_failed

    async def answer(self, prompt: Prompt, request: SamplesRequest) -> SampleGroup | PromptFailed:
        """All samples of one prompt, from the requested version from first to last token, or why there are none."""
        try:
            # Slots first: a prompt that waits for them must not hold up a switch.
            async with self._slots.take(request.sampling.n):
                with self._gate.passing(request.version, request.digest) as served:
                    return await self._sample(prompt, request.sampling, served)
        except VersionChangedError as error:
            return self._failed(prompt, "version", error)
        except (PromptError, RequestRefusedError) as error:
            return self._failed(prompt, "prompt", error, retryable=False)
        except InvalidOutputError as error:
            logger.warning("vLLM's answer to prompt %s is refused: %s", prompt.id, error)
            return self._failed(prompt, "output", error)
        except EngineError as error:
            self._engine_failed()
            return self._failed(prompt, "engine", error)

    async def _sample(self, prompt: Prompt, sampling: Sampling, served: Served) -> SampleGroup:
        """Raises PromptError, EngineError, InvalidOutputError, VersionChangedError."""
        check_prompt(prompt, sampling, served)
        with self._metrics.requests_in_flight.track_inprogress():
            completion = await self._engine.complete(prompt.tokens, sampling, model=served.weights.model_name)
        # The gate has kept this agent from switching. But a vLLM that was restarted meanwhile has answered with other weights.
        label = await self._engine.label()
        if label != served.weights.label:
            raise VersionChangedError(f"vLLM was restarted while it answered: it now serves {label}")
        samples = samples_of(completion, prompt, sampling, served.weights.vocabulary_size)
        for sample in samples:
            self._metrics.samples.labels(sample.finish_reason).inc()
            self._metrics.tokens.inc(len(sample.tokens))
        return SampleGroup(id=prompt.id, version=served.weights.version, digest=served.weights.digest, samples=samples)

    def _failed(self, prompt: Prompt, kind: str, error: Exception, *, retryable: bool = True) -> PromptFailed:
        self._metrics.prompt_failures.labels(kind).inc()
        return PromptFailed(id=prompt.id, reason=str(error), retryable=retryable)


def check_prompt(prompt: Prompt, sampling: Sampling, served: Served) -> None:
    """Check that the model can answer a prompt.

    Raises:
        PromptError: It cannot.
    """
    needed = len(prompt.tokens) + sampling.max_tokens
    if needed > served.max_model_len:
        raise PromptError(
            f"prompt {prompt.id} has {len(prompt.tokens)} tokens, which with maxTokens {sampling.max_tokens} make {needed}: "
            f"vLLM accepts {served.max_model_len}"
        )
    if unknown := _outside(prompt.tokens, served.weights.vocabulary_size):
        raise PromptError(f"prompt {prompt.id} has token {unknown[0]}, but the model has only {served.weights.vocabulary_size}")


def samples_of(completion: Completion, prompt: Prompt, sampling: Sampling, vocabulary_size: int) -> tuple[Sample, ...]:
    """The samples in vLLM's answer to a prompt.

    Args:
        completion: vLLM's answer.
        prompt: The prompt that was sent.
        sampling: How it was to be sampled.
        vocabulary_size: Valid token ids are below this.

    Raises:
        InvalidOutputError: The answer is not exactly what was requested.
    """
    if len(completion.choices) != sampling.n:
        raise InvalidOutputError(f"{len(completion.choices)} samples instead of {sampling.n}")
    return tuple(_sample_of(choice, prompt, sampling, vocabulary_size) for choice in completion.choices)


def _sample_of(choice: CompletionChoice, prompt: Prompt, sampling: Sampling, vocabulary_size: int) -> Sample:
    finish_reason = _FINISH_REASONS.get(choice.finish_reason)
    if finish_reason is None:
        raise InvalidOutputError(f"a sample has the finish reason {choice.finish_reason!r}")
    if choice.prompt_token_ids is None or tuple(choice.prompt_token_ids) != prompt.tokens:
        raise InvalidOutputError("the sample answers other prompt tokens than those that were sent")
    # Even an empty answer has its end token.
    tokens = choice.token_ids
    if not tokens:
        raise InvalidOutputError("a sample has no token ids")
    if len(tokens) > sampling.max_tokens:
        raise InvalidOutputError(f"a sample has {len(tokens)} tokens, more than maxTokens {sampling.max_tokens}")
    if unknown := _outside(tokens, vocabulary_size):
        raise InvalidOutputError(f"a sample has token {unknown[0]}, but the model has only {vocabulary_size}")
    wants_logprobs = sampling.logprobs or sampling.token_logprobs
    logprobs = _logprobs_of(choice, len(tokens)) if wants_logprobs else ()
    return Sample(
        tokens=tuple(tokens),
        text=choice.text,
        finish_reason=finish_reason,
        logprob=math.fsum(logprobs) if sampling.logprobs else None,
        token_logprobs=logprobs if sampling.token_logprobs else None,
    )


def _logprobs_of(choice: CompletionChoice, num_tokens: int) -> tuple[float, ...]:
    """Log-probs of a sample's tokens. Raises InvalidOutputError unless each of them has one."""
    values = [value for value in (choice.logprobs.token_logprobs if choice.logprobs else []) if value is not None]
    if len(values) != num_tokens or not all(map(math.isfinite, values)):
        raise InvalidOutputError(
            f"a sample of {num_tokens} tokens has {len(values)} log-probs, or non-finite log-probs (NaN or inf)"
        )
    return tuple(values)


def _outside(tokens: tuple[int, ...] | list[int], vocabulary_size: int) -> list[int]:
    return [token for token in tokens if not 0 <= token < vocabulary_size]
