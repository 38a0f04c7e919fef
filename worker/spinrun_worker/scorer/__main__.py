"""`python -m spinrun_worker.scorer`: the agent beside a scorer's vLLM."""

import argparse
import asyncio
import logging
import signal
import sys

import aiohttp

from spinrun_protocol.commands import AGENT_PORT, VLLM_PORT
from spinrun_protocol.exit_codes import ExitCode
from spinrun_protocol.logs import log_to_stderr
from spinrun_worker.bearer import Bearer, read_token
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.scorer.app import ScorerApp, ScorerMetrics
from spinrun_worker.serving import Guard, HttpLimits, serving

logger = logging.getLogger("spinrun_worker.scorer")


def main() -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    arguments = _arguments()
    log_to_stderr("scorer")
    try:
        asyncio.run(serve(arguments, bearer=Bearer(read_token())))
    except ConfigurationError as error:
        logger.error("%s", error)
        return ExitCode.INVALID_CONFIGURATION
    return ExitCode.COMPLETE


async def serve(arguments: argparse.Namespace, *, bearer: Bearer) -> None:
    """Serve until a signal asks to stop. Current requests are cut off: vLLM ends at the same time, and the trainer retries."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # No limit on connections, so that probes do not wait behind requests; nor on time, which the client limits.
    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        guard = Guard(bearer, HttpLimits(), on_refusal=lambda _: None)
        agent = ScorerApp(arguments.vllm, session, ScorerMetrics(), guard=guard)
        async with serving(
            guard, agent.application(), agent.readyz, host=arguments.host, port=arguments.port, health_port=arguments.health_port
        ):
            logger.info("Listening on port %d", arguments.port)
            await stop.wait()
            logger.info("Asked to stop")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m spinrun_worker.scorer", description=__doc__)
    parser.add_argument("--host", default="", help="address to listen on; empty means all")
    parser.add_argument("--port", type=int, default=AGENT_PORT)
    parser.add_argument("--health-port", type=int, help="port that answers /healthz and /readyz alone, besides the other")
    parser.add_argument("--vllm", default=f"http://127.0.0.1:{VLLM_PORT}", help="URL of the vLLM server")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
