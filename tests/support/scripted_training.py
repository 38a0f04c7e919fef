"""Attempts of a run in this process: the real windows, ledger, learner and pairs, a model of some thousand parameters, and
rollouts that answer by script. What is left out is what other tests start: data sets, HTTP, several ranks, processes."""

import atexit
import gc
import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from spinrun_api.documents import parse_run
from spinrun_api.spec import Preference
from spinrun_protocol.ledger import Kind, RunRecord
from spinrun_protocol.wire import Progress, Sample, SampleGroup, Sampling, VersionWanted
from spinrun_worker.data import Part, PromptStream
from spinrun_worker.errors import Preempted
from spinrun_worker.ledger import Ledger, LedgerWriter, durable
from spinrun_worker.records import PromptRecord
from spinrun_worker.rewards import RewardFunction, build_reward_function
from spinrun_worker.trainer.build import BuiltModel, Options, build_training, make_draws
from spinrun_worker.trainer.evaluation import Evaluations
from spinrun_worker.trainer.model.learner import Learner
from spinrun_worker.trainer.model.optimizer import make_optimizer
from spinrun_worker.trainer.model.policy import Policy
from spinrun_worker.trainer.pairs import PairMaker
from spinrun_worker.trainer.rank0 import Rank0Parts
from spinrun_worker.trainer.ranks.distributed import Distributed
from spinrun_worker.trainer.reporting.board import ProgressBoard
from spinrun_worker.trainer.reporting.recorder import Recorder
from spinrun_worker.trainer.reporting.server import Gauges
from spinrun_worker.trainer.sampling.client import RolloutClient
from spinrun_worker.trainer.sampling.requests import Requests
from spinrun_worker.trainer.schedule import make_schedule
from spinrun_worker.trainer.storage.base_answers import BaseAnswers
from spinrun_worker.trainer.storage.store import Publication
from spinrun_worker.trainer.storage.windows import Windows
from support.models import SMALLEST, random_llama
from support.scripted_agent import LOGPROB, random_digits
from support.trainer_process import UID, is_a_write

Json = dict[str, Any]
Answer = Callable[[str, tuple[int, ...], int], Any]

KINDS: tuple[Kind, ...] = ("weights", "window", "evaluation", "checkpoint", "base", "reference")


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes a small run's time. It is killed within this process, which loses nothing that was written."""
    torch.set_num_threads(1)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr("spinrun_worker.trainer.model.learner.PEAK_SECONDS", 0.01)
    gc.freeze()


class Killed(BaseException):
    """The process is gone: nothing that catches exceptions must see it as one."""


class UnansweredError(AssertionError):
    """Somebody waits for answers that the script holds back."""


class LateFuture(Future[list[SampleGroup]]):
    """Answers that come when the script gives them; who waits before that waits for ever, and so fails."""

    def result(self, timeout: float | None = None) -> list[SampleGroup]:
        if not self.done():
            raise UnansweredError("nobody has answered yet")
        return super().result(timeout)


class ScriptedRollouts:
    """In place of a RolloutClient: answers are a pure function of the weights' digest and the prompt."""

    def __init__(self, events: list[str], answer: Answer = random_digits, *, sends_token_logprobs: bool = True) -> None:
        self.events = events
        self.sends_token_logprobs = sends_token_logprobs
        self.answer = answer
        self.counts: Counter[str] = Counter()
        self.serving: VersionWanted | None = None
        self.held_back: set[int] = set()
        """Versions whose answers come only with `release`."""
        self._late: list[tuple[LateFuture, list[SampleGroup]]] = []

    def activate(self, wanted: VersionWanted, *, stop: Callable[[], bool]) -> None:
        if stop():
            raise Preempted("stopped while waiting for the rollouts")
        self.events.append(f"activate {wanted.version}")
        self.serving = wanted

    def start(
        self,
        prompts: Sequence[PromptRecord],
        *,
        version: int,
        digest: str,
        sampling: Sampling,
        on_progress: Callable[[int], None],
        stop: Callable[[], bool],
    ) -> Future[list[SampleGroup]]:
        assert self.serving is not None
        assert (self.serving.version, self.serving.manifest.digest) == (version, digest), "not the version that is served"
        kind = "held-out" if sampling.temperature == 0 else f"{len(prompts)}x{sampling.n}"
        self.events.append(f"ask {version} {kind}")
        groups = [
            SampleGroup(
                id=prompt.id,
                version=version,
                digest=digest,
                samples=tuple(self._sample(digest, prompt, index, sampling) for index in range(sampling.n)),
            )
            for prompt in prompts
        ]
        future = LateFuture()
        if stop():
            future.set_exception(Preempted("stopped while waiting for the rollouts"))
        elif version in self.held_back:
            self._late.append((future, groups))
        else:
            on_progress(len(prompts))
            future.set_result(groups)
        return future

    def _sample(self, digest: str, prompt: PromptRecord, index: int, sampling: Sampling) -> Any:
        sample = self.answer(digest, prompt.tokens, index)
        by_token = (LOGPROB,) * len(sample.tokens)
        return sample.model_copy(
            update={
                "logprob": sum(by_token) if sampling.logprobs else None,
                "token_logprobs": by_token if sampling.token_logprobs and self.sends_token_logprobs else None,
            }
        )

    def release(self) -> None:
        """Give the answers that were held back."""
        for future, groups in self._late:
            future.set_result(groups)
        self._late.clear()
        self.held_back.clear()

    def cancel(self) -> None:
        self.events.append("cancel")

    def served_versions(self) -> list[int]:
        return [-1 if self.serving is None else self.serving.version]


@dataclass
class ScriptedRun:
    """A run whose attempts follow each other in this process."""

    ranks: Distributed
    root: Path
    spec: Json = field(default_factory=dict[str, Any])
    """Blocks that replace those of the document."""
    answer: Answer = random_digits
    sends_token_logprobs: bool = True
    """Whether the rollouts know of log-probs by token."""
    held_out: Sequence[str] = ("1", "1")
    """True answers of the held-out prompts."""
    num_prompts: int = 64
    """Prompts of an epoch."""
    encode_answer: Callable[[str], Sample] = lambda answer: Sample(tokens=(11, 3), text=answer, finish_reason="stop")
    attempts: int = 0
    events: list[str] = field(default_factory=list[str])
    """What the last attempt did, in order: `activate 1`, `ask 1 8x2`, `commit window 1`, and activities such as `train`."""
    on_event: Callable[[str], None] = lambda _: None
    rollouts: ScriptedRollouts | None = None
    board: ProgressBoard | None = None

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.root, UID)

    def document(self) -> Json:
        spec: Json = {
            "model": {"source": "/none"},
            "data": {"prompts": {"source": "arithmetic"}, "evaluation": {"source": "arithmetic"}},
            "method": {"refUpdateFreq": 2},
            "preference": {"rule": {"kind": "regex", "pattern": "1"}},
            "rollout": {"samplesPerPrompt": 2, "maxTokens": 8},
            "trainer": {"promptsPerStep": 2, "learningRate": 1e-2, "tokensPerMicroBatch": 128, "computeDtype": "float32"},
            "duration": {"windows": 2},
        }
        metadata = {"name": "tiny", "namespace": "local", "uid": UID}
        return {"apiVersion": "spinrun.dev/v1alpha1", "kind": "SpinRun", "metadata": metadata, "spec": spec | self.spec}

    def attempt(self, *, kill_at: int | None = None, stop_at: int | None = None, hold_back: Sequence[int] = ()) -> "ScriptedRun":
        """Run an attempt to its end.

        Args:
            kill_at: Raise Killed before this change of the ledger, counted from 1.
            stop_at: Be asked to stop from this look at the stop signal on, counted from 1.
            hold_back: Versions whose answers come only with `rollouts.release`.
        """
        self.attempts += 1
        self.events.clear()
        changes, looks = Counter[str](), Counter[str]()

        def observe(operation: str, path: Path) -> None:
            if is_a_write(operation, path):
                changes["all"] += 1
                if changes["all"] == kill_at:
                    raise Killed(f"{operation} {path}")
            if operation == "replace" and path.name == "MANIFEST.json":
                self._note(f"commit {path.parent.parent.name} {path.parent.name}")

        def stop() -> bool:
            looks["all"] += 1
            return stop_at is not None and looks["all"] >= stop_at

        with ExitStack() as cleanup:
            cleanup.callback(setattr, durable, "observe", durable.observe)
            durable.observe = observe
            self._run(stop, hold_back, cleanup)
        return self

    def _note(self, event: str) -> None:
        self.events.append(event)
        self.on_event(event)

    def _run(self, stop: Callable[[], bool], hold_back: Sequence[int], cleanup: ExitStack) -> None:
        run = parse_run(self.document())
        spec = run.spec
        ledger = LedgerWriter(self.root, UID, self.attempts)
        ledger.claim()
        cleanup.callback(ledger.close)
        board = self.board = ProgressBoard(
            Progress(uid=UID, attempt=self.attempts, activity="starting", window=0, windows=0, step=0, total_steps=0)
        )
        board.observe(self._observed)
        prompts = [PromptRecord(f"row-{row}", (5 + row, 7, 9), f"ask {row}", answer="1") for row in range(self.num_prompts)]
        schedule = make_schedule(spec, num_prompts=len(prompts))
        rollouts = self.rollouts = ScriptedRollouts(self.events, self.answer, sends_token_logprobs=self.sends_token_logprobs)
        rollouts.held_back = {*hold_back}
        client = cast(RolloutClient, rollouts)
        stream = PromptStream([Part(prompts)], 0)
        base = BaseAnswers(ledger, schedule, stream) if spec.method.pairing == "bestVsBase" else None
        pairs = PairMaker(run, scorer_of(spec.preference), self.encode_answer, base)
        recorder = Recorder(ledger, Gauges(namespace="local", run="tiny", method=spec.method.name))
        held_out = [
            PromptRecord(f"held-out-{row}", (100 + row, 7), f"ask {row}", answer=truth) for row, truth in enumerate(self.held_out)
        ]
        evaluations = Evaluations(
            run, schedule, held_out if spec.data.evaluation else (), ledger=ledger, pairs=pairs, board=board, recorder=recorder
        )
        evaluations.load()
        requests = Requests(run, rollouts=client, board=board, stop=stop)
        windows = Windows(ledger, schedule, has_base=base is not None, pass_rate=spec.method.pass_rate)
        parts = Rank0Parts(
            rollouts=client,
            requests=requests,
            draws=make_draws(spec, stream, schedule, requests, windows, pairs, board),
            evaluations=evaluations,
            windows=windows,
            pairs=pairs,
            recorder=recorder,
        )
        options = Options(run, self.root, self.attempts, "127.0.0.1", 0)
        build_training(options, schedule, tiny_built_model(options), parts, ledger, self.ranks, board, stop).run()

    @contextmanager
    def _observed(self, now: Progress) -> Generator[None]:
        self._note(now.activity)
        yield

    def end_state(self) -> dict[str, str]:
        """Digest of everything that counts and stays; equal digests are equal bytes."""
        ledger, last = self.ledger, make_schedule(parse_run(self.document()).spec, num_prompts=self.num_prompts).total_steps
        return {
            f"{kind} {number}": ledger.verify(kind, number).digest
            for kind in KINDS
            for number in ledger.numbers(kind)
            if kind != "checkpoint" or number == last
        }


def kill_before_each_commit(make: Callable[[], ScriptedRun]) -> int:
    """Kill a run before its first, second, … commit, each time another one, and check that each ends as if undisturbed.

    Returns:
        The number of commits.
    """
    want = make().attempt().end_state()
    for number in itertools.count(1):
        run, commits = make(), itertools.count(1)

        def dies(event: str, commits: "itertools.count[int]" = commits, number: int = number) -> None:
            if event.startswith("commit") and next(commits) == number:
                raise Killed(event)

        run.on_event = dies
        try:
            run.attempt()
        except Killed:
            run.on_event = lambda _: None
            assert run.attempt().end_state() == want, f"killed before commit {number}"
        else:
            return number - 1
    raise AssertionError("a run has an end")


def scorer_of(preference: Preference) -> RewardFunction:
    """Of equal preferences the same, for all attempts: the processes of a rule take longer to start than a tiny window."""
    document = preference.model_dump_json()
    if document not in _scorers:
        _scorers[document] = build_reward_function(preference, on_trouble=lambda _: None, stop=lambda: False)
        atexit.register(_scorers[document].close)
    return _scorers[document]


_scorers: dict[str, RewardFunction] = {}


def tiny_built_model(options: Options) -> BuiltModel:
    """The same few thousand parameters at each start, on one rank, not sharded."""
    spec = options.run.spec
    policy = Policy(random_llama(**SMALLEST))
    optimizer = make_optimizer(policy.parameters(), spec.trainer)
    publication = Publication(policy.state, torch.float32, {"config.json": b"{}"}, file=None)
    record = RunRecord(
        run=options.run.to_document(),
        versions={},
        machine={},
        compute_dtype="float32",
        published_dtype="float32",
        attempt=options.attempt,
        world_size=1,
    )
    learner = Learner(
        policy,
        optimizer,
        method=spec.method,
        trainer=spec.trainer,
        max_tokens=spec.max_tokens,
        temperature=spec.logprob_temperature,
    )
    return BuiltModel(policy, optimizer, learner, publication, publication, record)


logging.getLogger("spinrun_worker.trainer").setLevel(logging.INFO)
