"""Every field of the spec changes something: each is changed alone, and what it is there for must differ.

A field that the table does not name fails the first test, so that none can be added and then ignored.
"""

import copy
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast, get_args, get_origin

import httpx
import pytest
import torch
from mlflow import MlflowClient

from spinrun_api.base import ApiModel, models_in
from spinrun_api.documents import parse_run
from spinrun_api.run import SpinRun
from spinrun_api.spec import Preference, SpinRunSpec
from spinrun_api.status import SpinRunStatus
from spinrun_kube import times
from spinrun_operator.children import network_policy as network_policies
from spinrun_operator.children.ledger_claim import ledger_claim
from spinrun_operator.children.rollout_statefulset import rollout_statefulset
from spinrun_operator.children.scorer_statefulset import scorer_statefulset
from spinrun_operator.children.trainer_job import trainer_job
from spinrun_operator.policies.deadline import deadline
from spinrun_operator.policies.failure import AttemptEnd, Cause, follow_up
from spinrun_operator.policies.progress_deadline import seconds_left
from spinrun_operator.policies.suspend import wanted_servers
from spinrun_operator.policies.ttl import deletion_time
from spinrun_operator.reconcile import is_managed
from spinrun_operator.settings import Settings
from spinrun_protocol import commands
from spinrun_protocol.ledger import Manifest, MetricsLine, RunRecord
from spinrun_protocol.wire import Progress, Sample, SampleGroup
from spinrun_worker.data import Part, PromptStream
from spinrun_worker.ledger import LedgerWriter, read_pairs
from spinrun_worker.methods.pairing import pair_groups
from spinrun_worker.records import ByToken, PassRate, PromptRecord, ScoredGroup
from spinrun_worker.rewards import build_reward_function
from spinrun_worker.trainer.build import make_draws, published_dtype, resolve_compute_dtype
from spinrun_worker.trainer.inputs import load_training_data, make_stream
from spinrun_worker.trainer.model.learner import Learner
from spinrun_worker.trainer.model.lora import config_file
from spinrun_worker.trainer.model.optimizer import learning_rate, make_optimizer
from spinrun_worker.trainer.model.packing import plan_step
from spinrun_worker.trainer.model.policy import Policy, load_policy, shard_policy
from spinrun_worker.trainer.pairs import PairMaker
from spinrun_worker.trainer.reporting.board import ProgressBoard
from spinrun_worker.trainer.reporting.trackers import following
from spinrun_worker.trainer.sampling.client import RolloutClient
from spinrun_worker.trainer.sampling.requests import PendingAnswers, Requests
from spinrun_worker.trainer.sampling.selection import select
from spinrun_worker.trainer.schedule import Schedule, make_schedule
from spinrun_worker.trainer.storage.windows import Windows
from support.fake_endpoint import Asked, Says, serving, some_reply
from support.models import random_pairs
from support.trainer_process import UID, Attempts
from unit.operator.world import SETTINGS, START
from unit.trainer.model.test_learner import OneRank
from unit.trainer.reporting.trackers.reading import wandb_files

Json = dict[str, Any]
Effect = Callable[[SpinRun, Attempts], object]

ABSENT = None
MODEL = "MODEL"
"""Stands in the table for the folder of a tiny model."""
ROWS = "ROWS"
"""Stands in the table for the file of the rows below."""
OTHER_ROWS = "OTHER_ROWS"
ELSEWHERE = "ELSEWHERE"
"""Stands in the table for a folder that is not the ledger's."""

SUMS: list[Json] = [
    {
        "prompt": f"{number} + 1 = ?",
        "other": f"say {number}",
        "answer": str(number + 1),
        "wrong": str(number),
        "messages": [{"role": "user", "content": f"talk of {number}"}],
    }
    for number in range(12)
]
FROM_FILE: Json = {"source": ROWS, "answerColumn": "answer"}
MIXED: Json = {"data.prompts": {"sources": FROM_FILE}}
"""This file beside sums."""


# --- what a run does: each function looks at one part ---------------------------------------------------------------


def adapters(run: SpinRun, _: Attempts) -> object:
    """What a version's adapter_config.json says of the adapters, and the layers that have one."""
    policy = load_policy(run.spec.model, lora=run.spec.trainer.lora)
    assert policy.adapters is not None
    return config_file(policy.adapters), policy.state().keys()


def vllm_command(run: SpinRun, _: Attempts) -> object:
    return commands.vllm(run, accelerator="cuda", dtype="auto")


def trainer_command(run: SpinRun, _: Attempts) -> object:
    return commands.trainer(run, run_file="run.yaml", ledger="ledger", attempt=1).command


def rollout_pods(run: SpinRun, _: Attempts) -> object:
    replicas = wanted_servers(run.spec, run.spec.rollout.replicas, over=False, trainer_alive=False)
    return rollout_statefulset(run, SETTINGS, replicas=replicas)["spec"]


def scorer_command(run: SpinRun, _: Attempts) -> object:
    return commands.scorer(run, accelerator="cuda", dtype="auto")


def scorer_pods(run: SpinRun, _: Attempts) -> object:
    assert run.spec.scorers is not None
    replicas = wanted_servers(run.spec, run.spec.scorers.replicas, over=False, trainer_alive=False)
    return scorer_statefulset(run, SETTINGS, replicas=replicas)["spec"]


def trainer_pods(run: SpinRun, _: Attempts) -> object:
    return trainer_job(run, SETTINGS, attempt=1)["spec"]


def claim(run: SpinRun, _: Attempts) -> object:
    return ledger_claim(run)


def questions(run: SpinRun, _: Attempts) -> object:
    """What is asked in training, in order, with the true answers."""
    stream = make_stream(load_training_data(run.spec), run.spec.data.prompts.shuffle_seed)
    return [(record.tokens, record.answer) for record in stream.draw(0, len(stream))]


def exam(run: SpinRun, _: Attempts) -> object:
    """What is asked in evaluations, in order, with the true answers."""
    evaluation = load_training_data(run.spec).evaluation
    return evaluation and [(record.tokens, record.answer) for record in evaluation.records]


def published(run: SpinRun, _: Attempts) -> object:
    return published_dtype(run.spec.model)


def arithmetic(run: SpinRun, attempts: Attempts) -> object:
    return resolve_compute_dtype(run.spec.trainer, LedgerWriter(attempts.folder / "new", UID, 1), torch.device("cpu"))


def schedule(run: SpinRun, _: Attempts) -> object:
    return make_schedule(run.spec, num_prompts=100)


class Unanswered:
    """In place of Requests: nobody can answer any prompt."""

    def __init__(self) -> None:
        self.asked = 0

    def for_training(self, prompts: Sequence[PromptRecord], *_: object) -> PendingAnswers:
        self.asked += len(prompts)
        nothing: Future[list[SampleGroup]] = Future()
        nothing.set_result([])
        return PendingAnswers(prompts, nothing)


def sampling(run: SpinRun, _: Attempts) -> object:
    """How rollouts are asked to sample a window."""
    asked: list[object] = []

    def start(_: object, *, sampling: object, **__: object) -> Future[list[SampleGroup]]:
        asked.append(sampling)
        return Future()

    now = Progress(uid="", attempt=1, activity="starting", window=0, windows=0, step=0, total_steps=0)
    client = cast(RolloutClient, SimpleNamespace(start=start))
    requests = Requests(run, rollouts=client, board=ProgressBoard(now), stop=lambda: False)
    requests.for_training([], cast(Manifest, SimpleNamespace(version=0, digest="")))
    return asked


def most_prompts(run: SpinRun, attempts: Attempts) -> object:
    """What a window asks that gets no pair."""
    requests, schedule = Unanswered(), make_schedule(run.spec, num_prompts=10)
    stream = PromptStream([Part([PromptRecord(str(number), (1,), "") for number in range(10)])], seed=0)
    now = Progress(uid="", attempt=1, activity="starting", window=0, windows=0, step=0, total_steps=0)
    scorer = build_reward_function(run.spec.preference, on_trouble=lambda _: None, stop=lambda: False)
    try:
        pairs = PairMaker(run, scorer, lambda answer: Sample(tokens=(), text=answer, finish_reason="stop"), None)
        windows = Windows(LedgerWriter(attempts.folder / "none", UID, 1), schedule, has_base=False)
        draws = make_draws(run.spec, stream, schedule, cast(Requests, requests), windows, pairs, ProgressBoard(now))
        draws.begin(0, cast(Manifest, None)).wait()
    finally:
        scorer.close()
    return requests.asked


def drawn(run: SpinRun, _: Attempts) -> object:
    """The prompts of a window that begins in the third epoch of four prompts, which were all asked in the first one."""
    stream = PromptStream([Part([PromptRecord(str(number), (1,), "") for number in range(4)])], seed=0)
    known = {str(number): PassRate(rate, 0) for number, rate in enumerate((0.2, 0.4, 0.8, 0.8))}
    assert run.spec.method.pass_rate is not None
    return select(stream, run.spec.method.pass_rate, known, start=8, count=4)


def rates(run: SpinRun, _: Attempts) -> object:
    return [learning_rate(step, run.spec.trainer, Schedule(10, 5, 1)) for step in range(10)]


def micro_batches(run: SpinRun, _: Attempts) -> object:
    return plan_step([10] * 8, world_size=1, tokens_per_micro_batch=run.spec.trainer.tokens_per_micro_batch)


def rewards(run: SpinRun, _: Attempts) -> object:
    """What the rule says to some answers; the last one takes a backtracking expression a second."""
    scorer = build_reward_function(run.spec.preference, on_trouble=lambda _: None, stop=lambda: False)
    try:
        answers = tuple(Sample(tokens=(1,), text=text, finish_reason="stop") for text in ("4", "it is 4", "a" * 25 + "!"))
        answers += (Sample(tokens=(1,), text="so it is 4", finish_reason="length"),)
        return scorer.score([(PromptRecord("p", (1,), "2 + 2", "4", {}), answers)])
    finally:
        scorer.close()


def requests(run: SpinRun, _: Attempts) -> object:
    """What an endpoint is asked for the rewards of four answers to each of three prompts, how much at once, whether at intervals,
    and whether once more."""
    endpoint = run.spec.preference.endpoint
    assert endpoint is not None
    assert endpoint.url is not None

    def play(asked: Asked) -> Says:
        """Takes its time when a question is new."""
        times[str(asked.body)] += 1
        return replace(some_reply(asked), after_seconds=0.3 if times[str(asked.body)] == 1 else 0.02)

    times: Counter[str] = Counter()
    url = endpoint.url
    with serving(play) as fake:
        block = endpoint.to_document() | {"url": url.replace("http://endpoint", fake.url)}
        preference = Preference.model_validate({run.spec.preference.name: block})
        scorer = build_reward_function(preference, on_trouble=lambda _: None, stop=lambda: False)
        answers = tuple(Sample(tokens=(1,), text=text, finish_reason="stop") for text in "abcd")
        scorer.score([(PromptRecord(name, (1,), f"ask {name}", "4", {}), answers) for name in "pqr"])
    arrivals = sorted(each.time for each in fake.asked)
    are_spaced = min(later - earlier for earlier, later in pairwise(arrivals)) > 0.1
    asked = {(each.path, json.dumps(each.body)) for each in fake.asked}
    return asked, fake.most_at_once, are_spaced, scorer.counts["retries"] > 0


def pairs(run: SpinRun, _: Attempts) -> object:
    """The pairs of three answers whose rewards are 0.4 and 0.6 apart, the worst cut off, and of three to another prompt."""
    ends: list[Literal["stop", "length"]] = ["length", "stop", "stop"]
    answers = tuple(Sample(tokens=(index,), text="", finish_reason=end) for index, end in enumerate(ends))
    group = ScoredGroup(PromptRecord("p", (1,), "2 + 2", "4", {}), answers, (0.0, 0.4, 1.0))
    other = ScoredGroup(PromptRecord("q", (2,), "3 + 3", "6", {}), answers, (0.0, 0.0, 0.4))
    return pair_groups([group, other], run.spec.method, seed=run.spec.data.prompts.shuffle_seed)


def step(run: SpinRun, _: Attempts) -> object:
    """An optimizer step: its figures, and the norm of the weights after it."""
    policy, learner = _learner(run)
    referred = [replace(pair, reference_chosen=-30.0, reference_rejected=-20.0) for pair in random_pairs(3)]
    result = learner.step(referred, learning_rate=1e-2)
    assert result is not None
    return result.figures, torch.nn.utils.parameters_to_vector(policy.parameters()).norm().item()


def clipped_step(run: SpinRun, _: Attempts) -> object:
    """The figures of a step of grpo whose policy is away from that of the window's beginning and from the rollouts'."""
    learner = _learner(run)[1]
    bare = random_pairs(3)
    logprobs = learner.logprobs_by_token(bare)

    def moved(by_token: ByToken, by: float) -> ByToken:
        chosen, rejected = ([value + by for value in side] for side in (by_token.chosen, by_token.rejected))
        return ByToken(tuple(chosen), tuple(rejected))

    pairs = [
        replace(pair, rejected_reward=-1.0, policy_by_token=moved(now, sign * 0.1), sampled_by_token=moved(now, -0.5))
        for pair, now, sign in zip(bare, logprobs, (-1, 1, 1), strict=True)
    ]
    result = learner.step(pairs, learning_rate=1e-2)
    assert result is not None
    return result.figures


def attention_passes(run: SpinRun, _: Attempts) -> object:
    """How often the attention of a layer runs in a step."""
    policy, learner = _learner(run)
    passes: list[object] = []
    cast(Any, policy.decoder_layers()[0]).self_attn.register_forward_hook(lambda *_: passes.append(None))
    checkpointing = run.spec.trainer.activation_checkpointing
    shard_policy(policy, mesh=OneRank(), compute_dtype=torch.float32, activation_checkpointing=checkpointing)
    learner.step([replace(pair, reference_chosen=0.0, reference_rejected=0.0) for pair in random_pairs(1)], learning_rate=0.0)
    return len(passes)


def _learner(run: SpinRun) -> tuple[Policy, Learner]:
    policy = load_policy(run.spec.model)
    optimizer = make_optimizer(policy.parameters(), run.spec.trainer)
    return policy, Learner(policy, optimizer, method=run.spec.method, trainer=run.spec.trainer)


def verdict(run: SpinRun, _: Attempts) -> object:
    """What follows from a first failure with exit code 7."""
    end = AttemptEnd(Cause.EXIT, "it failed", exit_code=7)
    return follow_up(end, run.spec.lifecycle, Settings(), failed_attempts=0, ledger_unavailable_since=None, now=START)


def latest_end(run: SpinRun, _: Attempts) -> object:
    return deadline(run.spec.lifecycle, SpinRunStatus(start_time=times.to_text(START)))


def patience(run: SpinRun, _: Attempts) -> object:
    return seconds_left(run.spec.lifecycle, 5.0)


def network_policy(run: SpinRun, _: Attempts) -> object:
    return network_policies.network_policy(run, Settings())


def deletion(run: SpinRun, _: Attempts) -> object:
    ended = SpinRunStatus(completion_time=times.to_text(START + timedelta(hours=1)))
    return deletion_time(run.spec.lifecycle, ended)


def managed(run: SpinRun, _: Attempts) -> object:
    return is_managed(run)


def tracked(run: SpinRun, attempts: Attempts) -> object:
    """Where the trackers show a line of figures: projects of wandb, which works offline, folders of events, experiments."""
    # A new one each time: MLflow remembers what was where.
    ledger, elsewhere = Path(tempfile.mkdtemp(dir=attempts.folder)), attempts.folder / "elsewhere"
    record = RunRecord.model_construct(run=run.to_document(), versions={}, machine={}, world_size=1)
    with following(record, ledger) as followers:
        for follower in followers:
            follower.offer(MetricsLine(event="step", attempt=1, time=1.7e9, window=0, step=1, version=0, values={"loss": 0.5}))
    assert [follower.lines["written"] for follower in followers] == [1]
    projects = [(file.project, file.entity) for file in wandb_files(ledger)]
    events = {path.parent.name for folder in (ledger, elsewhere) for path in folder.rglob("events.out.tfevents.*")}
    stores = [folder for folder in (ledger / "mlflow", elsewhere) if any(folder.glob("*/meta.yaml"))]
    experiments = {store.name: [each.name for each in MlflowClient(str(store)).search_experiments()] for store in stores}
    return projects, events, experiments


def asked(run: SpinRun, attempts: Attempts) -> object:
    """How a real trainer samples from its rollouts, in training and in evaluations."""
    return _train(run, attempts)[0]


def trained_pairs(run: SpinRun, attempts: Attempts) -> object:
    """The pairs that a real trainer leaves in its ledger."""
    return _train(run, attempts)[2]


def ledger_kinds(run: SpinRun, attempts: Attempts) -> object:
    """The directories that a real trainer leaves in its ledger."""
    return _train(run, attempts)[1]


TRAINED: dict[str, tuple[object, object, object]] = {}
"""What came of a spec: several cases begin with the same."""


def _train(run: SpinRun, attempts: Attempts) -> tuple[object, object, object]:
    spec = run.to_document()["spec"]
    key = json.dumps(spec, sort_keys=True)
    if key not in TRAINED:
        httpx.delete(f"{attempts.agent}/asked").raise_for_status()
        ledger = attempts.folder / f"ledger-{len(TRAINED)}"
        assert attempts.run(ledger, **spec) == 0, attempts.log(1).read_text()
        sampled = httpx.get(f"{attempts.agent}/asked").raise_for_status().json()
        kinds = sorted(str(path.relative_to(ledger)) for path in ledger.glob("*/*"))
        TRAINED[key] = sampled, kinds, [read_pairs(path) for path in sorted(ledger.glob("windows/*/pairs.parquet"))]
    return TRAINED[key]


# --- the table ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A field with two values, and where they make a difference."""

    path: str
    before: object
    after: object
    effect: Effect
    given: Json = field(default_factory=dict[str, Any])
    """What else the spec must say, by path."""
    given_after: Json = field(default_factory=dict[str, Any])
    """What else it must say with the second value, where the two allow for no common one."""


REGEX = {"preference.rule": {"kind": "regex"}}
SLOW_REGEX = {"preference.rule": {"kind": "regex", "pattern": "^(a|a)*$"}}
FOUR_WINDOWS: Json = {
    "method.refUpdateFreq": 2,
    "duration": {"windows": 4},
    "trainer.promptsPerStep": 2,
    "trainer.tokensPerMicroBatch": 128,
    "preference.rule": {"kind": "regex", "pattern": "1"},
    "rollout": {"samplesPerPrompt": 2, "maxTokens": 8},
    "data.evaluation": {"source": "arithmetic", "config": "addition-5", "split": "test", "limit": 2},
}
PASS_RATE: Json = {"method.sampling.passRate": {}, "duration": {"windows": 1}}
SPPO: Json = {"method.name": "sppo", "method.loss": "sppo"}
ADVANTAGE: Json = {"method.name": "sppo", "method.loss": "sppoAdvantage"}
GRPO: Json = {"method.name": "grpo", "method.loss": "grpo"}
TRUTH: Json = {"method.name": "spin", "preference": {"groundTruth": {}}}


def by_endpoint(block: str, **fields: Any) -> Json:
    """A preference by a server, and enough samples to compare."""
    return {"preference": {block: {"url": "http://endpoint", "model": "wise"} | fields}, "rollout.samplesPerPrompt": 4}


OWN_MODEL: Json = {"preference": {"rewardModel": {"source": "org/a"}}}
JUDGE, REWARD_MODEL, RANKER = by_endpoint("judge"), by_endpoint("rewardModel"), by_endpoint("ranker")
WANDB: Json = {"telemetry.wandb": {"project": "a"}}
TEMPLATE = {"spec": {"nodeSelector": {"zone": "a"}}}
USER_RULE = "import os\ndef {name}(prompt, completion, answer, **columns):\n    return {value}\n"


def prompts(block: Literal["data.prompts", "data.evaluation"], effect: Effect) -> list[Case]:
    """The fields that both blocks of prompts have."""
    file: Json = {block: FROM_FILE}
    numbers: Json = {"data.prompts": FROM_FILE} | {block: {"source": "arithmetic"}}
    return [
        Case(f"{block}.source", ROWS, OTHER_ROWS, effect, file),
        Case(f"{block}.config", "addition-5", "addition-6", effect, numbers),
        Case(f"{block}.split", "train", "test", effect, numbers),
        Case(f"{block}.promptColumn", ABSENT, "other", effect, file),
        Case(f"{block}.answerColumn", "answer", "wrong", effect, file),
        Case(f"{block}.messagesColumn", ABSENT, "messages", effect, file),
        Case(f"{block}.template", ABSENT, "What is {prompt}", effect, file),
        Case(f"{block}.limit", ABSENT, 3, effect, file),
        Case(f"{block}.shuffleSeed", ABSENT, 1, effect, file),
    ]


def source_fields(block: str) -> list[Case]:
    """The fields of a preference whose model the run serves itself."""
    own: Json = {"preference": {block: {"source": "org/a"}}}
    return [
        Case(f"preference.{block}.source", "org/a", "org/b", scorer_command, own),
        Case(f"preference.{block}.revision", ABSENT, "abc", scorer_command, own),
    ]


def endpoint_fields(block: str) -> list[Case]:
    """The fields that all preferences by a server have."""
    path, given = f"preference.{block}", by_endpoint(block)
    secret = by_endpoint(block, secretRef={"name": "a", "key": "b"})
    return [
        Case(f"{path}.url", "http://endpoint", "http://endpoint/other", requests, given),
        Case(f"{path}.model", "wise", "wiser", requests, given),
        Case(f"{path}.secretRef.name", "a", "c", trainer_pods, secret),
        Case(f"{path}.secretRef.key", "b", "c", trainer_pods, secret),
        Case(f"{path}.concurrency", 1, 2, requests, given),
        Case(f"{path}.requestsPerMinute", ABSENT, 240, requests, given),
        Case(f"{path}.timeoutSeconds", ABSENT, 0.1, requests, given),
    ]


def secret_fields(path: str, given: Json) -> list[Case]:
    """The fields of the Secret of a tracker."""
    secret = {**given, f"{path}.secretRef": {"name": "a", "key": "b"}}
    return [Case(f"{path}.secretRef.{name}", old, "c", trainer_pods, secret) for name, old in (("name", "a"), ("key", "b"))]


CASES = [
    Case("model.source", "org/a", "org/b", vllm_command),
    Case("model.revision", ABSENT, "abc", vllm_command),
    Case("model.dtype", "float32", "bfloat16", published),
    Case("model.trustRemoteCode", False, True, vllm_command),
    Case("model.tokenizer", ABSENT, "org/b", vllm_command),
    Case("model.chatTemplate", ABSENT, "{{ messages[0]['content'] }}", questions),
    *prompts("data.prompts", questions),
    *prompts("data.evaluation", exam),
    *(
        Case(f"data.prompts.sources.{name}", before, after, questions, MIXED | given)
        for name, before, after, given in [
            ("source", ROWS, OTHER_ROWS, {}),
            ("config", "addition-5", "addition-6", {"data.prompts.sources.source": "arithmetic"}),
            ("split", "train", "test", {"data.prompts.sources.source": "arithmetic"}),
            ("promptColumn", ABSENT, "other", {}),
            ("answerColumn", "answer", "wrong", {}),
            ("messagesColumn", ABSENT, "messages", {}),
            ("template", ABSENT, "What is {prompt}", {}),
            ("limit", ABSENT, 3, {}),
            ("weight", ABSENT, 3.0, {}),
        ]
    ),
    Case("data.prompts.order.column", "a", "b", questions),
    Case("data.prompts.order.direction", ABSENT, "descending", questions, {"data.prompts.order.column": "a"}),
    Case("data.evaluation.everyWindows", ABSENT, 3, ledger_kinds, FOUR_WINDOWS),
    Case("data.maxPromptTokens", 128, 23, questions, {"data.prompts": FROM_FILE}),
    Case(
        "method.name",
        ABSENT,
        "spin",
        trained_pairs,
        FOUR_WINDOWS,
        {"preference": {"groundTruth": {"rule": {"kind": "regex", "pattern": "1"}}}},
    ),
    Case("method.sppo.eta", ABSENT, 2.0, step, SPPO),
    Case("method.sppo.includeSelf", ABSENT, False, pairs, SPPO),
    Case("method.sppoAdvantage.eta", ABSENT, 2.0, step, ADVANTAGE),
    Case("method.sppoAdvantage.advantage", ABSENT, "batch", pairs, ADVANTAGE),
    Case("method.sppoAdvantage.kappa", ABSENT, 2.0, pairs, ADVANTAGE),
    Case("method.grpo.scaleRewards", ABSENT, "none", pairs, GRPO),
    Case("method.grpo.mean", ABSENT, "answers", step, GRPO),
    Case("method.grpo.clipLow", ABSENT, 0.01, clipped_step, GRPO),
    Case("method.grpo.clipHigh", ABSENT, 0.01, clipped_step, GRPO),
    Case("method.grpo.importanceCap", ABSENT, 1.0, clipped_step, GRPO),
    Case("method.loss", ABSENT, "hinge", step),
    Case("method.losses.name", "bco", "ipo", step),
    Case("method.losses.weight", ABSENT, 2.0, step, {"method.losses": {"name": "bco"}}),
    Case("method.losses.beta", ABSENT, 0.5, step, {"method.losses": {"name": "bco"}}),
    Case("method.beta", ABSENT, 0.5, step),
    Case("method.sigmoid.labelSmoothing", ABSENT, 0.1, step),
    Case("method.sigmoid.divergence", ABSENT, "js", step),
    Case("method.sigmoid.alpha", ABSENT, 0.9, step, {"method.sigmoid.divergence": "alpha"}),
    Case("method.hinge.divergence", ABSENT, "js", step, {"method.loss": "hinge", "method.hinge": {}}),
    Case("method.hinge.alpha", ABSENT, 0.9, step, {"method.loss": "hinge", "method.hinge": {"divergence": "alpha"}}),
    Case("method.exo.floor", ABSENT, 0.1, step, {"method.loss": "exo", "method.exo": {}}),
    Case("method.discopop.tau", ABSENT, 0.5, step, {"method.loss": "discopop", "method.discopop": {}}),
    Case("method.dpop.weight", ABSENT, 0.5, step, {"method.loss": "dpop", "method.dpop": {}}),
    Case("method.simpo.gamma", ABSENT, 0.7, step, {"method.loss": "simpo", "method.simpo": {}}),
    Case("method.orpo.weight", ABSENT, 0.3, step, {"method.loss": "orpo", "method.orpo": {}}),
    Case("method.robust.labelSmoothing", ABSENT, 0.1, step, {"method.loss": "robust"}),
    Case("method.ipo.average", ABSENT, False, step, {"method.loss": "ipo"}),
    *(
        Case(f"method.cringe.{name}", ABSENT, value, step, {"method.loss": "cringe", "method.cringe": {}})
        for name, value in {"weight": 2.0, "bias": 5.0, "temperature": 1.0, "topK": 1}.items()
    ),
    Case("method.sftWeight", ABSENT, 0.1, step),
    Case("method.klWeight", ABSENT, 0.1, step),
    Case("method.weightByLikelihood", ABSENT, True, step),
    Case("method.weightByMargin", ABSENT, True, step),
    Case("method.lengthDesensitize", ABSENT, 0.5, step),
    Case("method.refUpdateFreq", ABSENT, 8, schedule),
    Case("method.referenceMixture", ABSENT, 0.5, schedule),
    Case("method.rolloutUpdateFreq", ABSENT, 8, schedule),
    Case("method.replayWindows", ABSENT, 1, schedule),
    Case("method.overlap", ABSENT, 1, asked, FOUR_WINDOWS),
    Case("method.referenceLogprobs", ABSENT, "rollouts", asked, FOUR_WINDOWS),
    Case("method.maxMismatch", ABSENT, 1000, trained_pairs, FOUR_WINDOWS | {"method.referenceLogprobs": "rollouts"}),
    Case("method.betaByWindow", ABSENT, [0.1, 0.5], trained_pairs, FOUR_WINDOWS),
    Case("method.pairing", ABSENT, "allPairs", pairs),
    Case("method.sampling.maxPromptsFactor", 2.0, 3.0, most_prompts, {"trainer.pairsPerStep": 4, "duration": {"windows": 1}}),
    Case("method.sampling.passRate.min", ABSENT, 0.5, drawn, PASS_RATE),
    Case("method.sampling.passRate.max", ABSENT, 0.5, drawn, PASS_RATE),
    Case("method.sampling.passRate.retryAfterEpochs", ABSENT, 5, drawn, PASS_RATE | {"method.sampling.passRate.min": 0.5}),
    Case("method.sampling.passRate.whenNone", ABSENT, "widen", drawn, PASS_RATE | {"method.sampling.passRate.min": 0.9}),
    Case(
        "method.sampling.passRate.widenBy",
        ABSENT,
        0.5,
        drawn,
        PASS_RATE | {"method.sampling.passRate.min": 0.9, "method.sampling.passRate.whenNone": "widen"},
    ),
    Case("method.minMargin", ABSENT, 0.5, pairs, {"method.pairing": "allPairs"}),
    Case("method.truncated", ABSENT, "drop", pairs),
    Case("method.truncatedPenalty", ABSENT, 0.5, pairs, {"method.truncated": "penalise"}),
    Case("preference.groundTruth.rule.kind", "lastNumber", "exact", rewards, TRUTH),
    Case("preference.groundTruth.rule.pattern", "4", "5", rewards, TRUTH | {"preference.groundTruth.rule.kind": "regex"}),
    Case(
        "preference.groundTruth.rule.entryPoint",
        "user_rules:one",
        "user_rules:two",
        rewards,
        TRUTH | {"preference.groundTruth.rule.kind": "python"},
    ),
    Case(
        "preference.groundTruth.rule.timeoutSeconds",
        0.01,
        60,
        rewards,
        TRUTH | {"preference.groundTruth.rule": {"kind": "regex", "pattern": "^(a|a)*$"}},
    ),
    Case(
        "preference.groundTruth.rule.truncated",
        ABSENT,
        "score",
        rewards,
        TRUTH | {"preference.groundTruth.rule.kind": "lastNumber"},
    ),
    Case("preference.rule.truncated", ABSENT, "drop", rewards, {"preference.rule.kind": "lastNumber"}),
    Case("preference.rule.kind", "lastNumber", "exact", rewards),
    Case("preference.rule.pattern", "4", "5", rewards, REGEX),
    Case("preference.rule.entryPoint", "user_rules:one", "user_rules:two", rewards, {"preference.rule": {"kind": "python"}}),
    Case("preference.rule.timeoutSeconds", 0.01, 60, rewards, SLOW_REGEX),
    Case("preference.judge.template", ABSENT, "{first}{second}{prompt}", requests, JUDGE),
    Case("preference.judge.maxTokens", ABSENT, 1, requests, JUDGE),
    Case("preference.judge.maxComparisons", ABSENT, 4, requests, JUDGE),
    *(case for block in ("judge", "rewardModel", "ranker") for case in endpoint_fields(block)),
    *(case for block in ("rewardModel", "ranker") for case in source_fields(block)),
    Case("preference.rewardModel.template", ABSENT, "{prompt}{answer}", requests, REWARD_MODEL),
    Case("preference.ranker.firstTemplate", ABSENT, "{answer}", requests, RANKER),
    Case("preference.ranker.secondTemplate", ABSENT, "{prompt}{answer}", requests, RANKER),
    Case("preference.ranker.maxComparisons", ABSENT, 4, requests, RANKER),
    Case("rollout.replicas", 1, 2, rollout_pods),
    Case("rollout.samplesPerPrompt", 2, 3, asked, FOUR_WINDOWS),
    Case("rollout.temperature", ABSENT, 0.8, asked, FOUR_WINDOWS),
    Case("rollout.topP", ABSENT, 0.8, asked, FOUR_WINDOWS),
    Case("rollout.maxTokens", 8, 9, asked, FOUR_WINDOWS),
    Case("rollout.logprobs", ABSENT, "tokens", sampling),
    Case("rollout.tensorParallelSize", ABSENT, 2, vllm_command),
    Case("rollout.engineArgs", ABSENT, {"max-num-seqs": 8}, vllm_command),
    Case("rollout.image", ABSENT, "my/vllm", rollout_pods),
    Case("rollout.template", ABSENT, TEMPLATE, rollout_pods),
    Case("scorer.replicas", 1, 2, scorer_pods, OWN_MODEL),
    Case("scorer.dtype", ABSENT, "bfloat16", scorer_pods, OWN_MODEL),
    Case("scorer.tensorParallelSize", ABSENT, 2, scorer_command, OWN_MODEL),
    Case("scorer.engineArgs", ABSENT, {"max-num-seqs": 8}, scorer_command, OWN_MODEL),
    Case("scorer.image", ABSENT, "my/vllm", scorer_pods, OWN_MODEL),
    Case("scorer.template", ABSENT, TEMPLATE, scorer_pods, OWN_MODEL),
    Case("trainer.nodes", 1, 2, trainer_pods),
    Case("trainer.procsPerNode", 1, 2, trainer_command),
    Case("trainer.promptsPerStep", 16, 32, schedule),
    Case("trainer.pairsPerStep", 16, 32, schedule, {"duration": {"windows": 1}}),
    Case("trainer.computeDtype", "float32", "bfloat16", arithmetic),
    Case("trainer.tokensPerMicroBatch", 16, 32, micro_batches),
    Case("trainer.lora.rank", 8, 16, vllm_command),
    Case("trainer.lora.alpha", 8, 16, adapters, {"trainer.lora": {}}),
    Case("trainer.lora.targets", ABSENT, ["q_proj"], adapters, {"trainer.lora": {}}),
    Case("trainer.lora.exportMerged", ABSENT, True, ledger_kinds, FOUR_WINDOWS | {"trainer.lora": {}}),
    Case("trainer.optimizer", ABSENT, "rmsprop", step),
    Case("trainer.learningRate", ABSENT, 1e-3, rates),
    Case("trainer.learningRateByWindow", ABSENT, [5e-7, 1e-7], rates),
    Case("trainer.schedule", ABSENT, "linear", rates),
    Case("trainer.warmupSteps", ABSENT, 2, rates),
    Case("trainer.weightDecay", ABSENT, 0.1, step),
    Case("trainer.maxGradNorm", 1e9, 1e-9, step),
    Case("trainer.activationCheckpointing", False, True, attention_passes),
    Case("trainer.checkpointEverySteps", ABSENT, 3, ledger_kinds, FOUR_WINDOWS),
    Case("trainer.keepCheckpoints", ABSENT, 3, ledger_kinds, FOUR_WINDOWS),
    Case("trainer.image", ABSENT, "my/trainer", trainer_pods),
    Case("trainer.template", ABSENT, TEMPLATE, trainer_pods),
    Case("duration.windows", 2, 3, schedule, {"duration": {}}),
    Case("duration.steps", 2, 3, schedule, {"duration": {}}),
    Case("duration.epochs", 1, 20, schedule, {"duration": {}}),
    Case("storage.claimName", "a", "b", trainer_pods, {"storage": {}}),
    Case("storage.size", "1Gi", "2Gi", claim),
    Case("storage.storageClassName", ABSENT, "fast", claim),
    Case("storage.accessModes", ABSENT, ["ReadWriteOnce"], claim),
    Case("storage.retain", ABSENT, False, claim),
    Case("telemetry.wandb.project", "a", "b", tracked, WANDB),
    Case("telemetry.wandb.entity", ABSENT, "a-team", tracked, WANDB),
    *secret_fields("telemetry.wandb", WANDB),
    Case("telemetry.tensorboard.directory", ABSENT, ELSEWHERE, tracked, {"telemetry.tensorboard": {}}),
    Case("telemetry.mlflow.trackingUri", ABSENT, ELSEWHERE, tracked, {"telemetry.mlflow": {}}),
    Case("telemetry.mlflow.experiment", ABSENT, "sums", tracked, {"telemetry.mlflow": {}}),
    *secret_fields("telemetry.mlflow", {"telemetry.mlflow": {}}),
    Case("network.egress", ABSENT, [], network_policy),
    Case("lifecycle.suspend", False, True, rollout_pods),
    Case("lifecycle.backoffLimit", 0, 1, verdict),
    Case("lifecycle.activeDeadlineSeconds", 10, 20, latest_end),
    Case("lifecycle.progressDeadlineSeconds", 10, 20, patience),
    Case("lifecycle.ttlSecondsAfterFinished", 10, 20, deletion),
    Case("lifecycle.managedBy", ABSENT, "kueue.x-k8s.io/multikueue", managed),
    Case("lifecycle.failurePolicy.exitCodes", [7], [8], verdict, {"lifecycle.failurePolicy": {"action": "Fail"}}),
    Case("lifecycle.failurePolicy.action", "Fail", "RestartUncounted", verdict, {"lifecycle.failurePolicy": {"exitCodes": [7]}}),
]


def test_the_table_names_every_field() -> None:
    named = [case.path for case in CASES]
    assert sorted(named) == sorted(_paths(SpinRunSpec))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.path)
def test_field_changes_something(
    case: Case, attempts: Attempts, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "user_rules.py").write_text("".join(USER_RULE.format(name=name, value=name == "one") for name in ("one", "two")))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    files = {MODEL: str(tiny_model), ROWS: write_rows(tmp_path / "a.jsonl", SUMS)}
    files[ELSEWHERE] = str(tmp_path / "elsewhere")
    monkeypatch.setenv("WANDB_MODE", "offline")
    files[OTHER_ROWS] = write_rows(tmp_path / "b.jsonl", SUMS[::-1])
    before = case.effect(run_with(case, case.before, files, case.given), attempts)
    after = case.effect(run_with(case, case.after, files, case.given | case.given_after), attempts)
    assert before != after


def run_with(case: Case, value: object, files: dict[str, str], given: Json) -> SpinRun:
    """The smallest run with what the case needs and this value of its field."""
    spec: Json = {
        "model": {"source": MODEL},
        "data": {"prompts": {"source": "arithmetic", "config": "addition-5"}, "maxPromptTokens": 128},
        "preference": {"rule": {"kind": "lastNumber"}},
        "storage": {"size": "1Gi"},
    }
    for path, part in (given | {case.path: value}).items():
        _put(spec, path.split("."), copy.deepcopy(part))
    if source := spec["data"]["prompts"].get("sources"):
        spec["data"]["prompts"]["sources"] = [{"source": "arithmetic", "config": "addition-5", "limit": 4}, source]
    for block, name in (("lifecycle", "failurePolicy"), ("method", "losses")):  # lists, of which the cases give one entry
        if entry := spec.get(block, {}).get(name):
            spec[block][name] = [entry]
    metadata = {"name": "demo", "namespace": "team", "uid": "01234567-89ab-cdef-0123-456789abcdef"}
    text = json.dumps({"apiVersion": "spinrun.dev/v1alpha1", "kind": "SpinRun", "metadata": metadata, "spec": spec})
    for name, path in files.items():
        text = text.replace(json.dumps(name), json.dumps(path))
    return parse_run(json.loads(text))


def write_rows(path: Path, rows: Sequence[Json]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def _put(spec: Json, path: Sequence[str], value: object) -> None:
    *blocks, name = path
    for block in blocks:
        spec = spec.setdefault(block, {})
    if value is not ABSENT:
        spec[name] = value


def _paths(model: type[ApiModel], above: str = "") -> Iterator[str]:
    """The fields that are no blocks, by their paths in a document; one that can only have one value changes nothing yet."""
    for name, info in model.model_fields.items():
        path = f"{above}{info.alias or name}"
        block = next(models_in(info.annotation), None)
        if block is not None:
            yield from _paths(block, f"{path}.")
        elif not (get_origin(info.annotation) is Literal and len(get_args(info.annotation)) == 1):
            yield path
