"""The kinds of objects that the operator reads and writes, and where the API server has them."""

from dataclasses import dataclass
from typing import Any

from spinrun_api.run import API_VERSION, KIND, PLURAL


@dataclass(frozen=True)
class Kind:
    """A kind and its resource."""

    api_version: str
    name: str
    plural: str

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        """The URL's path of a collection (of all namespaces without one) or of an object."""
        root = f"/api/{self.api_version}" if "/" not in self.api_version else f"/apis/{self.api_version}"
        parts = [root, *(("namespaces", namespace) if namespace else ()), self.plural]
        return "/".join([*parts, *(part for part in (name, subresource) if part)])


SPIN_RUN = Kind(API_VERSION, KIND, PLURAL)
POD = Kind("v1", "Pod", "pods")
EVENT = Kind("v1", "Event", "events")
CLAIM = Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
SECRET = Kind("v1", "Secret", "secrets")
CONFIG_MAP = Kind("v1", "ConfigMap", "configmaps")
STATEFUL_SET = Kind("apps/v1", "StatefulSet", "statefulsets")
JOB = Kind("batch/v1", "Job", "jobs")
POD_MONITOR = Kind("monitoring.coreos.com/v1", "PodMonitor", "podmonitors")

CHILDREN = (
    CLAIM,
    SECRET,
    Kind("v1", "ServiceAccount", "serviceaccounts"),
    CONFIG_MAP,
    Kind("v1", "Service", "services"),
    Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    STATEFUL_SET,
    JOB,
)
"""Kinds of which every run has children."""

_BY_NAME = {kind.name: kind for kind in (SPIN_RUN, POD, EVENT, POD_MONITOR, *CHILDREN)}


def kind_of(document: dict[str, Any]) -> Kind:
    """The kind of a document.

    Raises:
        KeyError: It is of a kind that the operator has nothing to do with.
    """
    return _BY_NAME[document["kind"]]
