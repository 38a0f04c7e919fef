"""Who reaches what: vLLM nobody but its agent, the agent nobody without the run's token."""

import base64

import pytest

from e2e.runs import Runs, tiny_run
from integration.control_plane import KubectlError
from spinrun_protocol.commands import AGENT_PORT, VLLM_PORT

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

ASK = """
import sys, urllib.error, urllib.request
request = urllib.request.Request(sys.argv[1], headers={'Authorization': 'Bearer ' + sys.argv[2]})
try:
    print(urllib.request.urlopen(request, timeout=5).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


def test_vllm_is_out_of_reach_and_the_agent_wants_the_token(runs: Runs) -> None:
    runs.create(tiny_run("guarded", duration={"windows": 400}))
    runs.until_phase("guarded", "Running")
    address = runs.pods("rollout")[0]["status"]["podIP"]
    secret = runs.kubectl("get", "secret", "guarded-token", "--output=jsonpath={.data.token}")

    # NetworkPolicies may not be enforced here: these hold without any.
    with pytest.raises(KubectlError, match="Connection refused"):
        ask(runs, f"http://{address}:{VLLM_PORT}/health", "")
    assert ask(runs, f"http://{address}:{AGENT_PORT}/v1/version", "wrong") == "401"
    assert ask(runs, f"http://{address}:{AGENT_PORT}/v1/version", base64.b64decode(secret).decode()) == "200"


def ask(runs: Runs, url: str, token: str) -> str:
    """The status of an answer, asked for by a pod that is not of the run."""
    return runs.shell("python", "-c", ASK, url, token).strip()
