"""NetworkPolicies: who may talk to a run's pods, and whom they may talk to."""

from typing import Any

from spinrun_api.run import SpinRun
from spinrun_kube import names
from spinrun_operator.settings import Settings
from spinrun_protocol import commands

Json = dict[str, Any]


def rollout_network_policy(run: SpinRun, settings: Settings) -> Json:
    """Agents answer the run's trainer, and those who collect metrics. They ask nobody of the run themselves."""
    return _policy(run, names.rollout_name(run), names.ROLLOUT, [_agents_rule(run, settings)], [])


def scorer_network_policy(run: SpinRun, settings: Settings) -> Json:
    """The same for the agents of scorers."""
    return _policy(run, names.scorer_name(run), names.SCORER, [_agents_rule(run, settings)], [])


def trainer_network_policy(run: SpinRun, settings: Settings) -> Json:
    """The trainer tells its progress to the operator, and its metrics to those who collect them; its nodes talk freely, and it
    asks the agents."""
    readers = _namespaces((settings.namespace, *settings.monitoring_namespaces))
    nodes = [_pods(run, names.TRAINER)]
    agents = {"to": [_pods(run, names.ROLLOUT), _pods(run, names.SCORER)], "ports": [_port(commands.AGENT_PORT)]}
    ingress = [_rule(readers, commands.TRAINER_PORT), {"from": nodes}]
    return _policy(run, names.trainer_name(run), names.TRAINER, ingress, [{"to": nodes}, agents])


def _agents_rule(run: SpinRun, settings: Settings) -> Json:
    sources = [_pods(run, names.TRAINER), *_namespaces(settings.monitoring_namespaces)]
    return _rule(sources, commands.AGENT_PORT)


def _namespaces(wanted: tuple[str, ...]) -> list[Json]:
    return [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}} for name in wanted]


def _pods(run: SpinRun, component: str) -> Json:
    return {"podSelector": {"matchLabels": names.selector(run, component)}}


def _rule(sources: list[Json], port: int) -> Json:
    return {"from": sources, "ports": [_port(port)]}


def _port(port: int, protocol: str = "TCP") -> Json:
    return {"protocol": protocol, "port": port}


def _policy(run: SpinRun, name: str, component: str, ingress: list[Json], egress: list[Json]) -> Json:
    """A policy.

    Args:
        run: The run.
        name: Its name.
        component: Of the pods that it is for.
        ingress: Who may connect to them.
        egress: Whom of the run they connect to. It is enforced where the run limits whom else they may.
    """
    spec: Json = {"podSelector": _pods(run, component)["podSelector"], "policyTypes": ["Ingress"], "ingress": ingress}
    if (wanted := run.spec.network.egress) is not None:
        # Name servers are often reached by an address that no rule could name.
        name_servers = {"ports": [_port(53, "UDP"), _port(53)]}
        spec |= {"policyTypes": ["Ingress", "Egress"], "egress": [name_servers, *egress, *wanted]}
    return names.child(run, "networking.k8s.io/v1", "NetworkPolicy", name, component, spec=spec)
