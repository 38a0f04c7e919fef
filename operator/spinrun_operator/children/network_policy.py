"""NetworkPolicies: who may talk to a run's pods, and whom they may talk to."""

from typing import Any

from spinrun_api.run import SpinRun
from spinrun_kube import names
from spinrun_operator.settings import Settings
from spinrun_protocol import commands

Json = dict[str, Any]

_NAME_SERVERS: Json = {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}
"""Often reached by an address that no rule could name."""


def network_policy(run: SpinRun, settings: Settings, *, name: str | None = None) -> Json:
    """What all pods of the run have in common.

    Agents answer the run's trainer, and those who collect metrics. The trainer tells its progress to the operator, and its
    metrics to those who collect them. Agents do not listen on the trainer's port, nor the trainer on theirs, and both ends of a
    connection must be allowed: so one policy opens no more than one for each of them would.

    Args:
        run: The run.
        settings: The operator's.
        name: Another name than the policy's own.
    """
    components = [names.TRAINER, names.ROLLOUT, names.SCORER]
    selector = {
        "matchLabels": {names.RUN_LABEL: run.metadata.name, names.UID_LABEL: run.metadata.uid or ""},
        "matchExpressions": [{"key": names.COMPONENT_LABEL, "operator": "In", "values": components}],
    }
    monitoring = _namespaces(settings.monitoring_namespaces)
    ingress = [
        {"from": [_pods(run, names.TRAINER), *monitoring], "ports": [_port(commands.AGENT_PORT)]},
        {"from": [*_namespaces((settings.namespace,)), *monitoring], "ports": [_port(commands.TRAINER_PORT)]},
    ]
    agents = {"to": [_pods(run, names.ROLLOUT), _pods(run, names.SCORER)], "ports": [_port(commands.AGENT_PORT)]}
    return _policy(run, name or names.network_policy_name(run), "network", selector, ingress, [agents])


def trainer_network_policy(run: SpinRun) -> Json:
    """Beside that, the nodes of a trainer talk freely to each other, on ports that nobody knows beforehand."""
    nodes = [_pods(run, names.TRAINER)]
    selector = {"matchLabels": names.selector(run, names.TRAINER)}
    return _policy(run, names.trainer_name(run), names.TRAINER, selector, [{"from": nodes}], [{"to": nodes}])


def _pods(run: SpinRun, component: str) -> Json:
    return {"podSelector": {"matchLabels": names.selector(run, component)}}


def _namespaces(wanted: tuple[str, ...]) -> list[Json]:
    return [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}} for name in wanted]


def _port(port: int) -> Json:
    return {"protocol": "TCP", "port": port}


def _policy(run: SpinRun, name: str, component: str, selector: Json, ingress: list[Json], egress: list[Json]) -> Json:
    """A policy.

    Args:
        run: The run.
        name: Its name.
        component: What it is for.
        selector: Selects its pods.
        ingress: Who may connect to them.
        egress: Whom of the run they connect to. It is enforced where the run limits whom else they may.
    """
    spec: Json = {"podSelector": selector, "policyTypes": ["Ingress"], "ingress": ingress}
    if (wanted := run.spec.network.egress) is not None:
        spec |= {"policyTypes": ["Ingress", "Egress"], "egress": [_NAME_SERVERS, *egress, *wanted]}
    return names.child(run, "networking.k8s.io/v1", "NetworkPolicy", name, component, spec=spec)
