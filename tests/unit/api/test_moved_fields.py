"""Documents from before the settings of a loss had a block: refused where a user writes them, converted where they are stored."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic.alias_generators import to_snake

from spinrun_api.base import ApiModel
from spinrun_api.crd import custom_resource_definition
from spinrun_api.documents import InvalidDocumentError, in_todays_shape, parse_run, parse_stored_run, read_run
from spinrun_api.spec.method import LOSS_BLOCKS, MOVED, Method
from support.documents import method_before
from unit.api.invalid_runs import ADVANTAGE, LOSS_WITH_ITS_METHOD, LOSSES, MINIMAL, SPPO

Json = dict[str, Any]


def stored_before(**method: Any) -> Json:
    """A document as it was stored before."""
    return MINIMAL | {"spec": MINIMAL["spec"] | {"method": method_before(**method)}}


def settings(method: Method) -> ApiModel | None:
    """The settings of the method's loss; None for a loss without any."""
    return getattr(method.resolved(), to_snake(method.loss)) if method.loss in LOSS_BLOCKS else None


@pytest.mark.parametrize("loss", LOSSES)
def test_stored_run_that_set_nothing_of_its_loss_is_the_one_that_a_user_writes_today(loss: str) -> None:
    written = LOSS_WITH_ITS_METHOD[loss]

    converted = parse_stored_run(stored_before(**written))

    assert converted.spec == parse_run(MINIMAL | {"spec": MINIMAL["spec"] | {"method": written}}).spec


@pytest.mark.parametrize(
    ("before", "today"),
    [
        pytest.param({"labelSmoothing": 0.1}, {"labelSmoothing": 0.1, "divergence": "reverseKL"}, id="sigmoid"),
        pytest.param({"loss": "robust", "labelSmoothing": 0.2}, {"labelSmoothing": 0.2}, id="robust"),
        pytest.param({"loss": "ipo", "ipoAverage": False}, {"average": False}, id="ipo"),
        pytest.param(SPPO | {"eta": 10, "includeSelf": False}, {"eta": 10, "includeSelf": False}, id="sppo"),
        pytest.param(SPPO | {"eta": 1000.0}, {"eta": 1000, "includeSelf": True}, id="sppo as its authors"),
        pytest.param(
            ADVANTAGE | {"eta": 1000.0, "advantage": "batch", "kappa": 0.5},
            {"eta": 1000, "advantage": "batch", "kappa": 0.5},
            id="sppoAdvantage",
        ),
        pytest.param(
            {"loss": "cringe", "cringe": {"weight": 1.0, "bias": 2.0, "temperature": 10.0, "topK": 5}},
            {"weight": 1.0, "bias": 2.0, "temperature": 10.0, "topK": 5},
            id="cringe",
        ),
        # 1000 was the default once, for every loss.
        pytest.param({"eta": 1000.0}, {"labelSmoothing": 0.0, "divergence": "reverseKL"}, id="eta of a loss that has none"),
    ],
)
def test_settings_of_a_stored_run_are_the_same_in_their_block(before: Json, today: Json) -> None:
    method = parse_stored_run(stored_before(**before)).spec.method

    now = settings(method)
    assert now is not None
    assert now.to_document() == today


@pytest.mark.parametrize("loss", LOSSES)
def test_conversion_leaves_a_document_of_today_as_it_is(loss: str) -> None:
    block = {loss: LOSS_BLOCKS[loss]().to_document()} if loss in LOSS_BLOCKS else {}
    document = MINIMAL | {"spec": MINIMAL["spec"] | {"method": LOSS_WITH_ITS_METHOD[loss] | block}}

    assert in_todays_shape(document) == document
    assert in_todays_shape(parse_run(document).to_document()) == parse_run(document).to_document()


@pytest.mark.parametrize("document", [{}, {"spec": None}, {"spec": {"method": None}}, {"spec": {"method": {"loss": ["ipo"]}}}])
def test_conversion_leaves_what_it_cannot_read_to_those_who_check_it(document: Json) -> None:
    assert in_todays_shape(document) == document


def test_file_that_spinrun_wrote_before_is_read_and_one_of_a_user_is_not(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    document = stored_before(loss="ipo", ipoAverage=False)
    file.write_text(yaml.safe_dump(document))

    method = read_run(file).spec.method

    assert method.ipo is not None
    assert not method.ipo.average
    with pytest.raises(InvalidDocumentError) as raised:
        parse_run(document, "mine.yaml")
    assert [str(problem) for problem in raised.value.problems] == [
        "spec.method.labelSmoothing: has moved to spec.method.sigmoid.labelSmoothing (or spec.method.robust.labelSmoothing for "
        "the loss robust): write it there",
        "spec.method.ipoAverage: has moved to spec.method.ipo.average: write it there",
        "spec.method.includeSelf: has moved to spec.method.sppo.includeSelf: write it there",
        "spec.method.advantage: has moved to spec.method.sppoAdvantage.advantage: write it there",
        "spec.method.kappa: has moved to spec.method.sppoAdvantage.kappa: write it there",
    ]


def test_every_moved_field_has_a_place_in_the_block_of_each_of_its_losses() -> None:
    missing = [
        f"{loss}.{moved.new}" for moved in MOVED for loss in moved.losses if moved.new not in LOSS_BLOCKS[loss]().to_document()
    ]

    assert missing == []
    assert {moved.old for moved in MOVED} == method_before(eta=1.0).keys() - Method().to_document().keys()


def test_moved_fields_stay_in_the_crd_without_a_default_and_are_refused() -> None:
    root = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    method = root["properties"]["spec"]["properties"]["method"]

    kept = {moved.old: method["properties"][moved.old] for moved in MOVED}
    rules = [each["rule"] for each in method["x-kubernetes-validations"]]
    assert [
        name for name, schema in kept.items() if "default" in schema or not schema["description"].startswith("Moved to")
    ] == []
    assert [name for name in kept if f"!has(self.{name})" not in rules] == []
