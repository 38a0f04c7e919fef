"""Runs and observed objects for the operator's pure functions."""

import pytest

from spinrun_api.run import SpinRun
from unit.operator.world import World, run_of


@pytest.fixture
def run() -> SpinRun:
    """A small run as the API server has it."""
    return run_of()


@pytest.fixture
def world() -> World:
    """A cluster in which that run's children come and go by the test's word."""
    return World()
