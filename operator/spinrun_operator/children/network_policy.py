"""NetworkPolicies: who may talk to a run's pods."""

from typing import Any

from spinrun_api.run import SpinRun
from spinrun_kube import names
from spinrun_operator.settings import Settings
from spinrun_protocol import commands

Json = dict[str, Any]


def rollout_network_policy(run: SpinRun, settings: Settings) -> Json:
    """Agents answer the run's trainer, and those who collect metrics."""
    return _policy(run, names.rollout_name(run), names.ROLLOUT, [_agents_rule(run, settings)])


def scorer_network_policy(run: SpinRun, settings: Settings) -> Json:
    """The same for the agents of scorers."""
    return _policy(run, names.scorer_name(run), names.SCORER, [_agents_rule(run, settings)])


def trainer_network_policy(run: SpinRun, settings: Settings) -> Json:
    """The trainer tells its progress to the operator, and its metrics to those who collect them; its nodes talk freely."""
    readers = _namespaces((settings.namespace, *settings.monitoring_namespaces))
    nodes = {"from": [{"podSelector": {"matchLabels": names.selector(run, names.TRAINER)}}]}
    return _policy(run, names.trainer_name(run), names.TRAINER, [_rule(readers, commands.TRAINER_PORT), nodes])


def _agents_rule(run: SpinRun, settings: Settings) -> Json:
    sources = [{"podSelector": {"matchLabels": names.selector(run, names.TRAINER)}}, *_namespaces(settings.monitoring_namespaces)]
    return _rule(sources, commands.AGENT_PORT)


def _namespaces(wanted: tuple[str, ...]) -> list[Json]:
    return [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}} for name in wanted]


def _rule(sources: list[Json], port: int) -> Json:
    return {"from": sources, "ports": [{"protocol": "TCP", "port": port}]}


def _policy(run: SpinRun, name: str, component: str, rules: list[Json]) -> Json:
    spec = {
        "podSelector": {"matchLabels": names.selector(run, component)},
        "policyTypes": ["Ingress"],
        "ingress": rules,
    }
    return names.child(run, "networking.k8s.io/v1", "NetworkPolicy", name, component, spec=spec)
