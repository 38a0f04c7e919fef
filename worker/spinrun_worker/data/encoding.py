"""From conversations to token ids: the chat template, the tokenizer, and the token that ends an answer.

Template and tokenizer come with the model: they may fail on any text, or never end.
"""

import resource
import signal
import threading
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

from jinja2 import TemplateError, TemplateSyntaxError

from spinrun_worker.errors import ConfigurationError
from spinrun_worker.reading import describe, is_panic, reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, Any]]

RENDER_SECONDS = 5.0
"""Processor time that a chat template may take for one conversation: it takes some microseconds, unless it never ends."""
RENDER_BYTES = 2 << 30
"""Memory that it may take."""
MAX_CHARACTERS = 1 << 24
"""Longest text that a chat template may make of a conversation that is not itself as long."""

_QUESTION: dict[str, str] = {"role": "user", "content": "Hello"}
_ANSWER: dict[str, str] = {"role": "assistant", "content": "GoodDayToYou"}


class TextError(ValueError):
    """The chat template or the tokenizer fails on one text. The message says which, and why."""


class Encoder:
    """The chat template and the tokenizer of a model."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", chat_template: str | None) -> None:
        """Look at them.

        Args:
            tokenizer: The model's tokenizer.
            chat_template: The spec's chat template, which takes precedence over the tokenizer's.

        Raises:
            ConfigurationError: There are several chat templates, and none is the default.
        """
        self._tokenizer: Any = tokenizer  # its own types are incomplete
        own = None if chat_template else getattr(self._tokenizer, "chat_template", None)
        self._template: str | None = chat_template or (_default_template(own, self._tokenizer) if own else None)
        self.where = "model.chatTemplate" if chat_template else f"the chat template of {_template_file(self._tokenizer)}"
        """Where the chat template is from."""

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template; without one a prompt is raw text."""
        return self._template is not None

    def render(self, messages: Messages, *, add_generation_prompt: bool = True) -> str:
        """The text of a conversation that the model sees.

        Args:
            messages: The conversation, whose messages have role and content.
            add_generation_prompt: Whether the assistant's next message is begun.

        Raises:
            TextError: The chat template refuses this conversation, or fails on it.
            ConfigurationError: It is not a template, or does not end.
        """
        try:
            with _limits():
                text = self._tokenizer.apply_chat_template(
                    list(messages), chat_template=self._template, add_generation_prompt=add_generation_prompt, tokenize=False
                )
        except TemplateSyntaxError as error:
            raise ConfigurationError(
                f"{self.where}: line {error.lineno}: {describe(error)}: correct it, or set model.chatTemplate"
            ) from error
        except (_OutOfTimeError, MemoryError) as error:
            what = f"{RENDER_BYTES >> 30} GiB of memory" if isinstance(error, MemoryError) else f"{RENDER_SECONDS:g} s to compute"
            raise ConfigurationError(self._too_large(f"takes more than {what} for", messages)) from error
        except TemplateError as error:
            raise TextError(f"{self.where} refuses it: {describe(error)}") from error
        except Exception as error:
            raise TextError(f"{self.where} fails on it: {describe(error)}") from error
        if not isinstance(text, str):
            raise TextError(f"{self.where} gives a {type(text).__name__} for it, not text")
        if len(text) > MAX_CHARACTERS > 2 * sum(len(str(message)) for message in messages):
            raise ConfigurationError(self._too_large(f"makes {len(text)} characters of", messages))
        return text

    def encode(self, texts: Sequence[str]) -> list[tuple[int, ...] | TextError]:
        """Token ids of each text, or why it has none. A chat template writes its special tokens itself; without one the tokenizer
        adds them."""
        if not texts:
            return []
        try:
            return list(self._encode(texts))
        except BaseException as error:
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            if len(texts) == 1:
                return [TextError(f"the tokenizer fails on it: {describe(error)}")]
        # One text fails all that are encoded with it.
        return [outcome for text in texts for outcome in self.encode([text])]

    def end_of_answer(self, ends: Collection[int] | None) -> int:
        """The token with which a complete answer ends: the one that the chat template writes after an assistant's message.

        Whitespace before it is left out. Some templates write it only as the beginning of the next message.

        Args:
            ends: Tokens at which the rollouts stop; None takes the template's word.

        Raises:
            ConfigurationError: There is no such token, or the rollouts would write on after it.
        """
        eos = cast("int | None", self._tokenizer.eos_token_id)
        if eos is None and not ends:
            raise ConfigurationError(
                "model.tokenizer has no end token, which true answers need: name another, or set its eos_token"
            )
        if not self.has_template:
            return eos if eos is not None else min(ends or ())
        written: list[int] = []
        known = self._special_tokens() if ends is None else ends
        for conversation in ([_QUESTION, _ANSWER], [_QUESTION, _ANSWER, _QUESTION]):
            token = self._token_after_answer(conversation, known)
            if token in known:
                return cast(int, token)
            written += [] if token is None else [token]
        raise ConfigurationError(self._without_end(written, known))

    def _too_large(self, what: str, messages: Messages) -> str:
        return f"{self.where} {what} one conversation ({str(messages)[:200]}): correct it, or set model.chatTemplate"

    def _encode(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        encoded = self._tokenizer(list(texts), add_special_tokens=not self.has_template)
        return [tuple(map(int, tokens)) for tokens in cast("list[list[int]]", encoded["input_ids"])]

    def _special_tokens(self) -> set[int]:
        added = cast("Mapping[int, Any]", self._tokenizer.added_tokens_decoder)
        return {token for token, entry in added.items() if entry.special}

    def _token_after_answer(self, conversation: Messages, ends: Collection[int]) -> int | None:
        """The first token after the answer that is an end, or more than whitespace."""
        with reading(self.where, remedy="true answers need the token that it ends an assistant's message with"):
            try:
                text = self.render(conversation, add_generation_prompt=False)
            except TextError as error:
                if len(conversation) > 2:
                    return None
                raise ConfigurationError(
                    f"{error}, which is an assistant's message: method spin needs one that does not"
                ) from error
            _, found, rest = text.rpartition(_ANSWER["content"])
            tokens = cast("list[int]", self._tokenizer(rest, add_special_tokens=False)["input_ids"]) if found else []
            for token in tokens:
                if token in ends or str(self._tokenizer.decode([token])).strip():
                    return token
        return None

    def _without_end(self, written: Sequence[int], ends: Collection[int]) -> str:
        stops = ", ".join(self._shown(token) for token in sorted(ends))
        said = f"by {self._shown(written[0])}" if written else "by no token of its own"
        return (
            f"{self.where} ends an assistant's message {said}, and the rollouts stop at {stops} (the tokenizer's eos_token and "
            "eos_token_id of generation_config.json): true answers would end differently than the model's own. Add the token to "
            "eos_token_id, or set model.chatTemplate to one that ends an assistant's message with a token of these"
        )

    def _shown(self, token: int) -> str:
        return f"{self._tokenizer.convert_ids_to_tokens(token)!r} ({token})"


def _default_template(template: object, tokenizer: Any) -> str:
    if isinstance(template, Mapping):
        templates = cast("Mapping[str, object]", template)
        if "default" not in templates:
            names = ", ".join(sorted(map(str, templates)))
            raise ConfigurationError(
                f"{_template_file(tokenizer)} has several chat templates ({names}) and none that is named default: set "
                "model.chatTemplate to the text of the one to use"
            )
        template = templates["default"]
    if not isinstance(template, str):
        raise ConfigurationError(
            f"{_template_file(tokenizer)} has a chat template of type {type(template).__name__}, not text: set model.chatTemplate"
        )
    return template


def _template_file(tokenizer: Any) -> str:
    """Where a tokenizer has its chat template from, as far as that is known."""
    source = str(getattr(tokenizer, "name_or_path", "") or "the tokenizer")
    folder = Path(source)
    for name in ("chat_template.jinja", "chat_template.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            return str(folder / name)
    return source


class _OutOfTimeError(BaseException):
    """A chat template has taken too long. Not an Exception: Jinja swallows those where it computes constants in advance."""


@contextmanager
def _limits() -> Generator[None]:
    """Ends the block by an exception when it computes for too long, or takes too much memory.

    In the main thread only: elsewhere there are no limits.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: FrameType | None) -> None:
        raise _OutOfTimeError

    handler, (soft, hard) = signal.signal(signal.SIGVTALRM, end), resource.getrlimit(resource.RLIMIT_AS)
    limit = _address_space() + RENDER_BYTES
    if soft == resource.RLIM_INFINITY or limit < soft:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    signal.setitimer(signal.ITIMER_VIRTUAL, RENDER_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, handler)


def _address_space() -> int:
    """Bytes of this process's address space."""
    pages = Path("/proc/self/statm").read_bytes().split()[0]
    return int(pages) * resource.getpagesize()
