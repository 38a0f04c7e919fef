"""What rank 0 reads before anything else can be known: the data, and the model's tokenizer."""

from dataclasses import dataclass
from typing import cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from spinrun_api.spec import Model, SpinRunSpec
from spinrun_worker.data import PromptSet, check_disjoint, load_prompts
from spinrun_worker.errors import ConfigurationError


@dataclass(frozen=True)
class TrainingData:
    """Prompts as the model reads them."""

    tokenizer: PreTrainedTokenizerBase
    training: PromptSet
    evaluation: PromptSet | None
    """The held-out ones."""


def load_training_data(spec: SpinRunSpec) -> TrainingData:
    """Read tokenizer and data.

    Raises:
        ConfigurationError: Names the field that cannot be used.
        RunError: A source cannot be reached now.
    """
    tokenizer = load_tokenizer(spec.model)
    prompt_sets = [
        load_prompts(
            source,
            tokenizer=tokenizer,
            chat_template=spec.model.chat_template,
            max_prompt_tokens=spec.max_prompt_tokens,
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
    return TrainingData(tokenizer, training, evaluation)


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
