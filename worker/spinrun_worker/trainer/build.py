"""Puts the parts of one rank together — data, model, optimizer, ledger, rollouts — and runs the loop."""

import logging
import os
import platform
import random
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from peft import LoraConfig
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from spinrun_api.run import SpinRun
from spinrun_api.spec import Model, SpinRunSpec, Trainer
from spinrun_protocol.environment import ROLLOUTS, TOKEN_FILE
from spinrun_protocol.ledger import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Manifest, RunRecord
from spinrun_protocol.machine import available_cores
from spinrun_worker.data import PromptSet, check_disjoint, encode_answer, load_prompts
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.ledger import LedgerWriter
from spinrun_worker.ledger.files import read_record
from spinrun_worker.rewards import build_scorer
from spinrun_worker.trainer.coordinator import Rank0
from spinrun_worker.trainer.model.learner import Learner
from spinrun_worker.trainer.model.lora import FILE_DTYPE, config_file, digest_of_base
from spinrun_worker.trainer.model.memory import give_back
from spinrun_worker.trainer.model.optimizer import learning_rate, make_optimizer
from spinrun_worker.trainer.model.policy import Policy, load_policy, shard_policy
from spinrun_worker.trainer.model.precision import choose_compute_dtype, use_deterministic_algorithms
from spinrun_worker.trainer.ranks.distributed import Distributed
from spinrun_worker.trainer.ranks.stop import StopSignal
from spinrun_worker.trainer.reporting.board import ProgressBoard
from spinrun_worker.trainer.reporting.recorder import Recorder
from spinrun_worker.trainer.reporting.server import Gauges, ProgressServer
from spinrun_worker.trainer.reporting.tracing import traced
from spinrun_worker.trainer.reporting.trackers import TrackerCollector, following
from spinrun_worker.trainer.sampling.client import RolloutClient
from spinrun_worker.trainer.schedule import Schedule, make_schedule
from spinrun_worker.trainer.storage.export import export_merged
from spinrun_worker.trainer.storage.publish import collect_assets
from spinrun_worker.trainer.storage.store import Storage
from spinrun_worker.trainer.training import Loop

T = TypeVar("T")

logger = logging.getLogger(__name__)

LIBRARIES = ("spinrun", "torch", "transformers", "peft", "safetensors", "tokenizers", "datasets", "numpy")


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
class Material:
    """What rank 0 reads before anything else can be known: the data, and the model's tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    training: PromptSet
    evaluation: PromptSet | None


def train(options: Options, ranks: Distributed, stop: StopSignal, board: ProgressBoard) -> None:
    """Run an attempt to its end. All ranks call it.

    Raises ConfigurationError, RunError, LedgerError or Preempted, the same on all ranks.
    """
    spec = options.run.spec
    ledger = LedgerWriter(options.ledger, run_uid(options.run), options.attempt)
    ranks.from_rank0(ledger.claim)
    gauges = Gauges(namespace=options.run.metadata.namespace or "", run=options.run.metadata.name, method=spec.method.name)
    with ExitStack() as cleanup:
        if ranks.is_rank0:
            server = ProgressServer(host=options.host, port=options.port, board=board, gauges=gauges)
            cleanup.callback(server.close)
            cleanup.enter_context(traced(board, options.run, options.attempt))
        material = on_rank0_only(ranks, lambda: load_material(spec))
        schedule = ranks.from_rank0(lambda: make_schedule(spec, num_prompts=len(_of(material).training.records)))
        board.update(windows=schedule.windows, total_steps=schedule.total_steps)

        compute_dtype, measurement = ranks.from_rank0(lambda: settled_compute_dtype(spec.trainer, ledger, ranks.device))
        use_deterministic_algorithms(ranks.device)
        seed_generators(spec.data.prompts.shuffle_seed, ranks.rank)
        lora = spec.trainer.lora
        policy = ranks.agree(lambda: load_policy(spec.model, lora=lora, seed=spec.data.prompts.shuffle_seed))
        base_digest = ranks.from_rank0(lambda: settled_base(policy, ledger))
        whole_dtype = published_dtype(spec.model)
        publish_dtype = whole_dtype if lora is None else FILE_DTYPE
        whole_assets = (
            on_rank0_only(
                ranks,
                lambda: collect_assets(lambda folder: save_assets(policy, _of(material).tokenizer, folder), dtype=whole_dtype),
            )
            or {}
        )
        mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
        shard_policy(
            policy, mesh=mesh, compute_dtype=compute_dtype, activation_checkpointing=spec.trainer.activation_checkpointing
        )
        optimizer = make_optimizer(policy.parameters(), spec.trainer)
        learner = Learner(policy, optimizer, method=spec.method, trainer=spec.trainer, control=ranks.control)

        rollouts = on_rank0_only(ranks, lambda: cleanup.enter_context(connect_rollouts(options, board)))
        storage = Storage(
            ledger,
            ranks,
            schedule,
            model=policy,
            optimizer=optimizer,
            tensors=policy.state,
            dtype=publish_dtype,
            assets=whole_assets if policy.adapters is None else adapter_assets(policy.adapters, whole_assets),
            file=None if lora is None else ADAPTER_WEIGHTS,
            keep_checkpoints=spec.trainer.keep_checkpoints,
            acknowledged=lambda: _of(rollouts).served_versions(),
        )
        record = make_record(
            options,
            ranks,
            compute_dtype=compute_dtype,
            publish_dtype=publish_dtype,
            base_digest=base_digest,
            measurement=measurement,
        )
        recorder = on_rank0_only(ranks, lambda: cleanup.enter_context(make_recorder(record, ledger, gauges)))
        rank0 = on_rank0_only(
            ranks,
            lambda: make_rank0(options, schedule, _of(material), _of(rollouts), ledger, board, _of(recorder), stop, cleanup),
        )
        ranks.from_rank0(lambda: ledger.write_run_record(record))

        def export(weights: Manifest) -> Manifest:
            return export_merged(ledger, ranks, weights, model=spec.model, dtype=whole_dtype, assets=whole_assets)

        loop = Loop(
            schedule,
            ranks=ranks,
            learner=learner,
            storage=storage,
            rank0=rank0,
            board=board,
            should_stop=stop.requested,
            method=spec.method,
            rate=lambda step: learning_rate(step, spec.trainer, schedule),
            checkpoint_every_steps=spec.trainer.checkpoint_every_steps,
            export=export if lora is not None and lora.export_merged else None,
        )
        step = storage.resume()
        give_back()
        loop.run(step)
        ranks.from_rank0(ledger.close)


def on_rank0_only(ranks: Distributed, make: Callable[[], T]) -> T | None:
    """Make something on rank 0 that cannot travel; every rank learns of a failure."""
    return ranks.agree(lambda: make() if ranks.is_rank0 else None)


def _of(value: T | None) -> T:
    assert value is not None, "only rank 0 has it"
    return value


def run_uid(run: SpinRun) -> str:
    """The run's identity. Raises ConfigurationError when the run file has none."""
    if run.metadata.uid is None:
        raise ConfigurationError("the run file has no metadata.uid: start the run by `spinrun local` or through the operator")
    return run.metadata.uid


def load_material(spec: SpinRunSpec) -> Material:
    """Read tokenizer and data. Raises ConfigurationError naming the field, RunError when a source cannot be reached now."""
    tokenizer = load_tokenizer(spec.model)
    prompt_sets = [
        load_prompts(
            source,
            tokenizer=tokenizer,
            chat_template=spec.model.chat_template,
            max_prompt_tokens=spec.data.max_prompt_tokens,
            needs_answer=needs_answer,
        )
        for source, needs_answer in (
            (spec.data.prompts, spec.preference.needs_answer),
            (spec.data.evaluation, spec.preference.needs_answer_in_evaluation),
        )
        if source is not None
    ]
    training, evaluation = prompt_sets[0], prompt_sets[1] if len(prompt_sets) > 1 else None
    if evaluation is not None:
        check_disjoint(training, evaluation)
    return Material(tokenizer, training, evaluation)


def load_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with the spec's chat template where it names one."""
    source = model.tokenizer or model.source
    try:
        tokenizer = cast(
            PreTrainedTokenizerBase,
            AutoTokenizer.from_pretrained(
                source,
                revision="main" if model.tokenizer or not model.revision else model.revision,
                trust_remote_code=model.trust_remote_code,
            ),
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        field = "model.tokenizer" if model.tokenizer else "model.source"
        raise ConfigurationError(f"{field} {source!r} has no tokenizer that can be loaded: {error}") from error
    if model.chat_template is not None:
        tokenizer.chat_template = model.chat_template
    return tokenizer


def settled_compute_dtype(
    trainer: Trainer, ledger: LedgerWriter, device: torch.device
) -> tuple[torch.dtype, dict[str, float | str]]:
    """The number type that the spec names, else the one that an earlier attempt chose, because an exact resume computes in the
    same, else the faster one here; and what was measured."""
    if trainer.compute_dtype != "auto":
        return cast(torch.dtype, getattr(torch, trainer.compute_dtype)), {}
    chosen, measurement = choose_compute_dtype(device)
    earlier = read_record(ledger.layout.run_record, RunRecord)
    return (chosen if earlier is None else cast(torch.dtype, getattr(torch, earlier.compute_dtype))), measurement


def settled_base(policy: Policy, ledger: LedgerWriter) -> str | None:
    """Identity of the weights beside which adapters are trained; None where there are no adapters.

    Every attempt and every rollout reads them from the source anew. Raises ConfigurationError when they are no longer those
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
    """Start all random number generators from the run's seed, another for each rank; a checkpoint sets them anew."""
    number = (seed * 1_000_003 + rank) % 2**32
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def published_dtype(model: Model) -> torch.dtype:
    """The number type of published weights: the spec's, else the one that the source says it is stored in."""
    if model.dtype != "auto":
        return cast(torch.dtype, getattr(torch, model.dtype))
    revision, trust = model.revision or "main", model.trust_remote_code
    config = AutoConfig.from_pretrained(model.source, revision=revision, trust_remote_code=trust)
    return cast(torch.dtype | None, config.dtype) or torch.float32


def save_assets(policy: Policy, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Everything of a version but its weights."""
    policy.model.config.save_pretrained(folder)
    policy.model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def adapter_assets(adapters: LoraConfig, whole_assets: Mapping[str, bytes]) -> dict[str, bytes]:
    """Everything of a version that is an adapter but its weights: what peft knows of it, and the configuration of its base, which
    says to a rollout which tokens there are."""
    return {ADAPTER_CONFIG: config_file(adapters), **{name: data for name, data in whole_assets.items() if name == "config.json"}}


@contextmanager
def connect_rollouts(options: Options, board: ProgressBoard) -> Generator[RolloutClient]:
    """The client of all rollouts. Raises ConfigurationError when the environment does not say where they are."""
    token_file, addresses = os.environ.get(TOKEN_FILE), os.environ.get(ROLLOUTS)
    if not token_file or not addresses:
        raise ConfigurationError(f"{TOKEN_FILE} and {ROLLOUTS} must be set: the file of the run's token, and the agents' URLs")
    client = RolloutClient(
        addresses, Path(token_file).read_text("utf-8").strip(), on_wait=lambda message: board.update(message=message)
    )
    board.follow(lambda: client.rollouts().model_copy(update={"desired": options.run.spec.rollout.replicas}))
    try:
        yield client
    finally:
        client.close()


@contextmanager
def make_recorder(record: RunRecord, ledger: LedgerWriter, gauges: Gauges) -> Generator[Recorder]:
    """The recorder with the run's trackers, which have a limited time to end."""
    with following(record, ledger.layout.root) as followers:
        gauges.registry.register(TrackerCollector(followers, gauges.labels))
        yield Recorder(ledger, gauges, followers)


def make_rank0(
    options: Options,
    schedule: Schedule,
    material: Material,
    rollouts: RolloutClient,
    ledger: LedgerWriter,
    board: ProgressBoard,
    recorder: Recorder,
    stop: StopSignal,
    cleanup: ExitStack,
) -> Rank0:
    """Rank 0's own side."""
    scorer = build_scorer(
        options.run.spec.preference,
        on_trouble=lambda trouble: board.update(trouble=trouble, message=trouble),
        stop=stop.requested,
        engine_args=options.run.spec.scorers.engine_args if options.run.spec.scorers else {},
    )
    cleanup.callback(scorer.close)
    rank0 = Rank0(
        options.run,
        schedule,
        prompts=material.training,
        evaluation=material.evaluation,
        rollouts=rollouts,
        scorer=scorer,
        encode_answer=lambda answer: encode_answer(material.tokenizer, answer, max_tokens=options.run.spec.rollout.max_tokens),
        ledger=ledger,
        board=board,
        recorder=recorder,
        stop=stop.requested,
    )
    rank0.remember()
    return rank0


def make_record(
    options: Options,
    ranks: Distributed,
    *,
    compute_dtype: torch.dtype,
    publish_dtype: torch.dtype,
    base_digest: str | None,
    measurement: dict[str, float | str],
) -> RunRecord:
    """What run.json says."""
    return RunRecord(
        run=options.run.to_document(),
        versions={"python": platform.python_version(), **{name: _installed(name) for name in LIBRARIES}},
        machine={
            "processor": platform.processor() or platform.machine(),
            "cores": available_cores(),
            "device": ranks.device.type,
            "threads": torch.get_num_threads(),
            **measurement,
        },
        compute_dtype=_dtype_name(compute_dtype),
        published_dtype=_dtype_name(publish_dtype),
        base_digest=base_digest,
        source_revision=os.environ.get("SPINRUN_SOURCE_REVISION"),
        attempt=options.attempt,
        world_size=ranks.world_size,
    )


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
