"""The cluster of the operator's own tests."""

from integration.operator.conftest import cluster, crd

__all__ = ["cluster", "crd"]
