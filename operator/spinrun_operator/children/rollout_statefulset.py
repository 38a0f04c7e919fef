"""The rollouts: a StatefulSet of pods with vLLM and its agent."""

from typing import Any

from spinrun_api.run import SpinRun
from spinrun_kube import names
from spinrun_operator.children import pods, vllm_pods
from spinrun_operator.settings import Settings
from spinrun_protocol import commands
from spinrun_protocol.commands import Process
from spinrun_protocol.environment import TERMINATION_LOG

Json = dict[str, Any]


def rollout_statefulset(run: SpinRun, settings: Settings, *, replicas: int) -> Json:
    """The StatefulSet with `replicas` pods; 0 while the run is suspended or over."""
    return vllm_pods.statefulset(
        run,
        names.ROLLOUT,
        names.rollout_name(run),
        settings,
        replicas=replicas,
        user=run.spec.rollout.template,
        containers=[_vllm(run, settings), _agent(run, settings)],
        init_containers=[_check(settings)],
    )


def _vllm(run: SpinRun, settings: Settings) -> Json:
    dtype = vllm_pods.arithmetic(run.spec.model.dtype, settings)
    return vllm_pods.vllm_container(
        commands.vllm(run, accelerator=settings.accelerator, dtype=dtype, lengths_file=pods.LENGTHS_FILE),
        settings,
        image=run.spec.rollout.image,
        gpus=run.spec.rollout.tensor_parallel_size,
        mounts=[pods.read_only(pods.LEDGER_MOUNT), pods.read_only(pods.SCRATCH_MOUNT), pods.read_only(pods.LENGTHS_MOUNT)],
    )


def _check(settings: Settings) -> Json:
    """What ends with exit code 2 where vLLM would end with a traceback, start after start."""
    process = commands.rollout_check(run_file=pods.RUN_FILE, lengths_file=pods.LENGTHS_FILE)
    environment = process.environment | {TERMINATION_LOG: "/dev/termination-log"}
    return pods.container(
        names.CHECK,
        settings.worker_image,
        Process(process.command, environment),
        settings,
        mounts=[pods.read_only(pods.LEDGER_MOUNT), pods.RUN_MOUNT, pods.LENGTHS_MOUNT, pods.TOKEN_MOUNT],
        resources=vllm_pods.AGENT_RESOURCES,
        **vllm_pods.TERMINATION_MESSAGE,
    )


def _agent(run: SpinRun, settings: Settings) -> Json:
    process = commands.agent(
        run_file=pods.RUN_FILE,
        ledger=pods.ledger_folder(run),
        scratch=pods.SCRATCH_PATH,
        health_port=commands.HEALTH_PORT,
    )
    mounts = [pods.read_only(pods.LEDGER_MOUNT), pods.RUN_MOUNT, pods.SCRATCH_MOUNT]
    return vllm_pods.agent_container(process, settings, mounts=mounts)
