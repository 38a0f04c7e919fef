"""docs/rbac.md says what the chart grants."""

import re

import pytest

from integration.chart.audit import Right, granted
from unit.chart.helm import ROOT, documents, one, template

pytestmark = pytest.mark.cluster


def documented() -> set[Right]:
    """The rights of the operator's table."""
    section = (ROOT / "docs" / "rbac.md").read_text().split("## The operator\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (core|`[\w.]+`) \| ((?:`[\w/]+` ?)+)\| ((?:`\w+` ?)+)\|", section, flags=re.MULTILINE)
    return {
        Right("" if group == "core" else group.strip("`"), resource, verb)
        for group, resources, verbs in rows
        for resource in re.findall(r"[\w/]+", resources)
        for verb in re.findall(r"\w+", verbs)
    }


def test_documented_rights_are_those_of_the_chart() -> None:
    assert documented() == granted(one(documents(template()), "ClusterRole"))


def test_rights_in_a_namespace_are_those_in_the_cluster() -> None:
    rules = one(documents(template()), "ClusterRole")["rules"]
    found = documents(template("--set", "watchNamespaces={team-a,team-b}"))
    roles = {each["metadata"]["namespace"]: each["rules"] for each in found if each["kind"] == "Role"}
    assert roles == {"team-a": rules, "team-b": rules}
    assert not [each for each in found if each["kind"] == "ClusterRoleBinding"]


def test_pod_monitors_are_granted_only_where_they_are_made() -> None:
    role = one(documents(template("--set", "settings.podMonitor=false")), "ClusterRole")
    assert {right.resource for right in documented() - granted(role)} == {"podmonitors"}
