"""The run's bearer token, which its processes require of each other."""

import hmac
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from spinrun_protocol.environment import TOKEN_FILE
from spinrun_protocol.wire import TOKEN_HEADER
from spinrun_worker.errors import ConfigurationError


def read_token(environment: Mapping[str, str] = os.environ) -> str:
    """The token of this process's run.

    Raises:
        ConfigurationError: The token's file is not named, cannot be read or is empty. The message names the variable, the path
            and the cause.
    """
    path = environment.get(TOKEN_FILE)
    if path is None:
        raise ConfigurationError(f"{TOKEN_FILE} is not set: it names the file with the run's bearer token")
    try:
        token = Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{TOKEN_FILE}={path} cannot be read: {error}") from error
    if not token:
        raise ConfigurationError(f"{TOKEN_FILE}={path} is empty: write the run's bearer token into it")
    return token


class Bearer:
    """Recognizes requests that carry the token."""

    REFUSAL = f"{TOKEN_HEADER} must be Bearer and the token of this run"

    def __init__(self, token: str) -> None:
        self._wanted = _bytes(f"Bearer {token}")

    def is_shown(self, shown: Sequence[str]) -> bool:
        """Whether a request shows the token, which takes the same time for a wrong one as for the right one.

        Args:
            shown: The values of its headers of that name. Of several, none counts: who reads the first and who reads the last
                would disagree.
        """
        return len(shown) == 1 and hmac.compare_digest(_bytes(shown[0]), self._wanted)


def _bytes(text: str) -> bytes:
    # aiohttp passes bytes of a header that are not UTF-8 as surrogates.
    return text.encode("utf-8", "surrogateescape")
