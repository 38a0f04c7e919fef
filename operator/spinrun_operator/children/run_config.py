"""The ConfigMap with the resolved run: what trainer and agents read instead of asking the Kubernetes API."""

import json
from typing import Any

from spinrun_api.redaction import for_processes
from spinrun_api.run import SpinRun
from spinrun_kube import names

Json = dict[str, Any]

LONGEST_INDENTED = 8 * 1024
"""Characters of a run that is written a field a line."""


def run_config(run: SpinRun) -> Json:
    """The run with every default filled in, without secrets, and of its metadata only what makes its identity. Read it with
    `read_run`."""
    metadata = {"name": run.metadata.name, "namespace": names.namespace(run), "uid": run.metadata.uid}
    document = {
        "apiVersion": run.api_version,
        "kind": run.kind,
        "metadata": metadata,
        "spec": run.spec.to_document(),
    }
    document = for_processes(document)
    # JSON is YAML, and is written ten times as fast.
    text = json.dumps(document, ensure_ascii=False)
    if len(text) <= LONGEST_INDENTED:
        # For people. What is large takes Python too long, and what is nested deep may become more than a ConfigMap holds.
        text = json.dumps(document, indent=1, ensure_ascii=False)
    text += "\n"
    return names.child(run, "v1", "ConfigMap", names.run_config_name(run), "run", data={"run.yaml": text})
