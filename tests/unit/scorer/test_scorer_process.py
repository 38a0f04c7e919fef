"""The agent of a scorer as a process: what it needs to start, and how it ends."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from spinrun_protocol import commands
from spinrun_protocol.environment import TOKEN_FILE
from support.engines import ServerProcess
from support.ports import free_port


def test_sigterm_ends_it_with_zero(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    port, health_port = free_port(), free_port()
    process = commands.scorer_agent(port=port, health_port=health_port, vllm_port=free_port(), host="127.0.0.1")
    server = ServerProcess(
        process, port=port, health="/healthz", log=tmp_path / "log", environment={TOKEN_FILE: str(tmp_path / "token")}
    )
    server.start()
    try:
        server.wait_until_up(60)
        assert httpx.get(f"{server.url}/readyz").status_code == 503, "there is no vLLM"
        for path, status in (("/healthz", 200), ("/readyz", 503), ("/metrics", 404), ("/classify", 401)):
            assert httpx.get(f"http://127.0.0.1:{health_port}{path}").status_code == status
        server.terminate()
        assert server.wait() == 0
    finally:
        server.stop()


@pytest.mark.parametrize(("token", "message"), [(None, f"{TOKEN_FILE}="), (" \n", "is empty")])
def test_without_a_token_it_ends_with_code_2(tmp_path: Path, token: str | None, message: str) -> None:
    if token is not None:
        (tmp_path / "token").write_text(token)
    command = [sys.executable, "-m", "spinrun_worker.scorer", "--port", str(free_port())]
    environment = os.environ | {TOKEN_FILE: "token"}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert message in ended.stderr
