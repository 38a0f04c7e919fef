"""The scorers: a StatefulSet of pods that serve the preference's own model, each a vLLM and an agent in front of it."""

from typing import Any

from spinrun_api.run import SpinRun
from spinrun_kube import names
from spinrun_operator.children import pods, vllm_pods
from spinrun_operator.settings import Settings
from spinrun_protocol import commands

Json = dict[str, Any]


def scorer_statefulset(run: SpinRun, settings: Settings, *, replicas: int) -> Json:
    """The StatefulSet with `replicas` pods; 0 while the run is suspended or over. Only for a run that has scorers."""
    scorers, model = run.spec.scorers, run.spec.preference.own_model
    assert scorers is not None, "the run serves no model of its preference"
    assert model is not None, "the same"
    as_rollouts = settings.accelerator == "cpu" and scorers.dtype == "auto"
    dtype = vllm_pods.arithmetic(run.spec.model.dtype if as_rollouts else scorers.dtype, settings)
    vllm = vllm_pods.vllm_container(
        commands.scorer(run, accelerator=settings.accelerator, dtype=dtype),
        settings,
        image=scorers.image,
        gpus=scorers.tensor_parallel_size,
        # A model of the Hub needs no volume, and its pod may stand where that cannot be mounted.
        mounts=[pods.read_only(pods.LEDGER_MOUNT)] if model.served_name.startswith("/") else [],
    )
    return vllm_pods.statefulset(
        run,
        names.SCORER,
        names.scorer_name(run),
        settings,
        replicas=replicas,
        user=scorers.template,
        containers=[
            vllm,
            vllm_pods.agent_container(commands.scorer_agent(health_port=commands.HEALTH_PORT), settings, mounts=[]),
        ],
    )


def without_pods(run: SpinRun, statefulset: Json) -> Json:
    """The same StatefulSet without pods, for a run that has no scorers any more. The operator may not delete it: it goes with the
    run."""
    spec = statefulset["spec"] | {"replicas": 0}
    return names.child(run, "apps/v1", "StatefulSet", names.scorer_name(run), names.SCORER, spec=spec)
