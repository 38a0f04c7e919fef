"""What rank 0 reads before anything else can be known: the data, and the model's tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from spinrun_api.spec import MixedSource, Model, SpinRunSpec
from spinrun_worker.data import Encoder, Part, PromptSet, PromptStream, check_disjoint, load_prompts
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.model_files import CONFIG, GENERATION_CONFIG, find_file, read_object
from spinrun_worker.reading import reading
from spinrun_worker.trainer.model.files import check_files

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
"""What is looked at by name before transformers reads it, which would say what is wrong, but not where."""


@dataclass(frozen=True)
class TrainingData:
    """Prompts as the model reads them."""

    tokenizer: PreTrainedTokenizerBase
    training: Mapping[str, PromptSet]
    """Those of each source, by where it stands in the spec."""
    evaluation: PromptSet | None
    """The held-out ones."""
    end_token: int | None = None
    """What true answers end with; None where the method does not train on them."""


def load_training_data(spec: SpinRunSpec) -> TrainingData:
    """Look at the model's files, and read tokenizer and data.

    Raises:
        ConfigurationError: Names the field that cannot be used.
        RunError: A source cannot be reached now.
    """
    check_files(spec.model)
    tokenizer = load_tokenizer(spec.model)
    load = partial(
        load_prompts, tokenizer=tokenizer, chat_template=spec.model.chat_template, max_prompt_tokens=spec.max_prompt_tokens
    )
    prompts, held_out, evaluation = spec.data.prompts, spec.data.evaluation, None
    needs_answer, exam_needs_answer = spec.preference.needs_answer, spec.preference.needs_answer_in_evaluation
    with reading("data", remedy="repair the data set, the tokenizer or the chat template, or name another"):
        training = {
            block: load(source, block=block, seed=prompts.shuffle_seed, order=prompts.order, needs_answer=needs_answer)
            for block, source in prompts.each.items()
        }
        if held_out is not None:
            evaluation = load(held_out, block="data.evaluation", seed=held_out.shuffle_seed, needs_answer=exam_needs_answer)
    if len(training) > 1:
        training = _named(training)
    if evaluation is not None:
        check_disjoint(training.values(), evaluation)
    end_token = find_end_token(spec.model, tokenizer) if spec.method.name == "spin" else None
    return TrainingData(tokenizer, training, evaluation, end_token)


def _named(training: Mapping[str, PromptSet]) -> dict[str, PromptSet]:
    """The prompts of several sources, with the name of its source in each one's id: SOURCE/ROW."""
    return {
        block: replace(prompts, records=tuple(replace(each, id=f"{name}/{each.id}") for each in prompts.records))
        for (block, prompts), name in zip(training.items(), source_names(training), strict=True)
    }


def source_names(training: Mapping[str, PromptSet]) -> list[str]:
    """A short name for each source, unlike all others: the last part of what the spec calls it, with its configuration or its
    place where others have the same."""
    sources = [prompts.source for prompts in training.values()]
    names = [source.source.removesuffix(source.suffix).rpartition("/")[2] for source in sources]
    names = [
        f"{name}-{source.config}" if source.config is not None and names.count(name) > 1 else name
        for name, source in zip(names, sources, strict=True)
    ]
    return names if len({*names}) == len(names) else [f"{index}-{name}" for index, name in enumerate(names)]


def make_stream(data: TrainingData, seed: int) -> PromptStream:
    """The prompts in the order in which windows draw them. seed: the spec's shuffleSeed."""
    names = source_names(data.training) if len(data.training) > 1 else [""]
    return PromptStream(
        [
            Part(prompts.records, name, prompts.source.weight if isinstance(prompts.source, MixedSource) else 1.0, prompts.ranks)
            for prompts, name in zip(data.training.values(), names, strict=True)
        ],
        seed,
    )


def load_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with the spec's chat template where it names one.

    Raises:
        ConfigurationError: There is none that can be loaded.
        RunError: It cannot be reached now.
    """
    source, field = model.tokenizer or model.source, "model.tokenizer" if model.tokenizer else "model.source"
    with reading(
        f"{field} {source!r} has no tokenizer that can be loaded",
        remedy="restore tokenizer.json and tokenizer_config.json there, or name another as model.tokenizer",
    ):
        if Path(source).is_absolute() and not Path(source).is_dir():
            raise ConfigurationError(f"{field}: {source} is not a folder: correct the path")
        revision = "main" if model.tokenizer or not model.revision else model.revision
        for name in TOKENIZER_FILES:
            if path := find_file(source, revision, name):
                read_object(path, field)
        tokenizer = cast(
            PreTrainedTokenizerBase,
            AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=model.trust_remote_code),
        )
    if model.chat_template is not None:
        tokenizer.chat_template = model.chat_template
    return tokenizer


def find_end_token(model: Model, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that true answers end with, which is one that the model's own answers end with, too.

    Raises:
        ConfigurationError: There is none.
        RunError: The model's files cannot be reached now.
    """
    with reading(f"model.source {model.source!r}", remedy=f"repair {GENERATION_CONFIG}"):
        ends = {*_end_ids(cast(Any, tokenizer).eos_token_id)}
        for name in (GENERATION_CONFIG, CONFIG):
            path = find_file(model.source, model.revision, name)
            if path is not None:
                # As vLLM does: the one where there is no other.
                ends |= _end_ids(read_object(path, "model.source").get("eos_token_id"))
                break
        return Encoder(tokenizer, model.chat_template).end_of_answer(ends)


def _end_ids(value: object) -> set[int]:
    """One id, several, or none."""
    values = cast("list[object]", value) if isinstance(value, list) else [value]
    return {each for each in values if isinstance(each, int)}


def check_vocabulary(data: TrainingData, size: int) -> None:
    """Compare what the tokenizer gives with what the model knows.

    Args:
        data: The prompts that are used.
        size: Number of tokens that the model knows.

    Raises:
        ConfigurationError: A prompt, or the end of true answers, has a token that the model does not know.
    """
    blocks = {**data.training, **({"data.evaluation": data.evaluation} if data.evaluation is not None else {})}
    for block, prompts in blocks.items():
        for record in prompts.records:
            if max(record.tokens) >= size:
                _refuse_token(f"row {record.id} of {block} has", max(record.tokens), size)
    if data.end_token is not None and data.end_token >= size:
        _refuse_token("true answers end with", data.end_token, size)


def _refuse_token(who: str, token: int, size: int) -> None:
    raise ConfigurationError(
        f"model.tokenizer: {who} the token {token}, and model.source knows {size} tokens (vocab_size of config.json): name the "
        "tokenizer that belongs to the model"
    )
