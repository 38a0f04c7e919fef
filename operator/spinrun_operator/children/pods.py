"""What the pods of trainer, rollouts and scorers have in common: paths, volumes and the restricted security level."""

from typing import Any

from spinrun_api.run import SpinRun
from spinrun_kube import names
from spinrun_operator.merge import merge
from spinrun_operator.settings import Settings
from spinrun_protocol.commands import Process
from spinrun_protocol.environment import TOKEN_FILE
from spinrun_protocol.logs import LOG_FORMAT

Json = dict[str, Any]

LEDGER_PATH = "/ledger"
RUN_PATH = "/etc/spinrun/run"
RUN_FILE = f"{RUN_PATH}/run.yaml"
TOKEN_PATH = "/etc/spinrun/token"
SCRATCH_PATH = "/scratch"
HOME_PATH = "/home/spinrun"

LEDGER_MOUNT: Json = {"name": "ledger", "mountPath": LEDGER_PATH}
RUN_MOUNT: Json = {"name": "run", "mountPath": RUN_PATH, "readOnly": True}
TOKEN_MOUNT: Json = {"name": "token", "mountPath": TOKEN_PATH, "readOnly": True}
SCRATCH_MOUNT: Json = {"name": "scratch", "mountPath": SCRATCH_PATH}
LENGTHS_PATH = "/etc/spinrun/engine"
LENGTHS_FILE = f"{LENGTHS_PATH}/lengths.yaml"
LENGTHS_MOUNT: Json = {"name": "home", "mountPath": LENGTHS_PATH, "subPath": "engine"}
"""Where the check of a rollout's model tells vLLM the lengths that the spec leaves open."""
# Each container has a home and a /tmp of its own on one emptyDir: its root file system is read-only. GPUs of one pod talk through
# shared memory, for which the 64 MiB of a container runtime are too few.
SHARED_MEMORY_MOUNT: Json = {"name": "shm", "mountPath": "/dev/shm"}


def ledger_folder(run: SpinRun) -> str:
    """The run's own folder as its pods see it."""
    return f"{LEDGER_PATH}/{run.ledger_name()}"


def read_only(mount: Json) -> Json:
    """The same mount without the right to write."""
    return mount | {"readOnly": True}


def container(name: str, image: str, process: Process, settings: Settings, *, mounts: list[Json], **rest: Any) -> Json:
    """A container that meets the restricted security level and can write to its mounts, its home and /tmp."""
    home: list[Json] = [
        {"name": "home", "mountPath": HOME_PATH, "subPath": f"{name}-home"},
        {"name": "home", "mountPath": "/tmp", "subPath": f"{name}-tmp"},
    ]
    environment = process.environment | {
        "HOME": HOME_PATH,
        "HF_HOME": f"{HOME_PATH}/huggingface",
        # The user has no entry in the image's /etc/passwd, where some libraries look for a name.
        "USER": "spinrun",
        TOKEN_FILE: f"{TOKEN_PATH}/token",
        LOG_FORMAT: settings.log_format,
    }
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": process.command,
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": mounts + home,
        **rest,
    }


def with_threads(container: Json, settings: Settings) -> Json:
    """The container with as many OpenMP threads as its CPU limit allows, or its node where it has none.

    Left to itself OpenMP starts one for each core of the node, however few of them the container may use.
    """
    if settings.accelerator != "cpu":
        return container
    limit = {"containerName": container["name"], "resource": "limits.cpu", "divisor": "1"}
    return container | {"env": [*container["env"], {"name": "OMP_NUM_THREADS", "valueFrom": {"resourceFieldRef": limit}}]}


def gpus(count: int, settings: Settings) -> Json:
    """Resources of a container that computes."""
    return {"limits": {"nvidia.com/gpu": str(count)}} if settings.accelerator == "cuda" else {}


def pod_template(
    run: SpinRun,
    component: str,
    settings: Settings,
    *,
    labels: dict[str, str],
    user: Json,
    containers: list[Json],
    **spec: Any,
) -> Json:
    """The pod template of a component with the user's merged over it.

    Args:
        run: The run.
        component: TRAINER, ROLLOUT or SCORER.
        settings: The operator's.
        labels: Further labels of ours. What finds the pods again is ours, whatever the user's template says.
        user: The user's pod template.
        containers: Ours, with their mounts, from which the volumes follow.
        **spec: Further fields of the pod's spec.
    """
    ours = names.labels(run, component) | labels
    identity = {"runAsUser": settings.run_as_user, "runAsGroup": settings.run_as_user, "fsGroup": settings.run_as_user}
    template: Json = {
        "metadata": {"labels": ours},
        "spec": {
            "serviceAccountName": names.service_account_name(run),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
                # A volume with many files must not be walked at every start.
                "fsGroupChangePolicy": "OnRootMismatch",
                **(identity if settings.run_as_user else {}),
            },
            "volumes": _volumes(run, containers),
            "containers": containers,
            **spec,
        },
    }
    return merge(merge(template, user), {"metadata": {"labels": ours}})


def _volumes(run: SpinRun, containers: list[Json]) -> list[Json]:
    """The volumes that these containers mount."""
    volumes: list[Json] = [
        {"name": "ledger", "persistentVolumeClaim": {"claimName": names.claim_name(run)}},
        {"name": "run", "configMap": {"name": names.run_config_name(run)}},
        {"name": "token", "secret": {"secretName": names.token_name(run), "defaultMode": 0o440}},
        {"name": "home", "emptyDir": {}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    mounted = {mount["name"] for container in containers for mount in container["volumeMounts"]}
    return [volume for volume in volumes if volume["name"] in mounted]
