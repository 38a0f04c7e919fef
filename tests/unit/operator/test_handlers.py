import pytest

from spinrun_operator.handlers import kopf_settings
from spinrun_operator.settings import Settings


@pytest.mark.parametrize(("resync_seconds", "want"), [(300.0, 60), (2.0, 2)], ids=["a minute at most", "as the resync"])
def test_a_watch_of_runs_ends_soon_whatever_it_brings(resync_seconds: float, want: int):
    """One that the API server forgot when a CRD changed is noticed by nothing else."""
    assert kopf_settings(Settings(resync_seconds=resync_seconds)).watching.server_timeout == want
