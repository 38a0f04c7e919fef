"""How the client finds the API server."""

from pathlib import Path

import pytest
import yaml

from spinrun_kube.api import connect

CONFIG = {
    "current-context": "here",
    "contexts": [{"name": "here", "context": {"cluster": "there", "user": "me"}}],
    "clusters": [{"name": "there", "cluster": {"server": "https://api.example.com:6443"}}],
    "users": [{"name": "me", "user": {"token": "secret"}}],
}


@pytest.mark.parametrize(
    ("environment", "proxy"),
    [
        ({}, None),
        ({"HTTPS_PROXY": "http://proxy:3128"}, "http://proxy:3128"),
        ({"https_proxy": "http://proxy:3128", "NO_PROXY": "10.0.0.0/8,.example.com"}, None),
        ({"HTTP_PROXY": "http://proxy:3128"}, None),
    ],
)
async def test_proxy_is_looked_up_once_and_never_at_a_request(
    environment: dict[str, str], proxy: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    file = tmp_path / "kubeconfig"
    file.write_text(yaml.safe_dump(CONFIG))
    monkeypatch.setenv("KUBECONFIG", str(file))
    async with await connect() as client:
        assert client.configuration.proxy == proxy
        session = client.rest_client._create_pool_manager()
        assert session.trust_env is False
        await session.close()
