"""The rollouts: a StatefulSet of pods with vLLM and its agent."""

from typing import Any

from spinrun_api.run import SpinRun
from spinrun_kube import names
from spinrun_operator.children import pods, vllm_pods
from spinrun_operator.settings import Settings
from spinrun_protocol import commands

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
    )


def _vllm(run: SpinRun, settings: Settings) -> Json:
    dtype = vllm_pods.arithmetic(run.spec.model.dtype, settings)
    return vllm_pods.vllm_container(
        commands.vllm(run, accelerator=settings.accelerator, dtype=dtype),
        settings,
        image=run.spec.rollout.image,
        gpus=run.spec.rollout.tensor_parallel_size,
        mounts=[pods.read_only(pods.LEDGER_MOUNT), pods.read_only(pods.SCRATCH_MOUNT)],
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
