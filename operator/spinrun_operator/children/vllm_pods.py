"""What rollouts and scorers have in common: a StatefulSet of pods with vLLM and an agent in front of it."""

from collections.abc import Sequence
from typing import Any, cast

from spinrun_api.run import SpinRun
from spinrun_kube import names
from spinrun_operator.children import pods
from spinrun_operator.settings import Settings
from spinrun_protocol import commands

Json = dict[str, Any]

# A model of some hundred gigabytes may have to come from the Hub first.
VLLM_STARTUP_SECONDS = 3600
PROBE_SECONDS = 10
AGENT_RESOURCES: Json = {"requests": {"cpu": "100m", "memory": "256Mi"}}
TERMINATION_MESSAGE: Json = {"terminationMessagePolicy": "FallbackToLogsOnError"}
"""The end of its log tells why a container is crash-looping, where its pod is looked at."""

HEALTH = "agent-health"
"""The port of the agent's probes. No NetworkPolicy names it, so that the node alone reaches it; and whoever floods the other port
does not have the pod restarted."""


def statefulset(
    run: SpinRun,
    component: str,
    name: str,
    settings: Settings,
    *,
    replicas: int,
    user: Json,
    containers: list[Json],
    init_containers: Sequence[Json] = (),
) -> Json:
    """The StatefulSet with `replicas` pods, and the user's pod template merged over ours."""
    template = pods.pod_template(
        run,
        component,
        settings,
        labels={},
        user=user,
        terminationGracePeriodSeconds=30,
        containers=containers,
        **({"initContainers": list(init_containers)} if init_containers else {}),
    )
    template["spec"] = _with_check_last(template["spec"])
    return names.child(
        run,
        "apps/v1",
        "StatefulSet",
        name,
        component,
        spec={
            "replicas": replicas,
            "serviceName": name,
            # The pods do not know each other: none waits for another.
            "podManagementPolicy": "Parallel",
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": names.selector(run, component)},
            "template": template,
        },
    )


def _with_check_last(spec: Json) -> Json:
    """The pod's spec, its check after all other init containers, and with the environment and the mounts of vLLM's container.

    A user's template may have added to these: a token of the Hub, a volume with models, and what fetches them.
    """
    inits = cast(list[Json], spec.get("initContainers") or [])
    check = next((each for each in inits if each["name"] == names.CHECK), None)
    vllm = next((each for each in spec["containers"] if each["name"] == "vllm"), None)
    if check is None or vllm is None:
        return spec
    # A resource of vLLM's own container can be read only there.
    theirs = [each for each in vllm.get("env") or () if "resourceFieldRef" not in (each.get("valueFrom") or {})]
    check = check | {
        "env": _joined(check.get("env"), theirs, by="name"),
        "volumeMounts": _joined(check.get("volumeMounts"), vllm.get("volumeMounts"), by="mountPath"),
    }
    if vllm.get("envFrom"):
        check = {"envFrom": vllm["envFrom"]} | check
    return spec | {"initContainers": [*(each for each in inits if each["name"] != names.CHECK), check]}


def _joined(ours: list[Json] | None, theirs: list[Json] | None, *, by: str) -> list[Json]:
    """Both lists, without what the first has already."""
    present = {each.get(by) for each in ours or ()}
    return [*(ours or ()), *(each for each in theirs or () if each.get(by) not in present)]


def vllm_container(process: commands.Process, settings: Settings, *, image: str | None, gpus: int, mounts: list[Json]) -> Json:
    """vLLM's container, of the image that the run chooses if it does."""
    default_image = settings.vllm_image if settings.accelerator == "cuda" else settings.worker_image
    health = _healthy()
    container = pods.container(
        "vllm",
        image or default_image,
        process,
        settings,
        mounts=[*mounts, pods.TOKEN_MOUNT, pods.SHARED_MEMORY_MOUNT],
        resources=pods.gpus(gpus, settings),
        startupProbe=health | {"failureThreshold": VLLM_STARTUP_SECONDS // PROBE_SECONDS},
        livenessProbe=health | {"failureThreshold": 6},
        **TERMINATION_MESSAGE,
    )
    return pods.with_threads(container, settings)


def arithmetic(dtype: str, settings: Settings) -> str:
    """vLLM's dtype. On a CPU, nothing here can measure what is faster; float32 is right everywhere."""
    if dtype != "auto":
        return dtype
    return "auto" if settings.accelerator == "cuda" else "float32"


def agent_container(process: commands.Process, settings: Settings, *, mounts: list[Json]) -> Json:
    """The container of the agent, the only process of the pod that the network can reach."""
    return pods.container(
        "agent",
        settings.worker_image,
        process,
        settings,
        mounts=[*mounts, pods.TOKEN_MOUNT],
        ports=[
            {"name": "agent", "containerPort": commands.AGENT_PORT},
            {"name": HEALTH, "containerPort": commands.HEALTH_PORT},
        ],
        resources=AGENT_RESOURCES,
        startupProbe=_http("/healthz", period=2, failures=150),
        livenessProbe=_http("/healthz", period=10, failures=6),
        readinessProbe=_http("/readyz", period=5, failures=2),
        **TERMINATION_MESSAGE,
    )


def _healthy() -> Json:
    """vLLM listens on the loopback interface, where the kubelet's own HTTP probes cannot reach it."""
    question = f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{commands.VLLM_PORT}/health', timeout=5)"
    return {"exec": {"command": ["python3", "-c", question]}, "periodSeconds": PROBE_SECONDS, "timeoutSeconds": PROBE_SECONDS}


def _http(path: str, *, period: int, failures: int) -> Json:
    return {
        "httpGet": {"path": path, "port": HEALTH},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }
