"""vLLM's HTTP interface, as far as the agent needs it."""

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

# Weights that are being loaded, or whose loading was cut short: nobody may take samples from them.
LOADING = "loading"

# /health answers at once. The engine itself answers between two steps, and a step may take long on a CPU.
_HEALTH_SECONDS = 10
_ENGINE_SECONDS = 120
_RELOAD_SECONDS = 1800
# A scrape waits for it, and Prometheus waits ten seconds for a scrape.
_METRICS_SECONDS = 3
_OWN_METRICS = re.compile(rb"^(?:# (?:HELP|TYPE) )?vllm:.*\n", re.MULTILINE)

_REQUEST_AT_FAULT = (400, 413, 422)


Body = TypeVar("Body", bound=BaseModel)


class EngineError(Exception):
    """vLLM does not answer, or has failed."""


class RequestRefusedError(EngineError):
    """vLLM found a fault in the request itself: to ask again is of no use."""


@dataclass(frozen=True)
class EngineStatus:
    """What vLLM says of itself."""

    label: str
    """What it calls its weights."""
    paused: bool
    """Whether it has been told to hold requests back."""
    max_model_len: int
    """Longest prompt and completion together, in tokens."""
    models: frozenset[str]
    """Names that it answers to: the model's, and those of loaded adapters."""


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


class Choice(BaseModel):
    """One completion as vLLM returns it; nothing about it is sure but the types."""

    text: str
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    logprobs: _Logprobs | None = None


class Completion(BaseModel):
    """vLLM's answer to one prompt."""

    choices: list[Choice]


class Engine:
    """Client of one vLLM server."""

    def __init__(self, url: str, session: aiohttp.ClientSession, *, completion_seconds: float = 3600) -> None:
        """url: as in http://127.0.0.1:8000. completion_seconds: longest wait for the completions of one prompt."""
        self._url = url.rstrip("/")
        self._session = session
        self._completion_seconds = completion_seconds

    async def status(self) -> EngineStatus:
        """What vLLM says of itself. Raises EngineError when it is not able to generate."""
        await self.check_health()
        label, paused, cards = await asyncio.gather(
            self.label(), self._get("/is_paused", _IsPaused), self._get("/v1/models", _Cards)
        )
        longest = next((card.max_model_len for card in cards.data if card.id == SERVED_MODEL), None)
        if longest is None:
            raise EngineError(
                f"vLLM names no model {SERVED_MODEL} at /v1/models: start it with --served-model-name {SERVED_MODEL}"
            )
        return EngineStatus(label, paused.is_paused, longest, frozenset(card.id for card in cards.data))

    async def check_health(self) -> None:
        """Raises EngineError when it does not answer, or its engine has failed."""
        await self._call("GET", "/health", seconds=_HEALTH_SECONDS)

    async def metrics(self) -> bytes:
        """vLLM's own metrics in Prometheus' text format, without those of its process; none while it does not answer."""
        try:
            page = await self._call("GET", "/metrics", seconds=_METRICS_SECONDS)
        except EngineError:
            return b""
        return b"".join(_OWN_METRICS.findall(page))

    async def label(self) -> str:
        """What vLLM calls its weights: `default` after a start."""
        return (await self._get("/weight_info", _WeightInfo)).weight_version

    async def load(self, path: Path, label: str) -> None:
        """Load weights and call them by a label. vLLM must be paused and idle.

        Raises EngineError when any of it fails: then vLLM has the label LOADING, the old one if nothing was loaded, or is dead.
        """
        # First of all the old name goes: if this agent dies in between, nobody takes new weights for old ones.
        await self._rename(LOADING)
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(path)}}
        await self._call("POST", "/collective_rpc", seconds=_RELOAD_SECONDS, json=reload)
        await self._reset_prefix_cache()
        await self._rename(label)

    async def load_adapter(self, path: Path, label: str) -> None:
        """Load an adapter of the model that vLLM has, under its label as name, and call the weights so.

        Raises EngineError when any of it fails; what was served before is then still there under its own name.
        """
        served = await self.label()
        for card in (await self._get("/v1/models", _Cards)).data:
            # The one before the last, or what an agent that died in a switch has left.
            if card.id not in (SERVED_MODEL, served):
                await self._call("POST", "/v1/unload_lora_adapter", json={"lora_name": card.id})
        adapter = {"lora_name": label, "lora_path": str(path)}
        await self._call("POST", "/v1/load_lora_adapter", seconds=_RELOAD_SECONDS, json=adapter)
        # Its entries are kept by adapter: nothing of the old one would be used, but it would be in the way.
        await self._reset_prefix_cache()
        await self._rename(label)

    async def pause(self) -> None:
        """Hold back new requests and wait until those under way have finished."""
        await self._call("POST", "/pause", seconds=self._completion_seconds, params={"mode": "wait"})

    async def resume(self) -> None:
        """Let requests go on. A paused vLLM is of no use to anybody, so this is tried three times."""
        async for attempt in _three_times():
            with attempt:
                await self._call("POST", "/resume")

    async def complete(self, tokens: Sequence[int], sampling: Sampling, *, model: str) -> Completion:
        """Completions of one prompt by a model or adapter. Raises RequestRefusedError for a prompt that vLLM will never take,
        EngineError else, such as for an adapter that a restarted vLLM does not know."""
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
        if sampling.logprobs:
            request["logprobs"] = 0  # of the sampled tokens, and of no likelier ones
        body = await self._call("POST", "/v1/completions", seconds=self._completion_seconds, json=request)
        return _parsed(Completion, body, "/v1/completions")

    async def _rename(self, label: str) -> None:
        await self._call("POST", "/update_weight_version", json={"new_version": label})

    async def _reset_prefix_cache(self) -> None:
        """The cache holds keys and values of the old weights. vLLM refuses while a block is held and says to ask again."""
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
        raise EngineError(f"vLLM's answer to {path} is not understood: {_shown(body)}") from error


def _shown(body: bytes) -> str:
    text = body.decode(errors="replace").strip() or "(empty)"
    return text if len(text) <= 300 else f"{text[:300]}…"
