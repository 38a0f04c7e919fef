"""`python -m spinrun_operator` runs the operator with settings from the environment; see settings.py."""

import asyncio
import logging
import os
import sys

from kubernetes.aio.config import ConfigException

from spinrun_kube.api import Api, connect
from spinrun_operator.controller import Controller
from spinrun_operator.handlers import watch_runs
from spinrun_operator.http import serve
from spinrun_operator.metrics import Metrics
from spinrun_operator.settings import InvalidSettingError, Settings
from spinrun_protocol.logs import log_to_stderr

logger = logging.getLogger("spinrun_operator")


async def operate(settings: Settings) -> None:
    """Runs the operator until SIGTERM or SIGINT."""
    metrics = Metrics()
    async with await connect(pool_size=2 * settings.workers + 32) as api_client:
        api = Api(
            api_client,
            request_timeout_seconds=settings.request_timeout_seconds,
            watch_silence_seconds=settings.watch_silence_seconds,
            observe=metrics.api_request,
        )
        controller = Controller(api, settings, metrics)
        async with serve(controller, metrics, settings.http_port):
            await controller.wait_for_crd()
            working = asyncio.create_task(controller.run(), name="controller")
            waking = asyncio.create_task(watch_runs(controller, settings), name="kopf")
            try:
                # kopf ends at a signal. If either ends by an error, the process does, and Kubernetes restarts it.
                done, _ = await asyncio.wait((working, waking), return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                working.cancel()
                waking.cancel()
                await asyncio.gather(working, waking, return_exceptions=True)


def main() -> int:
    """Runs the operator; returns the exit status."""
    try:
        settings = Settings.from_environment(os.environ)
    except InvalidSettingError as error:
        print(f"spinrun-operator: {error}", file=sys.stderr)
        return 2
    log_to_stderr("operator", level=settings.log_level)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        asyncio.run(operate(settings))
    except ConfigException as error:
        print(f"spinrun-operator: no access to a cluster: {error}; set KUBECONFIG or run it in a pod", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
