"""How requests to a server are written and its replies are read: what all kinds of endpoints have in common."""

from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

Question_contra = TypeVar("Question_contra", contravariant=True)
Answer_co = TypeVar("Answer_co", covariant=True)


class UnusableReplyError(ValueError):
    """The server replied, but not with an answer to the question."""


class Strict(BaseModel):
    """A part of a reply. Unknown fields are ignored; values of another type are refused."""

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
        """The body of a request."""
        ...

    def read(self, question: Question_contra, content: bytes) -> Answer_co:
        """The answer in a reply.

        Raises:
            UnusableReplyError: The reply holds no answer to the question.
            pydantic.ValidationError: It is not a reply of this kind.
        """
        ...

    def adapt(self, complaint: str) -> None:
        """Leave out what a server complains of, from now on, where it is dispensable.

        Args:
            complaint: What the server said as it refused a request, in lower case.
        """
        ...
