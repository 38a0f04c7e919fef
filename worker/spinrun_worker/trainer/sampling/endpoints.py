"""Where the agents are: a list of addresses, or names whose addresses come and go."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from spinrun_protocol.environment import ROLLOUTS
from spinrun_worker.errors import ConfigurationError

logger = logging.getLogger(__name__)

DNS_SCHEME = "dns+http"

Resolve = Callable[[str, int], Awaitable[list[str]]]

# What a name server says of a name that has no address, as a headless Service without pods. Other errors are its own trouble.
_NO_ADDRESS = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


class Endpoints:
    """The base URLs of all agents, as SPINRUN_ROLLOUTS describes them."""

    def __init__(self, rollouts: str, *, resolve: Resolve | None = None) -> None:
        """Read where the agents are.

        Args:
            rollouts: Comma-separated http://HOST:PORT, and dns+http://HOST:PORT for every address that HOST resolves to.
            resolve: Gives the IP addresses of a host and port; None: the system's resolver.

        Raises:
            ConfigurationError: A part is not such a URL, or there is none.
        """
        self._text = rollouts
        self._resolve = resolve or _system_resolve
        self._fixed: set[str] = set()
        self._names: dict[tuple[str, int], set[str]] = {}
        for part in filter(None, map(str.strip, rollouts.split(","))):
            self._add(part)
        if not self._fixed and not self._names:
            raise ConfigurationError(f"{ROLLOUTS}: names no agent: write at least one URL such as http://127.0.0.1:8100")

    def __str__(self) -> str:
        return self._text

    async def urls(self) -> set[str]:
        """The agents that there are now. While a name server does not answer, a name keeps its addresses."""
        await asyncio.gather(*map(self._refresh, self._names))
        return self._fixed.union(*self._names.values())

    def _add(self, part: str) -> None:
        url = urlsplit(part)
        try:
            host, port = url.hostname, url.port
        except ValueError:
            host = port = None
        if url.scheme not in ("http", "https", DNS_SCHEME) or host is None or url.path.strip("/") or url.query:
            raise ConfigurationError(
                f"{ROLLOUTS}: must be URLs such as http://HOST:PORT or {DNS_SCHEME}://HOST:PORT, got {part!r}"
            )
        if url.scheme != DNS_SCHEME:
            self._fixed.add(f"{url.scheme}://{url.netloc}")
        elif port is None:
            raise ConfigurationError(f"{ROLLOUTS}: {part!r} needs a port")
        else:
            self._names[host, port] = set()

    async def _refresh(self, name: tuple[str, int]) -> None:
        host, port = name
        try:
            addresses = await self._resolve(host, port)
        except socket.gaierror as error:
            if error.errno not in _NO_ADDRESS:
                logger.warning("%s cannot be resolved at the moment: %s", host, error)
                return
            addresses = []
        except (OSError, UnicodeError) as error:
            logger.warning("%s cannot be resolved at the moment: %s", host, error)
            return
        self._names[name] = {
            f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}" for address in addresses
        }


async def _system_resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]
