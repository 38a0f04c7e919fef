"""kopf's part: it watches SpinRuns and wakes. The handler holds no logic, keeps no state in the object and adds no finalizer."""

from typing import Any

import kopf

from spinrun_api.run import GROUP, PLURAL, VERSION
from spinrun_operator.controller import Controller
from spinrun_operator.settings import Settings

LONGEST_WATCH_SECONDS = 60


def registry(controller: Controller) -> kopf.OperatorRegistry:
    """kopf's handlers for a controller."""
    handlers = kopf.OperatorRegistry()

    @kopf.on.login(registry=handlers)
    def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    def wake(event: kopf.RawEvent, **_: Any) -> None:
        controller.run_changed(event["type"], dict(event["object"]))

    return handlers


def kopf_settings(settings: Settings) -> kopf.OperatorSettings:
    """kopf as this operator needs it."""
    chosen = kopf.OperatorSettings()
    # Our events say what matters; kopf's would tell of each handler call.
    chosen.posting.enabled = False
    # One operator, and two by mistake do no harm: no peering objects are needed.
    chosen.peering.standalone = True
    # The kinds are known: CRDs and, in watched namespaces, the namespaces themselves need not be watched.
    chosen.scanning.disabled = True
    chosen.watching.inactivity_timeout = settings.watch_silence_seconds
    # A watch that was opened while the API server took in a changed CRD, as at an upgrade of the chart, may bring bookmarks and
    # no events until it ends.
    chosen.watching.server_timeout = min(LONGEST_WATCH_SECONDS, round(settings.resync_seconds))
    chosen.networking.request_timeout = settings.request_timeout_seconds
    chosen.queueing.idle_timeout = 1.0
    return chosen


async def watch_runs(controller: Controller, settings: Settings, *, stop_flag: Any = None) -> None:
    """Lets kopf wake the controller until the stop flag, SIGTERM or SIGINT."""
    scope: dict[str, Any] = {"namespaces": settings.watch_namespaces} if settings.watch_namespaces else {"clusterwide": True}
    await kopf.operator(
        registry=registry(controller), settings=kopf_settings(settings), standalone=True, stop_flag=stop_flag, **scope
    )
