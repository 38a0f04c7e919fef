"""Headless Services: the names under which trainer, rollouts and scorers find each other."""

from typing import Any

from spinrun_api.run import SpinRun
from spinrun_kube import names
from spinrun_protocol import commands

Json = dict[str, Any]


def rollout_service(run: SpinRun) -> Json:
    """Resolves to every agent. A new one is not Ready before the trainer has told it what to serve."""
    ports = [{"name": "agent", "port": commands.AGENT_PORT, "targetPort": "agent"}]
    return _headless(run, names.rollout_name(run), names.ROLLOUT, ports)


def scorer_service(run: SpinRun) -> Json:
    """Resolves to the agents whose vLLM serves: requests to others would only be refused."""
    ports = [{"name": "agent", "port": commands.AGENT_PORT, "targetPort": "agent"}]
    return _headless(run, names.scorer_name(run), names.SCORER, ports, ready_only=True)


def trainer_service(run: SpinRun) -> Json:
    """Gives every pod of a trainer with several nodes a name; they meet before any of them is Ready."""
    ports = [
        {"name": "trainer", "port": commands.TRAINER_PORT, "targetPort": "trainer"},
        {"name": "rendezvous", "port": commands.RENDEZVOUS_PORT, "targetPort": commands.RENDEZVOUS_PORT},
    ]
    return _headless(run, names.trainer_name(run), names.TRAINER, ports)


def _headless(run: SpinRun, name: str, component: str, ports: list[Json], *, ready_only: bool = False) -> Json:
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": not ready_only,
        "selector": names.selector(run, component),
        "ports": ports,
    }
    return names.child(run, "v1", "Service", name, component, spec=spec)
