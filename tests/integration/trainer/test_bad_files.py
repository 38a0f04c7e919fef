"""Files that nothing can be made of, through the real trainer: a sentence and exit code 2, so that nobody tries again."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from support.models import smallest_llama
from support.trainer_process import Attempts


def divide_by_zero(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ 1 / 0 }}")


def panic(folder: Path) -> None:
    path = folder / "tokenizer.json"
    charsmap = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": charsmap}))


def pickle_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def shrink_vocabulary(folder: Path) -> None:
    """Tokenizer and model of different families: the weights are whole, and know fewer tokens than the tokenizer writes."""
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    vocabulary = document["model"]["vocab"]
    document["model"]["vocab"] = {token: index + (1000 if len(token) == 1 else 0) for token, index in vocabulary.items()}
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("damage", "want"),
    [
        (divide_by_zero, "chat_template.jinja fails on it: ZeroDivisionError"),
        (panic, "PanicException"),
        (pickle_weights, "pytorch_model.bin alone, which runs code"),
        (lambda folder: os.truncate(folder / "generation_config.json", 20), "generation_config.json is not JSON"),
        (shrink_vocabulary, "model.source knows 512 tokens"),
    ],
    ids=["template", "panic", "pickle", "generation config", "vocabulary"],
)
def test_a_file_that_is_at_fault_ends_the_run_with_a_sentence(
    attempts: Attempts, tmp_path: Path, damage: Callable[[Path], None], want: str
) -> None:
    folder = smallest_llama(tmp_path / "model")
    damage(folder)

    assert attempts.run(tmp_path / "ledger", model={"source": str(folder)}) == 2

    log = attempts.log(1).read_text()
    assert "Traceback" not in log
    words = json.loads(attempts.termination_message(1).read_text())
    assert (words["reason"], words["exitCode"]) == ("InvalidConfiguration", 2)
    assert want in words["message"]
