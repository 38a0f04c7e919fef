"""How a conversation and the answers to it are written into a template's text, so that no answer can pass for a part of it.

A conversation of more than one message is written as

    <message role="system">
    Answer in German.
    </message>

    <message role="user">
    …

In every text that is filled in, the tags that are the template's or the conversation's own have &lt; in place of <. In answers
the control tokens of chat templates, such as <|im_end|>, are taken apart: spelled out, they would become true ones.
"""

import re
from collections.abc import Collection, Sequence
from functools import lru_cache

from spinrun_worker.records import Message, is_single, message_text

TAG = "message"

_NAMED_TAG = re.compile(r"</?([A-Za-z][\w.-]*)")
_CONTROL_TOKEN = re.compile(r"<([|\N{FULLWIDTH VERTICAL LINE}])([^<>\s]{1,64})\1>|<(?=(?:start|end)_of_turn>)")


def as_text(messages: Sequence[Message]) -> str:
    """A conversation as one text: of a single message of a user its text as it is, of any other every message with its role."""
    if is_single(messages):
        return message_text(messages[0])
    return "\n\n".join(_tagged(message) for message in messages)


def filled(template: str, *, prompt: str, **answers: str) -> str:
    """The template with texts in place of their names in braces. What looks like a placeholder inside a text stays as it is.

    Args:
        template: Text with {prompt} and the names of the answers.
        prompt: What is answered, as as_text writes it.
        **answers: The answers, by name.
    """
    tags = _tags(template)
    own = {TAG} if f"<{TAG} role=" in prompt else set[str]()
    texts = {name: without_tags(without_control_tokens(answer), tags | own) for name, answer in answers.items()}
    texts["prompt"] = without_tags(prompt, tags - own)
    return re.sub(rf"\{{({'|'.join(texts)})\}}", lambda match: texts[match[1]], template)


def without_tags(text: str, tags: Collection[str]) -> str:
    """The text with &lt; where one of these tags would begin, in whatever case and with whatever spaces."""
    if not tags:
        return text
    names = "|".join(re.escape(tag) for tag in sorted(tags))
    return re.sub(rf"<(?=\s*(?:/\s*)?(?:{names})(?![\w.-]))", "&lt;", text, flags=re.IGNORECASE)


def without_control_tokens(text: str) -> str:
    """The text with spaces in what a tokenizer would take for a control token: <| im_end |>."""
    return _CONTROL_TOKEN.sub(lambda match: f"<{match[1]} {match[2]} {match[1]}>" if match[1] else "< ", text)


def _tagged(message: Message) -> str:
    role = re.sub(r"[^\w.-]", "_", message["role"])
    return f'<{TAG} role="{role}">\n{without_tags(message_text(message), {TAG})}\n</{TAG}>'


@lru_cache(maxsize=16)
def _tags(template: str) -> frozenset[str]:
    return frozenset(name.lower() for name in _NAMED_TAG.findall(template))
