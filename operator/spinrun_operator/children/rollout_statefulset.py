"""The rollouts: a StatefulSet of pods with vLLM and its agent."""

from typing import Any

from spinrun_api import processes
from spinrun_api.run import SpinRun
from spinrun_operator import names
from spinrun_operator.children import pods
from spinrun_operator.settings import Settings

Json = dict[str, Any]

# A model of some hundred gigabytes may have to come from the Hub first.
VLLM_STARTUP_SECONDS = 3600
PROBE_SECONDS = 10


def rollout_statefulset(run: SpinRun, settings: Settings, *, replicas: int) -> Json:
    """The StatefulSet with `replicas` pods; 0 while the run is suspended or over."""
    return names.child(
        run,
        "apps/v1",
        "StatefulSet",
        names.rollout_name(run),
        names.ROLLOUT,
        spec={
            "replicas": replicas,
            "serviceName": names.rollout_name(run),
            # Rollouts do not know each other: none waits for another.
            "podManagementPolicy": "Parallel",
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": names.selector(run, names.ROLLOUT)},
            "template": pods.pod_template(
                run,
                names.ROLLOUT,
                settings,
                labels={},
                user=run.spec.rollout.template,
                terminationGracePeriodSeconds=30,
                containers=[_vllm(run, settings), _agent(run, settings)],
            ),
        },
    )


def _vllm(run: SpinRun, settings: Settings) -> Json:
    process = processes.vllm(run, accelerator=settings.accelerator, dtype=_dtype(run, settings))
    default_image = settings.vllm_image if settings.accelerator == "cuda" else settings.worker_image
    health = _healthy()
    container = pods.container(
        "vllm",
        run.spec.rollout.image or default_image,
        process,
        settings,
        mounts=[
            pods.read_only(pods.LEDGER_MOUNT),
            pods.read_only(pods.SCRATCH_MOUNT),
            pods.TOKEN_MOUNT,
            pods.SHARED_MEMORY_MOUNT,
        ],
        resources=pods.gpus(run.spec.rollout.tensor_parallel_size, settings),
        startupProbe=health | {"failureThreshold": VLLM_STARTUP_SECONDS // PROBE_SECONDS},
        livenessProbe=health | {"failureThreshold": 6},
    )
    return pods.with_threads(container, settings)


def _dtype(run: SpinRun, settings: Settings) -> str:
    """vLLM's number type. On a CPU, nothing here can measure what is faster; float32 is right everywhere."""
    if run.spec.model.dtype != "auto":
        return run.spec.model.dtype
    return "auto" if settings.accelerator == "cuda" else "float32"


def _healthy() -> Json:
    """vLLM listens on the loopback interface, where the kubelet's own HTTP probes cannot reach it."""
    question = f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{processes.VLLM_PORT}/health', timeout=5)"
    return {"exec": {"command": ["python3", "-c", question]}, "periodSeconds": PROBE_SECONDS, "timeoutSeconds": PROBE_SECONDS}


def _agent(run: SpinRun, settings: Settings) -> Json:
    process = processes.agent(run_file=pods.RUN_FILE, ledger=pods.ledger_folder(run), scratch=pods.SCRATCH_PATH)
    return pods.container(
        "agent",
        settings.worker_image,
        process,
        settings,
        mounts=[pods.read_only(pods.LEDGER_MOUNT), pods.RUN_MOUNT, pods.TOKEN_MOUNT, pods.SCRATCH_MOUNT],
        ports=[{"name": "agent", "containerPort": processes.AGENT_PORT}],
        resources={"requests": {"cpu": "100m", "memory": "256Mi"}},
        startupProbe=_http("/healthz", period=2, failures=150),
        livenessProbe=_http("/healthz", period=10, failures=6),
        readinessProbe=_http("/readyz", period=5, failures=2),
    )


def _http(path: str, *, period: int, failures: int) -> Json:
    return {
        "httpGet": {"path": path, "port": "agent"},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }
