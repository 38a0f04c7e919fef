"""`python -m spinrun_operator` runs the operator with settings from the environment; see settings.py."""

import asyncio
import contextlib
import logging
import os
import signal
import sys

from kubernetes.aio.config import ConfigException

from spinrun_kube.api import OBJECT_BYTES, Api, connect
from spinrun_kube.kinds import CHILDREN
from spinrun_operator.controller import Controller
from spinrun_operator.handlers import waking
from spinrun_operator.http import serve
from spinrun_operator.metrics import Metrics
from spinrun_operator.settings import InvalidSettingError, Settings
from spinrun_protocol.logs import log_to_stderr


async def operate(settings: Settings) -> None:
    """Runs the operator until SIGTERM or SIGINT."""
    metrics = Metrics()
    # A watch has a connection for as long as it lasts.
    watches = (len(CHILDREN) + 3) * max(1, len(settings.watch_namespaces))
    async with await connect(pool_size=2 * settings.workers + watches) as api_client:
        api = Api(
            api_client,
            request_timeout_seconds=settings.request_timeout_seconds,
            watch_silence_seconds=settings.watch_silence_seconds,
            answer_bytes=OBJECT_BYTES,
            observe=metrics.api_request,
        )
        controller = Controller(api, settings, metrics)
        async with serve(controller, metrics, settings.http_port), waking(controller):
            working = asyncio.create_task(controller.run(), name="controller")
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, working.cancel)
            with contextlib.suppress(asyncio.CancelledError):
                await working


def main() -> int:
    """Runs the operator; returns the exit status."""
    try:
        settings = Settings.from_environment(os.environ)
    except InvalidSettingError as error:
        print(f"spinrun-operator: {error}", file=sys.stderr)
        return 2
    log_to_stderr("operator", level=settings.log_level)
    # It warns that it takes no signals: they are the process's.
    logging.getLogger("kopf").setLevel(logging.ERROR)
    try:
        asyncio.run(operate(settings))
    except ConfigException as error:
        print(f"spinrun-operator: no access to a cluster: {error}; set KUBECONFIG or run it in a pod", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
