"""Helm is built before the tests."""

import pytest

from unit.chart.helm import build_helm


def pytest_collection_finish(session: pytest.Session) -> None:
    """See `build_helm`."""
    build_helm(session.items)
