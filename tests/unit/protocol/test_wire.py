import json

from spinrun_protocol.wire import Progress

AT_WORK = {"uid": "u", "attempt": 1, "activity": "train", "window": 0, "windows": 2, "step": 1, "totalSteps": 4}


def test_progress_of_a_trainer_from_before_is_read_in_todays_words() -> None:
    assert Progress.model_validate_json(json.dumps(AT_WORK | {"activity": "prefer"})).activity == "score"
    assert Progress.model_validate_json(json.dumps(AT_WORK)).activity == "train"
