import socket

import pytest

from spinrun_worker.errors import ConfigurationError
from spinrun_worker.trainer.sampling.endpoints import Endpoints


async def test_a_list_of_urls_is_taken_as_it_is():
    endpoints = Endpoints(" http://a:8100, https://b:1/ ,http://[::1]:2 ")
    assert await endpoints.urls() == {"http://a:8100", "https://b:1", "http://[::1]:2"}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("", "names no agent"),
        (" , ", "names no agent"),
        ("localhost:8100", "must be URLs such as http://HOST:PORT"),
        ("ftp://a:1", "must be URLs"),
        ("http://", "must be URLs"),
        ("http://a:99999", "must be URLs"),
        ("http://a:1/v1/samples", "must be URLs"),
        ("dns+http://a", "needs a port"),
    ],
)
def test_what_is_not_an_address_is_refused(text: str, want: str):
    with pytest.raises(ConfigurationError, match=f"SPINRUN_ROLLOUTS: .*{want}"):
        Endpoints(text)


async def test_the_systems_resolver_finds_this_machine():
    assert "http://127.0.0.1:8100" in await Endpoints("dns+http://localhost:8100").urls()


class FakeResolver:
    """Answers in turn; what is an exception is raised."""

    def __init__(self, *answers: list[str] | Exception) -> None:
        self.answers = list(answers)

    async def __call__(self, host: str, port: int) -> list[str]:
        assert (host, port) == ("run-rollout", 8100)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize(
    ("second", "want"),
    [
        (["10.0.0.2", "10.0.0.3"], {"http://10.0.0.2:8100", "http://10.0.0.3:8100"}),
        (["fd00::1"], {"http://[fd00::1]:8100"}),
        ([], set()),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), set()),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), {"http://10.0.0.1:8100"}),
        (OSError("network is down"), {"http://10.0.0.1:8100"}),
    ],
)
async def test_a_name_follows_its_addresses_and_keeps_them_while_nobody_can_tell(second: list[str] | Exception, want: set[str]):
    endpoints = Endpoints("http://fixed:1,dns+http://run-rollout:8100", resolve=FakeResolver(["10.0.0.1"], second))
    assert await endpoints.urls() == {"http://fixed:1", "http://10.0.0.1:8100"}
    assert await endpoints.urls() == {"http://fixed:1"} | want
