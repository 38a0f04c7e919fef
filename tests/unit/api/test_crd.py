"""The CRD is what the models say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spinrun_api.crd import custom_resource_definition, structural_schema, to_yaml
from spinrun_api.documents import InvalidDocumentError, parse_run
from spinrun_api.run import MAX_NAME_LENGTH
from spinrun_api.spec import Duration, Model, PassRateBand, Prompts, Rollout, SpinRunSpec, Storage
from spinrun_api.spec.types import LINES, ONE_LINE
from unit.api.invalid_runs import INVALID, MINIMAL, Invalid

Json = dict[str, Any]

FILE = Path(__file__).resolve().parents[3] / "crds" / "spinrun.dev_spinruns.yaml"


def walk(schema: Json, path: str = "") -> Iterator[tuple[str, Json]]:
    """Every schema inside a schema, with its path."""
    yield path, schema
    for name, value in schema.get("properties", {}).items():
        yield from walk(value, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from walk(schema[key], f"{path}[]")


def root() -> Json:
    """The schema of the whole document."""
    return custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def test_file_is_what_the_models_generate() -> None:
    assert FILE.read_text() == to_yaml(custom_resource_definition()), "run `make generate`"


@pytest.mark.parametrize("invalid", [pytest.param(invalid, id=name) for name, invalid in INVALID.items()])
def test_invalid_document_is_refused_with_its_field_named(invalid: Invalid) -> None:
    with pytest.raises(InvalidDocumentError) as raised:
        parse_run(invalid.document())
    assert invalid.field in str(raised.value)


def test_minimal_document_is_valid() -> None:
    assert parse_run(MINIMAL).spec.rollout.samples_per_prompt == 8


def test_every_field_is_described() -> None:
    described = (".spec", ".status")
    bare = [
        path
        for path, schema in walk(root())
        if path.startswith(described) and not path.endswith("[]") and not schema.get("description")
    ]
    assert bare == []


def test_only_what_kubernetes_itself_checks_is_open() -> None:
    open_ones = [path for path, schema in walk(root()) if schema.get("x-kubernetes-preserve-unknown-fields")]
    templates = [f".spec.{block}.template" for block in ("rollout", "scorer", "trainer")]
    assert sorted(open_ones) == [".spec.network.egress[]", *templates]


def test_every_text_list_and_map_of_the_spec_has_a_limit() -> None:
    limits = {"string": "maxLength", "array": "maxItems"}
    schemas = [(path, schema) for path, schema in walk(root()["properties"]["spec"])]
    missing = [
        path for path, schema in schemas if limits.get(schema.get("type", ""), "type") not in schema and "enum" not in schema
    ]
    assert missing == [".rollout.engineArgs[]", ".scorer.engineArgs[]"], (
        "their values are numbers or text, for which Kubernetes takes no limit"
    )


def test_no_text_of_the_spec_takes_control_characters() -> None:
    """Patterns that stand in the CRD: their own letters exclude most, and those below the rest."""
    schemas = [(path, schema) for path, schema in walk(root()["properties"]["spec"]) if schema.get("type") == "string"]
    free = [path for path, schema in schemas if "pattern" not in schema and "enum" not in schema]
    assert free == []
    lines = sorted(path.rpartition(".")[2] for path, schema in schemas if schema.get("pattern") == LINES)
    assert lines == ["chatTemplate", "firstTemplate", "secondTemplate", *["template"] * 5]


def test_optional_field_is_plain_and_not_required() -> None:
    schema = structural_schema(Model)
    assert schema["required"] == ["source"]
    revision = schema["properties"]["revision"]
    assert revision.pop("description").startswith("Branch, tag or commit of a Hub model.")
    assert revision == {"type": "string", "minLength": 1, "maxLength": 1024, "pattern": ONE_LINE}


def test_exclusive_limit_is_written_as_openapi_does() -> None:
    temperature = structural_schema(Rollout)["properties"]["temperature"]
    assert {key: temperature[key] for key in ("minimum", "exclusiveMinimum", "maximum")} == {
        "minimum": 0,
        "exclusiveMinimum": True,
        "maximum": 10,
    }


def test_defaults_of_blocks_leave_the_rest_to_the_fields() -> None:
    properties = structural_schema(SpinRunSpec)["properties"]
    assert properties["method"]["default"] == {}
    assert properties["duration"]["default"] == {"epochs": 1}
    assert properties["storage"]["default"] == {"size": "50Gi"}
    assert properties["storage"]["properties"]["accessModes"]["default"] == ["ReadWriteMany"]


@pytest.mark.parametrize(
    ("model", "count"), [(Duration, 1), (Storage, 2), (SpinRunSpec, 14), (PassRateBand, 1), (Prompts, 3), (Model, 0)]
)
def test_rules_of_a_model_are_its_validations(model: type[Any], count: int) -> None:
    validations = structural_schema(model).get("x-kubernetes-validations", [])
    assert [each["message"] for each in validations] == [rule.message for rule in model.rules.values()]
    assert len(validations) == count


def test_blocks_that_made_the_ledger_are_immutable_once_started() -> None:
    transitions = [each for each in root()["x-kubernetes-validations"] if "oldSelf" in each["rule"]]
    assert [each["fieldPath"] for each in transitions] == [
        f".spec.{block}" for block in ("model", "data", "method", "preference", "storage", "trainer.lora")
    ]
    assert all("oldSelf.status.startTime" in each["rule"] for each in transitions)


def test_controller_of_a_run_cannot_change() -> None:
    (rule,) = root()["properties"]["spec"]["properties"]["lifecycle"]["x-kubernetes-validations"]
    assert (rule["fieldPath"], rule["message"]) == (".managedBy", "managedBy cannot change: make a new SpinRun")
    same = "(!has(self.managedBy) || self.managedBy == oldSelf.managedBy)"
    assert rule["rule"] == f"has(self.managedBy) == has(oldSelf.managedBy) && {same}"
    # A transition is checked only where there was a value before: an absent block is filled in.
    assert root()["properties"]["spec"]["properties"]["lifecycle"]["default"] == {}


def test_name_limit_leaves_room_for_the_longest_child() -> None:
    # A pod's name is its host name, of at most 63 characters: <run>-trainer-<attempt>-<node>, and five random ones for the pod.
    assert MAX_NAME_LENGTH + len("-trainer-9999-1023-abcde") <= 64
