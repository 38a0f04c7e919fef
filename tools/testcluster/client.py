"""Requests to a cluster's processes."""

import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

Object = dict[str, Any]
"""A Kubernetes object, or a configuration, as JSON has it."""


class Client:
    """Requests to the processes, past any proxy that the environment names."""

    def __init__(self, state: Path) -> None:
        trusted = ssl.create_default_context(cafile=str(state / "pki/ca.crt"))
        trusted.load_cert_chain(state / "pki/admin.crt", state / "pki/admin.key")
        # Controller-manager and scheduler sign their own certificates; only their health is asked for.
        untrusted = ssl.create_default_context()
        untrusted.check_hostname = False
        untrusted.verify_mode = ssl.CERT_NONE
        self._trusted, self._untrusted = (
            urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
            for context in (trusted, untrusted)
        )

    def healthy(self, url: str) -> bool:
        """Whether a GET, which anybody may make, succeeds."""
        return self._succeeds(self._untrusted, urllib.request.Request(url))

    def request(self, url: str, body: Object | None = None) -> bool:
        """Whether a GET (or, with a body, a POST) by the administrator succeeds; what exists counts as created."""
        return self._succeeds(self._trusted, self._json_request(url, body))

    def ensure(self, collection: str, body: Object) -> bool:
        """Whether an object is there, or could be created. A Service that is there has its address, so another is refused."""
        return self.request(f"{collection}/{body['metadata']['name']}") or self.request(collection, body)

    def fetch(self, url: str, body: Object | None = None, method: str | None = None) -> Any:
        """The response to a request by the administrator; OSError where there is none, or where it is an error."""
        with self._trusted.open(self._json_request(url, body, method), timeout=5) as response:
            return json.load(response)

    @staticmethod
    def _json_request(url: str, body: Object | None, method: str | None = None) -> urllib.request.Request:
        data = None if body is None else json.dumps(body).encode()
        return urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)

    @staticmethod
    def _succeeds(opener: urllib.request.OpenerDirector, request: urllib.request.Request) -> bool:
        try:
            with opener.open(request, timeout=5):
                return True
        except urllib.error.HTTPError as error:
            return error.code == 409
        except OSError:
            return False
