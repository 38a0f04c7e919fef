"""Rights: those that a role grants, and those that the API server's audit log shows in use."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, order=True)
class Right:
    """One verb on one resource."""

    group: str
    resource: str
    """The plural, with the subresource where there is one: `spinruns/status`."""
    verb: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}" + (f".{self.group}" if self.group else "")


def requests_of(log: Path, user: str) -> list[Json]:
    """The audit log's entries about a user's requests. A watch has its entry from its start on."""
    with log.open() as lines:
        # Most lines are about others, and reading them as JSON would take most of the time.
        entries = (json.loads(line) for line in lines if user in line)
        return [entry for entry in entries if entry["user"]["username"] == user]


def refused(entries: list[Json]) -> list[str]:
    """Requests that were forbidden."""
    return [f"{entry['verb']} {entry['requestURI']}" for entry in entries if entry["responseStatus"]["code"] in (401, 403)]


def used(entries: list[Json]) -> set[Right]:
    """Rights that requests for objects have used. Server-side apply that makes an object needs the right to create it too."""
    rights: set[Right] = set()
    for entry in entries:
        if about := entry.get("objectRef"):
            resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
            made = entry["verb"] == "patch" and entry["responseStatus"]["code"] == 201
            for verb in (entry["verb"], *(["create"] if made else [])):
                rights.add(Right(about.get("apiGroup", ""), resource, verb))
    return rights


def granted(role: Json) -> set[Right]:
    """Rights that a role grants."""
    return {
        Right(group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
