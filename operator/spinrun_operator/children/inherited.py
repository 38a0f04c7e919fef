"""Labels and annotations that a run's children have from the run itself, for those who count costs or select by them."""

from collections.abc import Mapping
from typing import Any

from spinrun_api.run import SpinRun
from spinrun_operator.settings import Settings

Json = dict[str, Any]


def with_inherited(child: Json, run: SpinRun, settings: Settings) -> Json:
    """The child with the run's labels and annotations that have no prefix, or one of those that the administrator chose.

    Keys without a prefix are private to users; whoever writes others, such as Argo CD, means this object and not its children.
    The child's own come first. Pods are not concerned: their labels are those of the pod templates.
    """
    metadata = child["metadata"]
    found = {
        name: _chosen(theirs, settings) | metadata.get(name, {})
        for name, theirs in (("labels", run.metadata.labels), ("annotations", run.metadata.annotations))
    }
    return child | {"metadata": metadata | {name: entries for name, entries in found.items() if entries}}


def _chosen(entries: Mapping[str, str], settings: Settings) -> dict[str, str]:
    prefixes = {prefix.removesuffix("/") for prefix in settings.inherited_prefixes}
    return {key: text for key, text in entries.items() if "/" not in key or key.split("/")[0] in prefixes}
