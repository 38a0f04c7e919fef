"""A client of vLLM's HTTP interface, as far as the agents need it."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import aiohttp
from pydantic import BaseModel, ValidationError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from spinrun_protocol.commands import SERVED_MODEL
from spinrun_protocol.wire import Sampling

# Label of weights that are being loaded, or whose loading was cut short: no sample may come from them.
LOADING = "loading"

# /health answers immediately. The engine itself answers between two steps, and a step may take long on a CPU.
_HEALTH_SECONDS = 10
_ENGINE_SECONDS = 120
_RELOAD_SECONDS = 1800
# A scrape waits for this, and Prometheus waits ten seconds for a scrape.
_METRICS_SECONDS = 3
_OWN_METRICS = re.compile(rb"^(?:# (?:HELP|TYPE) )?vllm:.*\n", re.MULTILINE)

_REQUEST_AT_FAULT = (400, 413, 422)


Body = TypeVar("Body", bound=BaseModel)


class EngineError(Exception):
    """vLLM does not answer, or has failed."""


class RequestRefusedError(EngineError):
    """vLLM found a fault in the request itself: retrying is useless."""


@dataclass(frozen=True)
class EngineStatus:
    """What vLLM reports about itself."""

    label: str
    """Its name for its weights."""
    paused: bool
    """Whether it has been told to hold back requests."""
    max_model_len: int
    """Longest prompt and completion together, in tokens."""
    models: frozenset[str]
    """Model names that it answers to: the model's own, and those of loaded adapters."""


class _WeightInfo(BaseModel):
    weight_version: str


class _IsPaused(BaseModel):
    is_paused: bool


class _Card(BaseModel):
    id: str
    max_model_len: int | None = None
    """Absent for adapters."""


class _Cards(BaseModel):
    data: tuple[_Card, ...]


class _Reset(BaseModel):
    success: bool


class _Logprobs(BaseModel):
    token_logprobs: list[float | None]


class CompletionChoice(BaseModel):
    """One completion as vLLM returns it; only the types have been checked."""

    text: str
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None


class Completion(BaseModel):
    """vLLM's answer to one prompt."""

    choices: list[CompletionChoice]


class Engine:
    """Client of one vLLM server."""

    def __init__(self, url: str, session: aiohttp.ClientSession, *, completion_seconds: float = 3600) -> None:
        """Send nothing yet.

        Args:
            url: The server's, such as http://127.0.0.1:8000.
            session: For the requests.
            completion_seconds: Time limit for the completions of one prompt.
        """
        self._url = url.rstrip("/")
        self._session = session
        self._completion_seconds = completion_seconds

    async def status(self) -> EngineStatus:
        """What vLLM reports about itself.

        Raises:
            EngineError: It cannot generate.
        """
        await self.check_health()
        label, paused, cards = await asyncio.gather(
            self.label(), self._get("/is_paused", _IsPaused), self._get("/v1/models", _Cards)
        )
        longest = next((card.max_model_len for card in cards.data if card.id == SERVED_MODEL), None)
        if longest is None:
            raise EngineError(
                f"vLLM lists no model {SERVED_MODEL} at /v1/models: start it with --served-model-name {SERVED_MODEL}"
            )
        return EngineStatus(label, paused.is_paused, longest, frozenset(card.id for card in cards.data))

    async def check_health(self) -> None:
        """Check that vLLM answers and that its engine is running.

        Raises:
            EngineError: It does not answer, or its engine has failed.
        """
        await self._call("GET", "/health", seconds=_HEALTH_SECONDS)

    async def metrics(self) -> bytes:
        """vLLM's own metrics in Prometheus' text format, without those of its process; empty while it does not answer."""
        try:
            page = await self._call("GET", "/metrics", seconds=_METRICS_SECONDS)
        except EngineError:
            return b""
        return b"".join(_OWN_METRICS.findall(page))

    async def label(self) -> str:
        """vLLM's name for its weights: `default` after a start."""
        return (await self._get("/weight_info", _WeightInfo)).weight_version

    async def load(self, path: Path, label: str) -> None:
        """Load weights and give them a label. vLLM must be paused and idle.

        Args:
            path: Folder of the weights, as vLLM sees it.
            label: Their label.

        Raises:
            EngineError: Any part of it failed. vLLM then has the label LOADING, or the old one if nothing was loaded, or is dead.
        """
        # The old label is dropped first: if this agent dies in between, new weights are not mistaken for old ones.
        await self._rename(LOADING)
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(path)}}
        await self._call("POST", "/collective_rpc", seconds=_RELOAD_SECONDS, json=reload)
        await self._reset_prefix_cache()
        await self._rename(label)

    async def load_adapter(self, path: Path, label: str) -> None:
        """Load an adapter of vLLM's model, with its label as its name, and label the weights so.

        Args:
            path: Folder of the adapter, as vLLM sees it.
            label: Its label.

        Raises:
            EngineError: Any part of it failed. What was served before is then still there under its own name.
        """
        served = await self.label()
        for card in (await self._get("/v1/models", _Cards)).data:
            # The version before last, or one left by an agent that died during a switch.
            if card.id not in (SERVED_MODEL, served):
                await self._call("POST", "/v1/unload_lora_adapter", json={"lora_name": card.id})
        adapter = {"lora_name": label, "lora_path": str(path)}
        await self._call("POST", "/v1/load_lora_adapter", seconds=_RELOAD_SECONDS, json=adapter)
        # Cache entries belong to an adapter: those of the old one would not be used, but would take up room.
        await self._reset_prefix_cache()
        await self._rename(label)

    async def pause(self) -> None:
        """Hold back new requests and wait until the current ones have finished."""
        await self._call("POST", "/pause", seconds=self._completion_seconds, params={"mode": "wait"})

    async def resume(self) -> None:
        """Let requests continue. A paused vLLM is useless, so this is tried three times."""
        async for attempt in _three_times():
            with attempt:
                await self._call("POST", "/resume")

    async def complete(self, tokens: Sequence[int], sampling: Sampling, *, model: str) -> Completion:
        """Completions of one prompt.

        Args:
            tokens: The prompt's token ids.
            sampling: How to sample.
            model: Name of the model or adapter.

        Raises:
            RequestRefusedError: vLLM will never accept this prompt.
            EngineError: Anything else, such as an adapter that a restarted vLLM does not know.
        """
        # What the model's authors recommend in generation_config.json must not change the distribution: each of its
        # parameters is set here. No `seed`: with chunked prefills it kills vLLM's CPU engine.
        request = {
            "model": model,
            "prompt": list(tokens),
            "n": sampling.n,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": sampling.max_tokens,
            "return_token_ids": True,
            "skip_special_tokens": True,
        }
        if sampling.logprobs or sampling.token_logprobs:
            request["logprobs"] = 0  # of the sampled tokens only, not of the likeliest ones
        body = await self._call("POST", "/v1/completions", seconds=self._completion_seconds, json=request)
        return _parsed(Completion, body, "/v1/completions")

    async def _rename(self, label: str) -> None:
        await self._call("POST", "/update_weight_version", json={"new_version": label})

    async def _reset_prefix_cache(self) -> None:
        """Empty the cache, which holds keys and values of the old weights. vLLM refuses while a block is held, so retry."""
        async for attempt in _three_times():
            with attempt:
                body = await self._call("POST", "/reset_prefix_cache")
                if not _parsed(_Reset, body, "/reset_prefix_cache").success:
                    raise EngineError("vLLM did not reset its prefix cache: blocks are still held")

    async def _get(self, path: str, model: type[Body]) -> Body:
        return _parsed(model, await self._call("GET", path), path)

    async def _call(
        self,
        method: str,
        path: str,
        *,
        seconds: float = _ENGINE_SECONDS,
        json: object = None,
        params: dict[str, str] | None = None,
    ) -> bytes:
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._session.request(method, self._url + path, json=json, params=params, timeout=timeout) as response:
                body = await response.read()
                status = response.status
        except TimeoutError as error:
            raise EngineError(f"vLLM has not answered {method} {path} within {seconds:g} s") from error
        except aiohttp.ClientError as error:
            raise EngineError(f"vLLM does not answer {method} {path}: {error or type(error).__name__}") from error
        if status == 404:
            remedy = (
                f"start vLLM 0.32 or newer with VLLM_SERVER_DEV_MODE=1 and --served-model-name {SERVED_MODEL}, for adapters also "
                "with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora"
            )
            raise EngineError(f"vLLM does not know {method} {path} ({_shown(body)}): {remedy}")
        if status in _REQUEST_AT_FAULT:
            raise RequestRefusedError(f"vLLM refused {method} {path}: {_shown(body)}")
        if status >= 300:
            raise EngineError(f"vLLM answered {method} {path} with {status}: {_shown(body)}")
        return body


def _three_times() -> AsyncRetrying:
    return AsyncRetrying(
        retry=retry_if_exception_type(EngineError), stop=stop_after_attempt(3), wait=wait_exponential(0.2, max=2), reraise=True
    )


def _parsed(model: type[Body], body: bytes, path: str) -> Body:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise EngineError(f"vLLM's answer to {path} is not valid: {_shown(body)}") from error


def _shown(body: bytes) -> str:
    text = body.decode(errors="replace").strip() or "(empty)"
    return text if len(text) <= 300 else f"{text[:300]}…"
