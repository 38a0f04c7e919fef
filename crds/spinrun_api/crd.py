"""The CustomResourceDefinition of SpinRun, made from the models: `python -m spinrun_api.crd` prints it.

Pydantic's JSON schema becomes a structural schema as the API server wants it: references inlined, optional fields without
null, exclusive limits in OpenAPI's way, defaults that the API server fills in, and the models' rules in CEL.
"""

import sys
from collections.abc import Mapping
from typing import Any, cast

import yaml
from pydantic import BaseModel

from spinrun_api.base import ApiModel, Rule, models_in
from spinrun_api.run import GROUP, KIND, MAX_NAME_LENGTH, NAME_PATTERN, PLURAL, VERSION, SpinRun
from spinrun_api.spec import SpinRunSpec
from spinrun_api.spec.method import MOVED
from spinrun_api.status import SpinRunStatus

Json = dict[str, Any]

IMMUTABLE = ("model", "data", "method", "preference", "storage", "trainer.lora")
"""Blocks of the spec that stay as they are once the trainer has run: the ledger was made with them."""

OPTIONAL_BLOCKS = ("trainer.lora",)
"""Those of them that may be absent."""

# What kubectl shows: (heading, type, path, priority). Priority 1 is shown by -o wide.
COLUMNS = (
    ("Phase", "string", ".status.phase", 0),
    ("Window", "integer", ".status.window", 0),
    ("Step", "integer", ".status.step", 0),
    ("Accuracy", "number", ".status.metrics.accuracy", 0),
    ("Rollouts", "integer", ".status.rollouts.ready", 0),
    ("Version", "integer", ".status.version", 0),
    ("Attempt", "integer", ".status.attempt", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Loss", "number", ".status.metrics.loss", 1),
    ("Scorers", "integer", ".status.scorers.ready", 1),
    ("Samples/s", "number", ".status.metrics.samplesPerSecond", 1),
    ("ETA", "string", ".status.eta", 1),
)

NAME_RULES = (
    Rule(
        f"self.metadata.name.size() <= {MAX_NAME_LENGTH}",
        f"metadata.name must be at most {MAX_NAME_LENGTH} characters: the names of pods are made from it",
    ),
    Rule(
        f"self.metadata.name.matches('{NAME_PATTERN}')",
        "metadata.name must be lower-case letters, digits and dashes, with a letter in front",
    ),
)


def custom_resource_definition() -> Json:
    """The CustomResourceDefinition as a document."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["spin"],
                "categories": ["all"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": _root_schema()},
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [_column(*column) for column in COLUMNS],
                }
            ],
        },
    }


def _column(name: str, kind: str, path: str, priority: int) -> Json:
    return {"name": name, "type": kind, "jsonPath": path, "priority": priority}


def _root_schema() -> Json:
    description = (SpinRun.__doc__ or "").strip()
    spec = structural_schema(SpinRunSpec)
    _keep_moved_fields(spec["properties"]["method"])
    spec["properties"]["lifecycle"].setdefault("x-kubernetes-validations", []).append(_fixed_manager())
    return {
        "type": "object",
        "description": description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": structural_schema(SpinRunStatus),
        },
        "x-kubernetes-validations": [*map(_validation, NAME_RULES), *map(_immutability, IMMUTABLE)],
    }


def _keep_moved_fields(method: Json) -> None:
    """Keep the fields that have moved for runs that were stored with them: the API server silently prunes unknown ones.

    Whoever writes them is told their new places. In a stored run the API server tolerates them as long as `method` stays the
    same, because it does not check rules again over a part that did not change.
    """
    for moved in MOVED:
        today = method["properties"][moved.losses[0]]["properties"][moved.new]
        limits = {key: value for key, value in today.items() if key != "default"}
        method["properties"][moved.old] = limits | {"description": f"Moved to {moved.place}."}
        method["x-kubernetes-validations"].append(_validation(Rule(f"!has(self.{moved.old})", moved.refusal)))


def _validation(rule: Rule) -> Json:
    return {"rule": rule.cel, "message": rule.message}


def _immutability(block: str) -> Json:
    started = "has(oldSelf.status) && has(oldSelf.status.startTime)"
    same = f"self.spec.{block} == oldSelf.spec.{block}"
    if block in OPTIONAL_BLOCKS:
        is_there, was_there = f"has(self.spec.{block})", f"has(oldSelf.spec.{block})"
        same = f"({is_there} == {was_there} && (!{is_there} || {same}))"
    return {
        "rule": f"!({started}) || {same}",
        "message": f"spec.{block} cannot change once the run has started: make a new SpinRun",
        "fieldPath": f".spec.{block}",
    }


def _fixed_manager() -> Json:
    """Of the block `lifecycle`: two controllers would serve the run while one hands it to the other."""
    is_there, was_there = "has(self.managedBy)", "has(oldSelf.managedBy)"
    return {
        "rule": f"{is_there} == {was_there} && (!{is_there} || self.managedBy == oldSelf.managedBy)",
        "message": "managedBy cannot change: make a new SpinRun",
        "fieldPath": ".managedBy",
    }


def structural_schema(model: type[ApiModel]) -> Json:
    """The schema of a model in the form that Kubernetes takes."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    definitions = cast(Json, schema.pop("$defs", {}))
    return _object(schema, definitions, model)


def _object(schema: Json, definitions: Json, model: type[ApiModel]) -> Json:
    """The schema of a block. The model is needed beside its JSON schema, which has neither rules nor made defaults."""
    result: Json = {"type": "object", "description": _one_line(schema.get("description", ""))}
    if required := schema.get("required"):
        result["required"] = required
    result["properties"] = {
        field.alias or name: _field(schema["properties"][field.alias or name], definitions, model, name)
        for name, field in model.model_fields.items()
    }
    if model.rules:
        result["x-kubernetes-validations"] = [_validation(rule) for rule in model.rules.values()]
    return result


def _field(schema: Json, definitions: Json, model: type[ApiModel], name: str) -> Json:
    field = model.model_fields[name]
    result = _value(schema, definitions, list(models_in(field.annotation)))
    if field.description:
        result["description"] = _one_line(field.description)
    if not field.is_required():
        result |= _default(field.get_default(call_default_factory=True))
    return result


def _default(value: object) -> Json:
    """A default for the API server to fill in; none where it would only lengthen what `kubectl get -o yaml` shows."""
    if isinstance(value, BaseModel):
        # What differs from the defaults of the block's own fields: the API server fills in the rest.
        return {"default": value.model_dump(mode="json", by_alias=True, exclude_unset=True)}
    return {} if value in (None, [], {}) else {"default": value}


def _value(schema: Json, definitions: Json, models: list[type[ApiModel]]) -> Json:
    """The schema of any value.

    Args:
        schema: Its JSON schema.
        definitions: What the schema refers to.
        models: Those that its type mentions; at most one, in this API.
    """
    if "$ref" in schema:
        return _object(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions, models[0])
    if options := schema.get("anyOf"):
        present = [option for option in options if option.get("type") != "null"]
        if {option.get("type") for option in present} == {"integer", "string"}:
            return {"x-kubernetes-int-or-string": True, **_limits(schema)}
        return _value(present[0], definitions, models)
    match schema.get("type"):
        case "array":
            return {"type": "array", "items": _value(schema["items"], definitions, models), **_limits(schema)}
        case "object":
            return _map(schema, definitions, models)
        case _:
            return _scalar(schema)


def _map(schema: Json, definitions: Json, models: list[type[ApiModel]]) -> Json:
    """A map with values of one type; without a type of its own it is a pod template, which Kubernetes itself will check."""
    if keys := schema.get("patternProperties"):
        pattern, value = next(iter(cast(dict[str, Json], keys).items()))
        longest = schema.get("propertyNames", {}).get("maxLength", 64)
        return {
            "type": "object",
            "additionalProperties": _value(value, definitions, models),
            **_limits(schema),
            "x-kubernetes-validations": [
                {
                    "rule": f"self.all(name, name.size() <= {longest} && name.matches('{pattern}'))",
                    "message": f"names must match {pattern} and be at most {longest} characters long",
                },
                *schema.get("x-kubernetes-validations", []),
            ],
        }
    return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def _scalar(schema: Json) -> Json:
    result: Json = {"type": schema["type"], **_limits(schema)}
    if "const" in schema:
        result["enum"] = [schema["const"]]
    elif "enum" in schema:
        result["enum"] = schema["enum"]
    if schema["type"] == "integer":
        result["format"] = "int64"
    return result


_LIMITS = (
    "minimum", "maximum", "minLength", "maxLength", "pattern", "minItems", "maxItems", "minProperties", "maxProperties",
)  # fmt: skip


def _limits(schema: Json) -> Json:
    result = {name: schema[name] for name in _LIMITS if name in schema}
    for side in ("Minimum", "Maximum"):
        if (limit := schema.get(f"exclusive{side}")) is not None:
            result |= {side.lower(): limit, f"exclusive{side}": True}
    return result


def _one_line(text: str) -> str:
    return " ".join(text.split())


class _Dumper(yaml.SafeDumper):
    """YAML without anchors and with long lines, as people write it."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


def to_yaml(document: Mapping[str, Any]) -> str:
    """The document as the file that `make generate` writes."""
    head = "# Generated by `python -m spinrun_api.crd`: change the models in spinrun_api instead.\n"
    return head + yaml.dump(dict(document), Dumper=_Dumper, sort_keys=False, width=130, allow_unicode=True)


if __name__ == "__main__":
    sys.stdout.write(to_yaml(custom_resource_definition()))
