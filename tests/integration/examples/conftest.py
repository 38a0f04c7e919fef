"""Fixtures of the examples' tests."""

from integration.operator.conftest import crd

__all__ = ["crd"]
