"""Free ports for servers that tests start."""

import random
import socket

# Below the ports that Linux gives to outgoing connections, one of which might else take the port before its server does, and
# below those of Kubernetes' Services.
PORTS = range(20_000, 30_000)
# Other processes choose too, and must not draw the same numbers: the seed of a test is not theirs.
RANDOM = random.SystemRandom()
given: set[int] = set()


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now, and that this process was not given before."""
    while True:
        port = RANDOM.choice(PORTS)
        with socket.socket() as probe:
            # A server that has just ended leaves connections behind, which do not keep another from listening.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in given:
            given.add(port)
            return port
