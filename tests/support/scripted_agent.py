"""An agent that speaks the wire and answers by script instead of by vLLM.

It stands in for vLLM's sampling alone, which no seed makes repeatable across batches: tests that compare the weights of two
runs bit for bit need the same answers twice. Answers are a pure function of the weights' digest and the prompt.
"""

import argparse
import json
import random
from collections.abc import Callable

from aiohttp import web

from spinrun_protocol.wire import End, Sample, SampleGroup, SamplesRequest, VersionState, VersionWanted

Answer = Callable[[str, tuple[int, ...], int], Sample]
"""(digest, prompt tokens, index of the sample) -> sample"""


LOGPROB = -3.0
"""Of every token: no model's, but half of what a token of the tiny model has."""


class ScriptedAgent:
    """Serves whatever version it is asked for at once."""

    def __init__(self, answer: Answer, token: str) -> None:
        self.answer = answer
        self.token = token
        self.wanted: VersionWanted | None = None
        self.asked: list[SamplesRequest] = []

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 * 2**20)
        app.add_routes(
            [
                web.put("/v1/version", self.put_version),
                web.get("/v1/version", self.get_version),
                web.post("/v1/samples", self.post_samples),
                web.get("/healthz", self.healthz),
                web.get("/readyz", self.healthz),
                web.get("/asked", self.get_asked),
                web.delete("/asked", self.delete_asked),
            ]
        )
        return app

    def state(self) -> VersionState:
        if self.wanted is None:
            return VersionState(state="waiting")
        version, digest = self.wanted.version, self.wanted.manifest.digest
        return VersionState(
            serving=version, serving_digest=digest, staged=version, wanted=version, wanted_digest=digest, state="serving"
        )

    def authorised(self, request: web.Request) -> bool:
        return request.headers.get("Authorization") == f"Bearer {self.token}"

    async def put_version(self, request: web.Request) -> web.Response:
        if not self.authorised(request):
            return web.json_response({"error": "wrong token", "reason": "Unauthorized"}, status=401)
        self.wanted = VersionWanted.model_validate_json(await request.read())
        return web.json_response(text=self.state().model_dump_json(by_alias=True), status=202)

    async def get_version(self, _: web.Request) -> web.Response:
        return web.json_response(text=self.state().model_dump_json(by_alias=True))

    async def healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def get_asked(self, _: web.Request) -> web.Response:
        """How it was asked to sample, for tests: (version, sampling) once each, in order."""
        return web.json_response(list(dict.fromkeys(f"{asked.version} {asked.sampling!r}" for asked in self.asked)))

    async def delete_asked(self, _: web.Request) -> web.Response:
        self.asked.clear()
        return web.Response()

    async def post_samples(self, request: web.Request) -> web.StreamResponse:
        asked = SamplesRequest.model_validate_json(await request.read())
        state = self.state()
        if (asked.version, asked.digest) != (state.serving, state.serving_digest):
            body = {"error": "stale", "reason": "StaleVersion", "serving": state.serving}
            return web.json_response(body, status=409)
        self.asked.append(asked)
        response = web.StreamResponse()
        await response.prepare(request)
        for prompt in asked.prompts:
            samples = tuple(self.answer(asked.digest, prompt.tokens, index) for index in range(asked.sampling.n))
            if asked.sampling.logprobs:
                samples = tuple(each.model_copy(update={"logprob": LOGPROB * len(each.tokens)}) for each in samples)
            if asked.sampling.token_logprobs:
                samples = tuple(each.model_copy(update={"token_logprobs": (LOGPROB,) * len(each.tokens)}) for each in samples)
            group = SampleGroup(id=prompt.id, version=asked.version, digest=asked.digest, samples=samples)
            await response.write(group.model_dump_json(by_alias=True).encode() + b"\n")
        await response.write(End().model_dump_json(by_alias=True).encode() + b"\n")
        await response.write_eof()
        return response


def random_digits(digest: str, prompt: tuple[int, ...], index: int) -> Sample:
    """One to three random tokens of the tiny model; the first sample of a prompt ends in 1, the second in 2."""
    choice = random.Random(json.dumps([digest, prompt, index]))
    tokens = tuple(choice.randrange(4, 512) for _ in range(choice.randint(1, 3)))
    return Sample(tokens=(*tokens, 3), text=str(index % 2 + 1), finish_reason="stop")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--token", required=True)
    options = parser.parse_args()
    web.run_app(ScriptedAgent(random_digits, options.token).app(), host="127.0.0.1", port=options.port, print=None)
