"""What a server is asked and how its replies are read: what all kinds of endpoints have in common."""

import re
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Question_contra = TypeVar("Question_contra", contravariant=True)
Answer_co = TypeVar("Answer_co", covariant=True)


class UnusableReplyError(ValueError):
    """The server replied, but not with an answer to the question."""


class Strict(BaseModel):
    """A part of a reply. Unknown fields are ignored; no value of another type is taken."""

    model_config = ConfigDict(strict=True)


class Usage(Strict):
    """Tokens that a request was charged for."""

    prompt_tokens: int = Field(default=0, ge=0, le=1_000_000_000)
    completion_tokens: int | None = Field(default=None, ge=0, le=1_000_000_000)


class Reply(Strict):
    """What replies of all kinds have in common."""

    usage: Usage | None = None


class Dialect(Protocol[Question_contra, Answer_co]):
    """How questions and answers of a kind look on the wire."""

    path: str
    """Added to the endpoint's URL."""

    def body(self, question: Question_contra) -> dict[str, Any]:
        """The request."""
        ...

    def read(self, question: Question_contra, content: bytes) -> Answer_co:
        """The answer in a reply. Raises UnusableReplyError or pydantic's ValidationError when there is none."""
        ...

    def adapt(self, complaint: str) -> None:
        """The server refuses a request, saying this: leave out what it complains of from now on, if it can be done without."""
        ...


def filled(template: str, **texts: str) -> str:
    """The template with the texts in place of their names in braces; what looks like a placeholder in a text stays as it is."""
    return re.sub(rf"\{{({'|'.join(texts)})\}}", lambda match: texts[match[1]], template)
