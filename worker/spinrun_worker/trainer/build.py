"""Puts an attempt together: `build_model` on every rank, `build_rank0` on rank 0, and the training that joins them."""

import gc
import logging
import os
import random
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from peft import LoraConfig
from torch.distributed.device_mesh import init_device_mesh
from torch.optim import Optimizer
from transformers import AutoConfig, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from spinrun_api.run import SpinRun
from spinrun_api.spec import GroundTruth, Model, SamplingSettings, SpinRunSpec, Trainer
from spinrun_protocol.environment import ROLLOUTS
from spinrun_protocol.ledger import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Manifest, RunRecord
from spinrun_worker.bearer import read_token
from spinrun_worker.data import PromptStream, encode_answer
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.ledger import LedgerWriter
from spinrun_worker.ledger.files import read_record
from spinrun_worker.model_config import fit_to_model
from spinrun_worker.model_files import GENERATION_CONFIG
from spinrun_worker.reading import reading
from spinrun_worker.records import Answers
from spinrun_worker.rewards import build_reward_function
from spinrun_worker.trainer.coordinator import Coordinator
from spinrun_worker.trainer.evaluation import Evaluations
from spinrun_worker.trainer.inputs import TrainingData, check_vocabulary, load_training_data, make_stream
from spinrun_worker.trainer.model.learner import Learner
from spinrun_worker.trainer.model.lora import FILE_DTYPE, config_file, digest_of_base
from spinrun_worker.trainer.model.memory import trim_memory
from spinrun_worker.trainer.model.optimizer import learning_rate, make_optimizer
from spinrun_worker.trainer.model.policy import Policy, load_policy, shard_policy
from spinrun_worker.trainer.model.precision import choose_compute_dtype, use_deterministic_algorithms
from spinrun_worker.trainer.pairs import PairMaker
from spinrun_worker.trainer.rank0 import Rank0Parts
from spinrun_worker.trainer.ranks.distributed import Distributed
from spinrun_worker.trainer.ranks.stop import StopSignal
from spinrun_worker.trainer.reference.own import OwnReference
from spinrun_worker.trainer.reference.passes import ReferencePasses
from spinrun_worker.trainer.reference.rollouts import RolloutsReference
from spinrun_worker.trainer.reporting.board import ProgressBoard
from spinrun_worker.trainer.reporting.recorder import Recorder
from spinrun_worker.trainer.reporting.run_record import make_record
from spinrun_worker.trainer.reporting.server import Gauges, ProgressServer
from spinrun_worker.trainer.reporting.tracing import traced
from spinrun_worker.trainer.reporting.trackers import TrackerCollector, following
from spinrun_worker.trainer.sampling.ahead import Ahead
from spinrun_worker.trainer.sampling.client import RolloutClient
from spinrun_worker.trainer.sampling.draws import Draws, EnoughPairs, Places, SelectedPrompts, SomePrompts
from spinrun_worker.trainer.sampling.exchange import Exchange
from spinrun_worker.trainer.sampling.in_turn import InTurn
from spinrun_worker.trainer.sampling.requests import Requests
from spinrun_worker.trainer.sampling.selection import AllPrompts, InsideBand
from spinrun_worker.trainer.schedule import Schedule, make_schedule
from spinrun_worker.trainer.stepper import Stepper
from spinrun_worker.trainer.storage.base_answers import BaseAnswers
from spinrun_worker.trainer.storage.checkpoints import Checkpoints
from spinrun_worker.trainer.storage.export import export_merged
from spinrun_worker.trainer.storage.publish import collect_assets
from spinrun_worker.trainer.storage.store import Publication, RunStore
from spinrun_worker.trainer.storage.windows import ScoredAnswers, Windows
from spinrun_worker.trainer.training import Training
from spinrun_worker.trainer.window import WindowTrainer

logger = logging.getLogger(__name__)

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    run: SpinRun
    """The run, every default filled in."""

    ledger: Path
    """The run's own folder."""

    attempt: int
    """Number of this life of the trainer, from 1."""

    host: str
    """Address that rank 0 listens on; empty: all."""

    port: int
    """Port of rank 0's /progress and /metrics."""


@dataclass(frozen=True)
class BuiltModel:
    """What every rank trains with."""

    policy: Policy
    optimizer: Optimizer
    learner: Learner
    publication: Publication
    whole: Publication
    """Of the whole model, which a run that trains adapters can export; else as `publication`, but for the tensors."""
    record: RunRecord


def train(options: Options, ranks: Distributed, stop: StopSignal, board: ProgressBoard) -> None:
    """Run an attempt to its end. All ranks call it.

    Raises:
        ConfigurationError: The user must act.
        RunError: Another attempt may get further.
        LedgerError: The ledger cannot be used.
        Preempted: The run was asked to stop.
        Each is the same on all ranks.
    """
    ledger = LedgerWriter(options.ledger, run_uid(options.run), options.attempt)
    ranks.from_rank0(ledger.claim)
    options = replace(options, run=ranks.from_rank0(lambda: fit_to_model(resolve_truncated(options.run, ledger))))
    spec = options.run.spec
    gauges = Gauges(namespace=options.run.metadata.namespace or "", run=options.run.metadata.name, method=spec.method.name)
    with ExitStack() as cleanup:
        if ranks.is_rank0:
            server = ProgressServer(host=options.host, port=options.port, board=board, gauges=gauges)
            cleanup.callback(server.close)
            cleanup.enter_context(traced(board, options.run, options.attempt))
        data = ranks.on_rank0(partial(load_training_data, spec))
        schedule = ranks.from_rank0(
            lambda: make_schedule(spec, num_prompts=sum(len(each.records) for each in data.training.values()))
        )
        board.update(windows=schedule.windows, total_steps=schedule.total_steps)

        model = build_model(options, ranks, ledger, data)
        recorder = ranks.on_rank0(partial(make_recorder, model.record, ledger, gauges, cleanup))
        parts = ranks.on_rank0(partial(build_rank0, options, schedule, data, ledger, board, recorder, stop.requested, cleanup))
        ranks.from_rank0(partial(ledger.write_run_record, model.record))
        training = build_training(options, schedule, model, parts, ledger, ranks, board, stop.requested)
        gc.freeze()  # what is there now stays: the collections at every boundary need not look at all of torch again
        training.run()
        ranks.from_rank0(ledger.close)


def run_uid(run: SpinRun) -> str:
    """The run's identity. Raises ConfigurationError when the run file has none."""
    if run.metadata.uid is None:
        raise ConfigurationError("the run file has no metadata.uid: start the run by `spinrun local` or through the operator")
    return run.metadata.uid


def build_model(options: Options, ranks: Distributed, ledger: LedgerWriter, data: TrainingData) -> BuiltModel:
    """The policy with its optimizer, on every rank, and what its versions are made of. All ranks call it.

    Args:
        options: Of the command line.
        ranks: Which share the model.
        ledger: Says what earlier attempts chose.
        data: On rank 0 alone.
    """
    spec, seed = options.run.spec, options.run.spec.data.prompts.shuffle_seed
    compute_dtype, measurement = ranks.from_rank0(lambda: resolve_compute_dtype(spec.trainer, ledger, ranks.device))
    use_deterministic_algorithms(ranks.device)
    seed_generators(seed, ranks.rank)
    policy = ranks.agree(partial(load_policy, spec.model, lora=spec.trainer.lora, seed=seed))
    ranks.on_rank0(lambda: check_vocabulary(data, policy.config.vocab_size))
    base_digest = ranks.from_rank0(partial(resolve_base, policy, ledger))
    dtype = published_dtype(spec.model)
    # Before the model is sharded: its configuration is then still a whole model's.
    assets = ranks.on_rank0(lambda: collect_assets(partial(save_assets, spec.model, policy, data.tokenizer), dtype=dtype)) or {}
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    shard_policy(policy, mesh=mesh, compute_dtype=compute_dtype, activation_checkpointing=spec.trainer.activation_checkpointing)
    optimizer = make_optimizer(policy.parameters(), spec.trainer)
    whole = publication = Publication(policy.state, dtype, assets, file=None)
    if policy.adapters is not None:
        publication = Publication(policy.state, FILE_DTYPE, adapter_assets(policy.adapters, assets), file=ADAPTER_WEIGHTS)
    record = make_record(
        options.run,
        ranks,
        attempt=options.attempt,
        compute_dtype=compute_dtype,
        published_dtype=publication.dtype,
        base_digest=base_digest,
        measurement=measurement,
    )
    learner = Learner(
        policy,
        optimizer,
        method=spec.method,
        trainer=spec.trainer,
        max_tokens=spec.max_tokens,
        temperature=spec.logprob_temperature,
        control=ranks.control,
    )
    return BuiltModel(policy, optimizer, learner, publication, whole, record)


def build_rank0(
    options: Options,
    schedule: Schedule,
    data: TrainingData,
    ledger: LedgerWriter,
    board: ProgressBoard,
    recorder: Recorder,
    stop: Callable[[], bool],
    cleanup: ExitStack,
) -> Rank0Parts:
    """What rank 0 alone has. cleanup: closes it."""
    run, spec = options.run, options.run.spec
    rollouts = cleanup.enter_context(connect_rollouts(run, board))
    scorer = build_reward_function(
        spec.preference,
        on_trouble=lambda trouble: board.update(trouble=trouble, message=trouble),
        stop=stop,
        engine_args=spec.scorers.engine_args if spec.scorers else {},
    )
    cleanup.callback(scorer.close)
    stream = make_stream(data, spec.data.prompts.shuffle_seed)
    base = BaseAnswers(ledger, schedule, stream) if spec.method.pairing == "bestVsBase" else None
    encode = partial(encode_answer, data.tokenizer, max_tokens=spec.max_tokens, end=data.end_token)
    pairs = PairMaker(run, scorer, encode, base)
    held_out = data.evaluation.records if data.evaluation else ()
    evaluations = Evaluations(run, schedule, held_out, ledger=ledger, pairs=pairs, board=board, recorder=recorder)
    evaluations.load()
    requests = Requests(run, rollouts=rollouts, board=board, stop=stop)
    windows = Windows(ledger, schedule, has_base=base is not None, pass_rate=spec.method.pass_rate)
    return Rank0Parts(
        rollouts=rollouts,
        requests=requests,
        draws=make_draws(spec, stream, schedule, requests, windows, pairs, board),
        evaluations=evaluations,
        windows=windows,
        pairs=pairs,
        recorder=recorder,
    )


def make_draws(
    spec: SpinRunSpec,
    stream: PromptStream,
    schedule: Schedule,
    requests: Requests,
    windows: Windows,
    pairs: PairMaker,
    board: ProgressBoard,
) -> Draws:
    """How windows draw their prompts: the spec gives their size in prompts or in pairs."""

    def tell(note: str) -> None:
        logger.warning("%s", note)
        board.update(message=note)

    rates, selection = windows.rates, AllPrompts()
    if rates is not None:
        selection = InsideBand(stream, rates.band, known_after=rates.after, overlap=spec.method.overlap)
    elif spec.trainer.pairs_per_step is None:
        return SomePrompts(stream, schedule, requests)
    places = Places(stream, schedule, windows, selection, tell)
    if spec.trainer.pairs_per_step is None:
        return SelectedPrompts(places, requests)

    def score(answers: Answers) -> ScoredAnswers:
        with board.during("score"):
            return pairs.score(answers)

    return EnoughPairs(
        places,
        requests,
        max_prompts_factor=(spec.method.sampling or SamplingSettings()).max_prompts_factor,
        score=score,
        num_pairs=lambda group: len(pairs.pair(ScoredAnswers([group])).pairs),
        show=lambda done, asked: board.update(prompts_done=done, prompts_total=asked),
    )


def build_training(
    options: Options,
    schedule: Schedule,
    model: BuiltModel,
    parts: Rank0Parts,
    ledger: LedgerWriter,
    ranks: Distributed,
    board: ProgressBoard,
    stop: Callable[[], bool],
) -> Training:
    """The training, resumed from the newest checkpoint. All ranks call it. parts: on rank 0 alone."""
    spec = options.run.spec
    store = RunStore(
        ledger,
        ranks,
        schedule,
        model=model.policy,
        optimizer=model.optimizer,
        publication=model.publication,
        keep_checkpoints=spec.trainer.keep_checkpoints,
    )
    coordinator, exchange = Coordinator(ranks, parts, schedule, board), Exchange(ranks, parts, board)
    passes = ReferencePasses(model.learner, store, board)
    by_rollouts = spec.method.reference_logprobs == "rollouts"
    rollouts_reference = RolloutsReference(passes, max_mismatch=spec.method.max_mismatch, is_rank0=ranks.is_rank0)
    done = store.resume()
    trim_memory()
    windows = WindowTrainer(
        schedule,
        coordinator=coordinator,
        order=Ahead(exchange, store, schedule) if schedule.overlap else InTurn(exchange),
        own_reference=rollouts_reference if by_rollouts else OwnReference(passes),
        passes=passes,
        stepper=Stepper(
            model.learner,
            spec.method,
            coordinator,
            board,
            done=done,
            rate=lambda step: learning_rate(step, spec.trainer, schedule),
            should_stop=stop,
        ),
        store=store,
        checkpoints=Checkpoints(store, schedule, board, every_steps=spec.trainer.checkpoint_every_steps, saved=done),
    )

    def export(weights: Manifest) -> Manifest:
        return export_merged(ledger, ranks, weights, model=spec.model, dtype=model.whole.dtype, assets=model.whole.assets)

    is_exported = spec.trainer.lora is not None and spec.trainer.lora.export_merged
    return Training(windows, exchange, store, board, export if is_exported else None)


def resolve_compute_dtype(
    trainer: Trainer, ledger: LedgerWriter, device: torch.device
) -> tuple[torch.dtype, dict[str, float | str]]:
    """The dtype that the spec names, else the one that an earlier attempt chose, because an exact resume computes in the
    same, else the faster one here; and what was measured."""
    if trainer.compute_dtype != "auto":
        return cast(torch.dtype, getattr(torch, trainer.compute_dtype)), {}
    chosen, measurement = choose_compute_dtype(device)
    earlier = read_record(ledger.layout.run_record, RunRecord)
    return (chosen if earlier is None else cast(torch.dtype, getattr(torch, earlier.compute_dtype))), measurement


def resolve_truncated(run: SpinRun, ledger: LedgerWriter) -> SpinRun:
    """The run with its rule saying what becomes of answers that were cut off: what the run began with. A run whose earlier
    attempts say nothing of it began when all answers were scored."""
    preference = run.spec.preference
    rule = preference.scoring
    if rule is None or rule.truncated is not None:
        return run
    earlier = read_record(ledger.layout.run_record, RunRecord)
    began_with = rule.resolved_truncated if earlier is None else _truncated_of(earlier)
    settled = rule.model_copy(update={"truncated": began_with})
    if preference.ground_truth is None:
        preference = preference.model_copy(update={"rule": settled})
    else:
        preference = preference.model_copy(update={"ground_truth": GroundTruth(rule=settled)})
    return run.model_copy(update={"spec": run.spec.model_copy(update={"preference": preference})})


def _truncated_of(record: RunRecord) -> str:
    preference = record.run["spec"]["preference"]
    rule = preference.get("rule") or preference["groundTruth"].get("rule", {})
    return rule.get("truncated", "score")


def resolve_base(policy: Policy, ledger: LedgerWriter) -> str | None:
    """Identity of the weights beside which adapters are trained; None where there are no adapters.

    Every attempt and every rollout reads them from the source again. Raises ConfigurationError when they are no longer those
    that the run began with.
    """
    if policy.adapters is None:
        return None
    digest = digest_of_base(policy)
    earlier = read_record(ledger.layout.run_record, RunRecord)
    if earlier is not None and earlier.base_digest not in (None, digest):
        raise ConfigurationError(
            f"model.source {policy.adapters.base_model_name_or_path!r} has other weights now than when the run began, to which "
            "its adapters belong: restore them, or start a new run; a commit as model.revision keeps a Hub model as it is"
        )
    return digest


def seed_generators(seed: int, rank: int) -> None:
    """Start all random number generators from the run's seed, another for each rank; a checkpoint sets them again."""
    number = (seed * 1_000_003 + rank) % 2**32
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def published_dtype(model: Model) -> torch.dtype:
    """The dtype of published weights: the spec's, else the one that the source says it is stored in.

    Raises:
        ConfigurationError: config.json cannot be read, or names none that there is.
    """
    if model.dtype != "auto":
        return cast(torch.dtype, getattr(torch, model.dtype))
    revision, trust = model.revision or "main", model.trust_remote_code
    with reading(f"model.source {model.source!r}: config.json", remedy="repair it, or set model.dtype"):
        config = AutoConfig.from_pretrained(model.source, revision=revision, trust_remote_code=trust)
    return cast(torch.dtype | None, config.dtype) or torch.float32


def save_assets(model: Model, policy: Policy, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Everything of a version but its weights.

    Raises:
        ConfigurationError: Configuration or tokenizer can be loaded, but not written.
    """
    with reading("model.source: its configuration and tokenizer cannot be written into versions", remedy="repair its files"):
        policy.model.config.save_pretrained(folder)
        if policy.generation_config is not None:
            (folder / GENERATION_CONFIG).write_bytes(policy.generation_config)
        else:
            # Not by save_pretrained, which refuses what config.json may say of sampling: nobody samples by it.
            policy.model.generation_config.to_json_file(folder / GENERATION_CONFIG)
        tokenizer.save_pretrained(folder)
        if policy.config is not policy.model.config:
            copy_processor(model, folder)


def copy_processor(model: Model, folder: Path) -> None:
    """Copy what a model for images says of how it sees them, without which vLLM does not load it. Text does not change it."""
    for name in PROCESSOR_FILES:
        path = cached_file(model.source, name, revision=model.revision or "main", _raise_exceptions_for_missing_entries=False)
        if path is not None:
            shutil.copyfile(path, folder / name)


def adapter_assets(adapters: LoraConfig, whole_assets: Mapping[str, bytes]) -> dict[str, bytes]:
    """Everything of a version that is an adapter but its weights: what peft knows of it, and the configuration of its base, which
    says to a rollout which tokens there are."""
    return {ADAPTER_CONFIG: config_file(adapters), **{name: data for name, data in whole_assets.items() if name == "config.json"}}


@contextmanager
def connect_rollouts(run: SpinRun, board: ProgressBoard) -> Generator[RolloutClient]:
    """The client of all rollouts. Raises ConfigurationError when the environment does not say where they are."""
    addresses = os.environ.get(ROLLOUTS)
    if not addresses:
        raise ConfigurationError(f"{ROLLOUTS} must be set: the agents' URLs, separated by commas")
    client = RolloutClient(addresses, read_token(), on_wait=lambda message: board.update(message=message))
    board.follow(lambda: client.rollouts().model_copy(update={"desired": run.spec.rollout.replicas}))
    try:
        yield client
    finally:
        client.close()


def make_recorder(record: RunRecord, ledger: LedgerWriter, gauges: Gauges, cleanup: ExitStack) -> Recorder:
    """The recorder with the run's trackers, which have a limited time to end. cleanup: ends them."""
    followers = cleanup.enter_context(following(record, ledger.layout.root))
    gauges.registry.register(TrackerCollector(followers, gauges.labels))
    return Recorder(ledger, gauges, followers)
