"""The run's token: a file that cannot give one is the user's to correct, and retrying would not help."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from spinrun_protocol.environment import TOKEN_FILE
from spinrun_worker.bearer import Bearer, read_token
from spinrun_worker.errors import ConfigurationError


def test_the_token_is_the_file_without_white_space_around_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    assert read_token({TOKEN_FILE: str(tmp_path / "token")}) == "secret"


def test_a_token_that_no_variable_names_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match=f"{TOKEN_FILE} is not set"):
        read_token({})


@pytest.mark.parametrize(
    ("prepare", "cause"),
    [
        pytest.param(lambda _: None, "cannot be read: .*No such file", id="missing"),
        pytest.param(lambda path: path.mkdir(), "cannot be read: .*Is a directory", id="unreadable"),
        pytest.param(lambda path: path.write_text(" \n"), "is empty: write the run's bearer token into it", id="empty"),
        pytest.param(lambda path: path.write_bytes(b"\xff\xfe"), "cannot be read: 'utf-8' codec", id="not UTF-8"),
    ],
)
def test_a_token_file_without_a_token_is_a_configuration_error(
    tmp_path: Path, prepare: Callable[[Path], object], cause: str
) -> None:
    path = tmp_path / "token"
    prepare(path)
    with pytest.raises(ConfigurationError, match=rf"{TOKEN_FILE}={re.escape(str(path))} {cause}"):
        read_token({TOKEN_FILE: str(path)})


@pytest.mark.parametrize(
    ("shown", "want"),
    [
        (["Bearer secret"], True),
        (["Bearer other"], False),
        (["secret"], False),
        (["\udcff"], False),
        ([], False),
        (["Bearer secret", "Bearer other"], False),
        (["Bearer other", "Bearer secret"], False),
        (["Bearer secret"] * 2, False),
    ],
    ids=str,
)
def test_only_the_runs_token_is_accepted_and_only_alone(shown: list[str], want: bool) -> None:
    assert Bearer("secret").is_shown(shown) == want
