"""What only rank 0 does in a window: ask the rollouts, score and pair the answers, write it all down."""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from spinrun_api.run import SpinRun
from spinrun_protocol.ledger import Manifest, Reference
from spinrun_protocol.wire import Sample, SampleGroup, Sampling, VersionWanted
from spinrun_worker.data import PromptSet, PromptStream
from spinrun_worker.errors import NoPairsError
from spinrun_worker.ledger import LedgerWriter, TornError, read_pairs, read_samples, write_pairs, write_samples
from spinrun_worker.methods.pairing import Pairing, pair_groups, pair_with_base, pair_with_truths
from spinrun_worker.records import Pair, PromptRecord, ScoredGroup
from spinrun_worker.rewards import RewardFunction, ScoreResult
from spinrun_worker.trainer.reporting.board import ProgressBoard
from spinrun_worker.trainer.reporting.recorder import Recorder
from spinrun_worker.trainer.sampling.client import RolloutClient
from spinrun_worker.trainer.schedule import Schedule
from spinrun_worker.trainer.storage.base_answers import BaseAnswers
from spinrun_worker.trainer.storage.lineage import BASE, PAIRS, SAMPLES, check_window, replayed_file

logger = logging.getLogger(__name__)

MAX_EMPTY_WINDOWS = 3
"""Windows in a row without any pair after which the run ends: more of the same will not teach it anything."""


Answers = list[tuple[PromptRecord, SampleGroup]]


class Question:
    """Prompts that the rollouts are answering."""

    def __init__(self, prompts: Sequence[PromptRecord], groups: Future[list[SampleGroup]]) -> None:
        self._prompts, self._groups = prompts, groups
        self._started, self._ended = time.monotonic(), math.inf
        groups.add_done_callback(lambda _: setattr(self, "_ended", time.monotonic()))

    def wait(self) -> Answers:
        """The prompts that were answered, in order, with their samples. Raises what the generation raises."""
        by_id = {group.id: group for group in self._groups.result()}
        return [(prompt, by_id[prompt.id]) for prompt in self._prompts if prompt.id in by_id]

    @property
    def seconds(self) -> float:
        """How long it took to answer, or has taken until now."""
        return min(self._ended, time.monotonic()) - self._started

    def cancel(self) -> None:
        """Ask no more."""
        self._groups.cancel()


@dataclass(frozen=True)
class Asked:
    """What is being answered at this moment, and by whom."""

    weights: Manifest
    samples: Question | None
    evaluation: Question | None

    def cancel(self) -> None:
        """Ask no more."""
        for question in filter(None, (self.samples, self.evaluation)):
            question.cancel()


@dataclass(frozen=True)
class Sampled:
    """A window's answers, with rewards, on their way to the ledger."""

    weights: Manifest
    """Those that gave the answers."""
    groups: Sequence[ScoredGroup]
    base: Sequence[ScoredGroup]
    """Answers of version 0 to the same prompts, where they are paired with."""


class Rank0:
    """The side of the trainer that faces rollouts, data and people."""

    def __init__(
        self,
        run: SpinRun,
        schedule: Schedule,
        *,
        prompts: PromptSet,
        evaluation: PromptSet | None,
        rollouts: RolloutClient,
        scorer: RewardFunction,
        encode_answer: Callable[[str], tuple[int, ...]],
        ledger: LedgerWriter,
        board: ProgressBoard,
        recorder: Recorder,
        stop: Callable[[], bool],
    ) -> None:
        """encode_answer: token ids of a true answer, for methods that train on them."""
        self.run = run
        self.schedule = schedule
        self.stream = PromptStream(prompts.records, run.spec.data.prompts.shuffle_seed)
        self.evaluation = evaluation
        self.rollouts = rollouts
        self.scorer = scorer
        self.encode_answer = encode_answer
        self.ledger = ledger
        self.board = board
        self.recorder = recorder
        self.stop = stop
        self._asked: Asked | None = None
        self._heard: tuple[Manifest, Answers, float] | None = None
        self._sampled: Sampled | None = None
        self.base = BaseAnswers(ledger, schedule, self.stream) if run.spec.method.pairing == "bestVsBase" else None
        self._figures: dict[str, float] = {}

    def remember(self) -> None:
        """Show the evaluations of earlier attempts again."""
        for number in self.ledger.numbers("evaluation"):
            groups = read_samples(self.ledger.layout.evaluation(number) / SAMPLES)
            accuracy = mean_reward(groups, by_rule=self._is_by_rule)
            self.board.evaluated(window=number, version=number, accuracy=accuracy)

    def activate(self, weights: Manifest) -> None:
        """Bring a version to the rollouts. Returns once the first one serves it; the others follow while that one generates."""
        with self.board.during("activate"):
            self.rollouts.activate(VersionWanted(version=weights.version, manifest=weights), stop=self.stop)
        self.board.update(version=weights.version)
        if self.base is not None and weights.version == 0:
            with self.board.during("generate"):
                self.base.collect(weights, lambda prompts: self._start(prompts, weights, self._sampling(n=1), told=True).wait())

    def recall(self, number: int, weights: Manifest) -> dict[int, list[Pair]] | None:
        """The window's own pairs and those that it replays, by the window they come from, as `commit` wrote them.

        weights: those that it begins with. None when the ledger does not hold the window whole, sampled from exactly the weights
        that are to answer its prompts, and compared with its reference.
        """
        try:
            check_window(self.ledger, self.schedule, weights)
        except TornError as error:
            if number in self.ledger.present("window"):
                logger.info("window %d again: %s", number, error)
            return None
        directory = self.ledger.layout.window(number)
        groups = read_samples(directory / SAMPLES)
        own = read_pairs(directory / PAIRS)
        replayed = {window: read_pairs(directory / replayed_file(window)) for window in self.schedule.replayed(number)}
        base = read_samples(directory / BASE) if self.base is not None else []
        self._show(groups, self._pair(groups, base), replayed)
        return {number: own, **replayed}

    def holds(self, window: int, sampler: Manifest) -> bool:
        """Whether the ledger has a window whole and sampled from these weights."""
        try:
            return self.ledger.verify("window", window).parent == sampler.digest
        except TornError:
            return False

    def ask(self, weights: Manifest, *, sample: int | None) -> None:
        """Have the rollouts, which serve these weights, begin to answer the prompts of the window `sample`, if any, and the
        held-out ones, if it is their turn: both at once, so that vLLM's batch stays full to the end. `hear` waits for them."""
        samples = evaluation = None
        if sample is not None:
            logprobs = self.run.spec.method.reference_logprobs == "rollouts"
            sampling = self._sampling(n=self.run.spec.rollout.samples_per_prompt, logprobs=logprobs)
            samples = self._start(self.stream.draw(*self.schedule.prompts(sample)), weights, sampling, told=True)
        if self.evaluation is not None and self._is_to_be_evaluated(weights):
            greedy = Sampling(n=1, temperature=0.0, max_tokens=self.run.spec.rollout.max_tokens)
            evaluation = self._start(self.evaluation.records, weights, greedy, told=sample is None)
        self._asked = Asked(weights, samples, evaluation)

    @property
    def has_heard(self) -> bool:
        """Whether there are samples for `prefer`."""
        return self._heard is not None

    def unevaluated(self, version: int) -> Manifest | None:
        """The weights of a version, if the ledger holds them and not their answers to the held-out prompts, whose turn it was."""
        try:
            weights = self.ledger.verify("weights", version, hashes=False)
        except TornError:
            return None
        return weights if self._is_to_be_evaluated(weights) else None

    def hear(self) -> None:
        """Wait for what was asked, if anything was: write the evaluation down, and keep the samples for `prefer`."""
        asked = self._asked
        if asked is None:
            return
        if asked.samples is not None:
            with self.board.during("generate"):
                self._heard = asked.weights, asked.samples.wait(), asked.samples.seconds
        if self._evaluation_is_due(asked.weights.version):
            with self.board.during("evaluate"):
                self._evaluate(asked.evaluation.wait() if asked.evaluation else None, asked.weights)
        self._asked = None

    def hush(self) -> None:
        """Give up what was asked: the trainer does not go on."""
        if self._asked is not None:
            self._asked.cancel()

    def prefer(self, number: int) -> dict[int, list[Pair]]:
        """Score the samples just heard, which are the window's, and make pairs.

        Returns, by the window that they come from, its own first, the window's pairs and those that it replays, which still lack
        their log-probs under the window's reference, or have those of the rollouts.
        """
        assert self._heard is not None, "hear before you prefer"
        weights, answers, seconds = self._heard
        self._heard = None
        with self.board.during("prefer"):
            groups, base = self._score(answers)
            pairing = self._pair(groups, base)
        self._sampled = Sampled(weights, groups, base)
        replayed = {window: self._own_pairs(window) for window in self.schedule.replayed(number)}
        self._show(groups, pairing, replayed)
        self._figures |= throughput_figures(groups, seconds)
        self.board.update_metrics(samples_per_second=self._figures["throughput/samples_per_second"])
        return {number: list(pairing.pairs), **replayed}

    def commit(self, number: int, pairs: Mapping[int, Sequence[Pair]], reference: Manifest) -> None:
        """Write the window just sampled to the ledger: its pairs and those it replays now have log-probs of the reference."""
        assert self._sampled is not None, "prefer before you commit"
        sampled, self._sampled = self._sampled, None
        directory = self.ledger.begin("window", number)
        files = [write_samples(directory / SAMPLES, sampled.groups), write_pairs(directory / PAIRS, pairs[number])]
        files += [write_pairs(directory / replayed_file(window), pairs[window]) for window in self.schedule.replayed(number)]
        files += [write_samples(directory / BASE, sampled.base)] if self.base is not None else []
        self.ledger.commit(
            "window",
            number,
            files,
            step=self.schedule.first_step(number),
            version=sampled.weights.version,
            parent=sampled.weights.digest,
            reference=Reference(version=reference.version, digest=reference.digest),
        )
        self._refuse_endless_ties(number)

    def report_step(self, window: int, step: int, figures: dict[str, float]) -> None:
        """Write down one optimizer step; step counts the steps done with it."""
        self.recorder.record("step", figures, window=window, step=step, version=self.schedule.sampler(window))
        self.board.update_metrics(loss=figures["loss"], margin=figures["rewards/margins"])

    def finish_window(self, number: int, step: int) -> None:
        """Write down a window's figures once its last step is done."""
        counts = {f"rollouts/{name}_total": float(count) for name, count in self.rollouts.counts.items()}
        counts |= {f"preference/{name}_total": float(count) for name, count in self.scorer.counts.items()}
        figures = self._figures | counts | self.board.take_seconds()
        self.recorder.record("window", figures, window=number, step=step, version=self.schedule.sampler(number))
        logger.info(
            "window %d of %d done: %d pairs, %d ties, reward %.3f",
            number + 1,
            self.schedule.windows,
            figures["pairs"],
            figures["ties"],
            figures["reward/mean"],
        )

    def _refuse_endless_ties(self, number: int) -> None:
        """Raise NoPairsError when this window and the ones before it gave no pair."""
        recent = range(number - MAX_EMPTY_WINDOWS + 1, number + 1)
        if recent[0] < 0 or any(self._num_pairs(window) for window in recent):
            return
        if self.run.spec.method.name == "spin":
            raise NoPairsError(
                f"windows {recent[0]} to {recent[-1]} gave no pair: the model gives the true answer to every prompt, and has "
                f"nothing left to learn from spec.data.prompts. Look at the samples (windows/{number:06d}/samples.parquet)"
            )
        raise NoPairsError(
            f"windows {recent[0]} to {recent[-1]} gave no pair: every prompt's answers have rewards that are equal, or closer "
            f"than spec.method.minMargin ({self.run.spec.method.min_margin:g}). "
            f"Look at the samples (windows/{number:06d}/samples.parquet): do answers match "
            f"spec.preference.{self.run.spec.preference.name}? Are prompts too easy or too hard, is spec.rollout.maxTokens "
            f"({self.run.spec.rollout.max_tokens}) too short, spec.rollout.temperature too low?"
        )

    def _num_pairs(self, window: int) -> int:
        return len(read_pairs(self.ledger.layout.window(window) / PAIRS))

    def _own_pairs(self, window: int) -> list[Pair]:
        """Pairs of an earlier window, without its reference. Raises TornError when a byte of it has changed."""
        self.ledger.verify("window", window)
        pairs = read_pairs(self.ledger.layout.window(window) / PAIRS)
        return [pair.without_reference() for pair in pairs]

    @property
    def _is_by_rule(self) -> bool:
        return self.run.spec.preference.scoring is not None

    def _evaluation_is_due(self, window: int) -> bool:
        evaluation = self.run.spec.data.evaluation
        return evaluation is not None and (window % evaluation.every_windows == 0 or window == self.schedule.windows)

    def _is_to_be_evaluated(self, weights: Manifest) -> bool:
        return self._evaluation_is_due(weights.version) and not self._is_evaluated(weights)

    def _evaluate(self, answers: Answers | None, weights: Manifest) -> None:
        """Note the accuracy of a version. answers: to the held-out prompts; None: they are in the ledger already."""
        number = weights.version
        step = self.schedule.first_step(number)
        if answers is None:
            groups = read_samples(self.ledger.layout.evaluation(number) / SAMPLES)
        else:
            groups = self._scored(answers, self.scorer.grade(_samples(answers)))
            directory = self.ledger.begin("evaluation", number)
            files = [write_samples(directory / SAMPLES, groups)]
            self.ledger.commit("evaluation", number, files, step=step, version=number, parent=weights.digest)
        accuracy = mean_reward(groups, by_rule=self._is_by_rule)
        figures = {"accuracy": accuracy, "num_prompts": float(len(groups)), **length_figures(groups)}
        self.board.evaluated(window=number, version=number, accuracy=accuracy)
        self.recorder.record("evaluation", figures, window=number, step=step, version=number)
        logger.info("version %d: accuracy %.3f over %d prompts", number, accuracy, len(groups))

    def _is_evaluated(self, weights: Manifest) -> bool:
        """Whether the evaluation is in the ledger, whole and of exactly these weights."""
        try:
            manifest = self.ledger.verify("evaluation", weights.version)
        except TornError:
            return False
        if manifest.parent != weights.digest:
            logger.info("evaluation %d was sampled from other weights: again", weights.version)
        return manifest.parent == weights.digest

    def _show(self, groups: Sequence[ScoredGroup], pairing: Pairing, replayed: Mapping[int, Sequence[Pair]]) -> None:
        self._figures = window_figures(groups, pairing, by_rule=self._is_by_rule)
        if replayed:
            self._figures |= {"replayed_pairs": float(sum(map(len, replayed.values())))}
        self.board.update_metrics(reward=self._figures["reward/mean"])

    def _start(self, prompts: Sequence[PromptRecord], weights: Manifest, sampling: Sampling, *, told: bool) -> Question:
        """Begin to have prompts answered. told: whether the progress shown is theirs."""
        if told:
            self.board.update(prompts_done=0, prompts_total=len(prompts))
        groups = self.rollouts.start(
            prompts,
            version=weights.version,
            digest=weights.digest,
            sampling=sampling,
            on_progress=lambda done: self.board.update(prompts_done=done) if told else None,
            stop=self.stop,
        )
        return Question(prompts, groups)

    def _scored(self, answers: Sequence[tuple[PromptRecord, SampleGroup]], result: ScoreResult) -> list[ScoredGroup]:
        for message in result.messages:
            logger.warning("%s", message)
        return [
            ScoredGroup(prompt, group.samples, rewards) for (prompt, group), rewards in zip(answers, result.rewards, strict=True)
        ]

    def _sampling(self, *, n: int, logprobs: bool = False) -> Sampling:
        """As in training. n: answers to a prompt."""
        rollout = self.run.spec.rollout
        return Sampling(
            n=n, temperature=rollout.temperature, top_p=rollout.top_p, max_tokens=rollout.max_tokens, logprobs=logprobs
        )

    def _score(self, answers: Sequence[tuple[PromptRecord, SampleGroup]]) -> tuple[list[ScoredGroup], list[ScoredGroup]]:
        """The window's own answers with their rewards, and the base answers that were scored among them."""
        if self.base is None:
            return self._scored(answers, self.scorer.score(_samples(answers))), []
        of_base = self.base.of(prompt for prompt, _ in answers)
        together = [(prompt, _with_sample(group, of_base.get(prompt.id))) for prompt, group in answers]
        scored = self._scored(together, self.scorer.score(_samples(together)))
        divided = [_divided(each, len(group.samples)) for each, (_, group) in zip(scored, answers, strict=True)]
        return [own for own, _ in divided], [base for _, base in divided]

    def _pair(self, groups: Sequence[ScoredGroup], base: Sequence[ScoredGroup]) -> Pairing:
        if self.run.spec.method.name == "spin":
            return pair_with_truths(groups, self.encode_answer)
        if self.base is not None:
            return pair_with_base(groups, base, self.run.spec.method)
        spec = self.run.spec
        return pair_groups(groups, spec.method, seed=spec.data.prompts.shuffle_seed, are_win_rates=spec.preference.compares)


def _samples(answers: Sequence[tuple[PromptRecord, SampleGroup]]) -> list[tuple[PromptRecord, Sequence[Sample]]]:
    return [(prompt, group.samples) for prompt, group in answers]


def _with_sample(group: SampleGroup, sample: Sample | None) -> SampleGroup:
    return group if sample is None else group.model_copy(update={"samples": (*group.samples, sample)})


def _divided(group: ScoredGroup, count: int) -> tuple[ScoredGroup, ScoredGroup]:
    """The first `count` samples with their rewards, and the others."""
    first = ScoredGroup(group.prompt, group.samples[:count], group.rewards[:count])
    return first, ScoredGroup(group.prompt, group.samples[count:], group.rewards[count:])


def mean_reward(groups: Sequence[ScoredGroup], *, by_rule: bool = True) -> float:
    """Mean reward over all samples, 0 without any.

    by_rule: a sample without a reward counts as 0, as an answer that a rule cannot judge is not right. Models have other reasons,
    and rewards of any size: there it does not count.
    """
    rewards = [reward or 0.0 for group in groups for reward in group.rewards if by_rule or reward is not None]
    return sum(rewards) / len(rewards) if rewards else 0.0


def length_figures(groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """Length of the answers in tokens, and the share that was cut."""
    samples = [sample for group in groups for sample in group.samples]
    if not samples:
        return {}
    lengths = [len(sample.tokens) for sample in samples]
    return {
        "response_length/mean": sum(lengths) / len(lengths),
        "response_length/max": float(max(lengths)),
        "response_length/truncated": sum(sample.finish_reason == "length" for sample in samples) / len(samples),
    }


def throughput_figures(groups: Sequence[ScoredGroup], seconds: float) -> dict[str, float]:
    """Samples and completion tokens per second of generation."""
    samples = [sample for group in groups for sample in group.samples]
    return {
        "throughput/samples_per_second": len(samples) / seconds,
        "throughput/tokens_per_second": sum(len(sample.tokens) for sample in samples) / seconds,
    }


def window_figures(groups: Sequence[ScoredGroup], pairing: Pairing, *, by_rule: bool = True) -> dict[str, float]:
    """What a window's samples look like, by the names of METHODS."""
    return {
        "reward/mean": mean_reward(groups, by_rule=by_rule),
        "samples": float(sum(len(group.samples) for group in groups)),
        "pairs": float(len(pairing.pairs)),
        "ties": float(pairing.ties),
        "identical": float(pairing.identical),
        "unrated": float(pairing.unrated),
        "dropped_samples": float(pairing.dropped_samples),
        **length_figures(groups),
    }
