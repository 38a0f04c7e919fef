"""`python -m spinrun_worker.rollout`: the agent beside one vLLM."""

import argparse
import asyncio
import logging
import signal
import sys
from pathlib import Path

import aiohttp

from spinrun_api.documents import InvalidDocumentError, read_run
from spinrun_api.run import SpinRun
from spinrun_protocol.commands import AGENT_PORT, VLLM_PORT
from spinrun_protocol.exit_codes import ExitCode
from spinrun_protocol.logs import facts_of, log_to_stderr
from spinrun_worker.bearer import Bearer, read_token
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.ledger.ledger import Ledger
from spinrun_worker.rollout.activation import Activator
from spinrun_worker.rollout.app import RolloutApp, ServingLimits
from spinrun_worker.rollout.gate import Gate
from spinrun_worker.rollout.metrics import RolloutMetrics
from spinrun_worker.rollout.sampling import Sampler
from spinrun_worker.serving import Guard, HttpLimits, serving
from spinrun_worker.vllm.engine import Engine

logger = logging.getLogger("spinrun_worker.rollout")


def main() -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    arguments = _arguments()
    facts = log_to_stderr("agent")
    try:
        run = _run(arguments.run)
        facts.always |= facts_of(run)
        asyncio.run(serve(arguments, uid=_uid(run, arguments.run), bearer=Bearer(read_token())))
    except ConfigurationError as error:
        logger.error("%s", error)
        return ExitCode.INVALID_CONFIGURATION
    return ExitCode.COMPLETE


async def serve(arguments: argparse.Namespace, *, uid: str, bearer: Bearer) -> None:
    """Serve until a signal asks to stop, then let the current calls finish.

    Args:
        arguments: The command line's.
        uid: The run's uid.
        bearer: The run's token.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # No limit on connections: the sampler limits the requests, and checks of vLLM must not wait behind them.
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        engine, gate, metrics = Engine(arguments.vllm, session), Gate(), RolloutMetrics()
        ledger = Ledger(arguments.ledger, uid)
        activation = Activator(ledger, arguments.scratch.resolve(), engine, gate, metrics, poll_seconds=arguments.poll_seconds)
        sampler = Sampler(engine, gate, metrics, max_sequences=arguments.max_sequences, engine_failed=activation.wake)
        limits = HttpLimits(arguments.max_body_bytes)
        guard = Guard(bearer, limits, on_refusal=lambda reason: metrics.refused.labels(reason).inc())
        agent = RolloutApp(
            activation,
            gate,
            sampler,
            metrics,
            engine,
            guard=guard,
            limits=ServingLimits(arguments.max_calls, arguments.max_prompts),
        )
        loop = asyncio.create_task(activation.run())
        try:
            async with serving(
                guard,
                agent.application(),
                agent.readyz,
                host=arguments.host,
                port=arguments.port,
                health_port=arguments.health_port,
            ):
                logger.info("Listening on port %d for run %s", arguments.port, uid)
                await stop.wait()
                logger.info("Asked to stop: accepting no new calls")
                await agent.drain(arguments.drain_seconds)
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m spinrun_worker.rollout", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="file of the resolved SpinRun")
    parser.add_argument("--ledger", type=Path, required=True, help="the run's own folder; only read")
    parser.add_argument("--scratch", type=Path, required=True, help="local folder for two versions, also seen by vLLM")
    parser.add_argument("--host", default="", help="address to listen on; empty means all")
    parser.add_argument("--port", type=int, default=AGENT_PORT)
    parser.add_argument("--health-port", type=int, help="port that answers /healthz and /readyz alone, besides the other")
    parser.add_argument("--vllm", default=f"http://127.0.0.1:{VLLM_PORT}", help="URL of the vLLM server")
    parser.add_argument("--poll-seconds", type=float, default=1.0, help="interval between checks of vLLM")
    parser.add_argument("--drain-seconds", type=float, default=30.0, help="time for current calls to finish after SIGTERM")
    parser.add_argument("--max-calls", type=int, default=ServingLimits.max_calls, help="concurrent calls for samples")
    parser.add_argument("--max-prompts", type=int, default=ServingLimits.max_prompts, help="prompts in one call")
    parser.add_argument("--max-body-bytes", type=int, default=HttpLimits.max_body_bytes, help="size of a request's body")
    parser.add_argument("--max-sequences", type=int, default=512, help="concurrent samples in vLLM")
    return parser.parse_args()


def _run(path: Path) -> SpinRun:
    try:
        return read_run(path)
    except InvalidDocumentError as error:
        raise ConfigurationError(str(error)) from error


def _uid(run: SpinRun, path: Path) -> str:
    if run.metadata.uid is None:
        raise ConfigurationError(f"{path}: metadata.uid is missing: pass the resolved run, not the file that a user wrote")
    return run.metadata.uid


if __name__ == "__main__":
    sys.exit(main())
