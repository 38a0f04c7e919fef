"""One attempt of the trainer: an Indexed Job with a pod a node."""

import hashlib
import json
from typing import Any

from spinrun_api.run import SpinRun
from spinrun_api.spec import SecretKey
from spinrun_kube import names
from spinrun_operator.children import pods
from spinrun_operator.settings import Settings
from spinrun_protocol import commands
from spinrun_protocol.environment import MLFLOW_TOKEN, PREFERENCE_KEY, ROLLOUTS, SCORERS, TERMINATION_LOG, WANDB_KEY

Json = dict[str, Any]


def trainer_job(run: SpinRun, settings: Settings, *, attempt: int) -> Json:
    """The Job of an attempt. The operator, not the Job, decides about another one: a new attempt has a new number."""
    job = names.child(
        run,
        "batch/v1",
        "Job",
        names.job_name(run, attempt),
        names.TRAINER,
        spec={
            "completionMode": "Indexed",
            "completions": run.spec.trainer.nodes,
            "parallelism": run.spec.trainer.nodes,
            "backoffLimit": 0,
            # A pod that still ends may still write: the Job is not over before it is.
            "podReplacementPolicy": "Failed",
            "template": pods.pod_template(
                run,
                names.TRAINER,
                settings,
                labels={names.ATTEMPT_LABEL: str(attempt)},
                user=run.spec.trainer.template,
                restartPolicy="Never",
                terminationGracePeriodSeconds=settings.trainer_grace_seconds,
                containers=[_trainer(run, settings, attempt)],
                **({"subdomain": names.trainer_name(run)} if run.spec.trainer.nodes > 1 else {}),
            ),
        },
    )
    job["metadata"]["labels"][names.ATTEMPT_LABEL] = str(attempt)
    job["metadata"]["annotations"] = {names.REVISION_ANNOTATION: trainer_revision(run)}
    return job


def trainer_revision(run: SpinRun) -> str:
    """Hash of everything in the spec that a trainer reads at its start: when it changes, the trainer must restart.

    Not of the Job, and not of defaults: a newer operator may build the Job in another way and know more fields, and must not
    disturb a trainer for that.
    """
    spec = run.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"lifecycle", "network"})
    rollout: Json = spec.get("rollout", {})
    for name in ("replicas", "template", "image", "engineArgs", "tensorParallelSize"):
        rollout.pop(name, None)
    if not rollout:
        spec.pop("rollout", None)
    spec.pop("scorer", None)
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:16]


def _trainer(run: SpinRun, settings: Settings, attempt: int) -> Json:
    process = commands.trainer(
        run,
        run_file=pods.RUN_FILE,
        ledger=pods.ledger_folder(run),
        attempt=attempt,
        node_rank="$(JOB_COMPLETION_INDEX)",
        rendezvous=_rendezvous(run, attempt) if run.spec.trainer.nodes > 1 else None,
    )
    rollouts = f"dns+http://{names.rollout_name(run)}.{names.namespace(run)}.svc:{commands.AGENT_PORT}"
    environment = {ROLLOUTS: rollouts, TERMINATION_LOG: "/dev/termination-log"}
    if run.spec.scorers is not None:
        environment[SCORERS] = f"http://{names.scorer_name(run)}.{names.namespace(run)}.svc:{commands.AGENT_PORT}"
    container = pods.container(
        "trainer",
        run.spec.trainer.image or settings.worker_image,
        commands.Process(process.command, process.environment | environment),
        settings,
        mounts=[pods.LEDGER_MOUNT, pods.RUN_MOUNT, pods.TOKEN_MOUNT, pods.SCRATCH_MOUNT, pods.SHARED_MEMORY_MOUNT],
        ports=[{"name": "trainer", "containerPort": commands.TRAINER_PORT}],
        resources=pods.gpus(run.spec.trainer.procs_per_node, settings),
        terminationMessagePolicy="File",
    )
    return container | {"env": [*container["env"], *_keys(run)]}


def _keys(run: SpinRun) -> list[Json]:
    """The variables with keys of servers that the trainer talks to, which the kubelet reads from the user's Secrets."""
    endpoint, telemetry = run.spec.preference.endpoint, run.spec.telemetry
    keys = [_key(PREFERENCE_KEY, endpoint.secret_ref)] if endpoint and endpoint.secret_ref else []
    # A tracker's Secret that went missing must not keep the next attempt from starting.
    for variable, tracker in ((WANDB_KEY, telemetry.wandb), (MLFLOW_TOKEN, telemetry.mlflow)):
        if tracker and tracker.secret_ref:
            keys.append(_key(variable, tracker.secret_ref, optional=True))
    return keys


def _key(variable: str, secret: SecretKey, **rest: bool) -> Json:
    return {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key, **rest}}}


def _rendezvous(run: SpinRun, attempt: int) -> str:
    """Where the other nodes meet the first: its name in the trainer's headless Service."""
    host = f"{names.job_name(run, attempt)}-0.{names.trainer_name(run)}.{names.namespace(run)}.svc"
    return f"{host}:{commands.RENDEZVOUS_PORT}"
