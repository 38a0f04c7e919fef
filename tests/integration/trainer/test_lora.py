"""Runs that train adapters: what is published, checkpointed, compared with and exported."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from integration.trainer.test_trainer_killed import end_state
from integration.trainer.test_windows import LN2, completed, recorded, spec, steps
from spinrun_protocol.ledger import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from spinrun_worker.ledger import Ledger, read_pairs, verify_tree
from spinrun_worker.records import Pair
from spinrun_worker.trainer.model.policy import Policy, plain_logprob
from support.models import tiny_llama
from support.trainer_process import UID, Attempts

Json = dict[str, Any]

WINDOWS: Json = {"refUpdateFreq": 2}
# Large enough that a version differs from the one before it by more than what floating-point order does.
LORA: Json = {"rank": 4, "alpha": 32}


def lora_spec(attempts: Attempts, *, windows: int = 2, method: Json = WINDOWS, lora: Json = LORA, **trainer: Any) -> Json:
    return spec(attempts, windows=windows, method=method, lora=lora, **({"learningRate": 1e-2, "keepCheckpoints": 9} | trainer))


def base(attempts: Attempts) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(attempts.document["spec"]["model"]["source"], dtype=torch.float32)


def adapted(attempts: Attempts, version: Path) -> PreTrainedModel:
    """By peft and transformers alone."""
    return cast(PreTrainedModel, PeftModel.from_pretrained(base(attempts), version).get_base_model())


def logprobs(model: PreTrainedModel, pairs: Sequence[Pair]) -> list[float]:
    torch.set_num_threads(1)
    plain = Policy(model).model
    with torch.no_grad():
        return [plain_logprob(plain, pair.prompt, answer).item() for pair in pairs for answer in (pair.chosen, pair.rejected)]


def adapter(ledger: Ledger, version: int) -> dict[str, Tensor]:
    return load_file(ledger.layout.weights(version) / ADAPTER_WEIGHTS)


def num_bytes(folder: Path, pattern: str = "*.safetensors") -> int:
    return sum(file.stat().st_size for file in folder.glob(pattern))


def test_versions_are_adapters_that_begin_as_nothing_and_give_the_log_probs_of_the_trainer(
    attempts: Attempts, tmp_path: Path
) -> None:
    ledger = completed(attempts, tmp_path / "ledger", **lora_spec(attempts))

    assert {finding.state for finding in verify_tree(ledger.root)} == {"committed"}
    for version in ledger.numbers("weights"):
        assert {file.path for file in ledger.verify("weights", version).files} == {ADAPTER_CONFIG, ADAPTER_WEIGHTS, "config.json"}
    first, last = adapter(ledger, 1), adapter(ledger, 2)
    assert {tensor.dtype for tensor in last.values()} == {torch.float32}
    assert all(not torch.equal(first[name], last[name]) for name in last)
    pairs = read_pairs(ledger.layout.window(1) / "pairs.parquet")
    of_version = logprobs(adapted(attempts, ledger.layout.weights(1)), pairs)
    assert recorded(pairs) == pytest.approx(of_version, abs=2e-4)
    assert recorded(pairs) != pytest.approx(logprobs(base(attempts), pairs), abs=2e-2)
    assert [line.values["loss"] for line in steps(ledger)][::2] == pytest.approx([LN2, LN2], abs=1e-6)


def test_version_0_is_the_base(attempts: Attempts, tmp_path: Path) -> None:
    ledger = completed(
        attempts, tmp_path / "ledger", **lora_spec(attempts, method=WINDOWS | {"refUpdateFreq": 0, "rolloutUpdateFreq": 2})
    )

    zeros = {name for name, tensor in adapter(ledger, 0).items() if not tensor.any()}
    assert zeros == {name for name in adapter(ledger, 0) if "lora_B" in name}
    pairs = read_pairs(ledger.layout.window(1) / "pairs.parquet")
    assert recorded(pairs) == pytest.approx(logprobs(base(attempts), pairs), abs=2e-4), "the reference of all windows"
    assert ledger.verify("window", 1).reference == ledger.verify("window", 0).reference


def test_what_a_window_writes_is_as_small_as_its_adapters(attempts: Attempts, tmp_path: Path) -> None:
    source = Path(attempts.document["spec"]["model"]["source"])
    ledger = completed(
        attempts, tmp_path / "ledger", **lora_spec(attempts, lora={"rank": 1, "targets": ["q_proj", "mlp.up_proj"]})
    )

    layers, hidden, queries, wide = 2, 128, 128, 256
    trained = 4 * layers * ((hidden + queries) + (hidden + wide))
    assert {name.split(".")[-3] for name in adapter(ledger, 2)} == {"q_proj", "up_proj"}
    assert sum(tensor.nbytes for tensor in adapter(ledger, 2).values()) == trained
    header = 8192
    assert num_bytes(ledger.layout.checkpoint(4)) < 3 * trained + header  # themselves and two moments of each
    assert num_bytes(source) > 100 * trained


@pytest.mark.timeout(900)
def test_a_run_of_adapters_that_is_killed_ends_in_the_same_state(attempts: Attempts, tmp_path: Path) -> None:
    # An older reference, so that what is killed also reads versions back.
    run = lora_spec(attempts, method={"refUpdateFreq": 4, "rolloutUpdateFreq": 2})
    undisturbed, listed = tmp_path / "undisturbed", tmp_path / "changes"
    assert attempts.run(undisturbed, list_to=listed, **run) == 0, attempts.log(1).read_text()
    want = end_state(undisturbed)
    assert {"weights 2", "window 1", "checkpoint 4"} <= set(want)

    num_changes = len(listed.read_text().splitlines())
    for change in range(3, num_changes, 14):
        trial = tmp_path / "trial"
        assert attempts.run(trial, kill_at=change, **run) == -9, attempts.log(1).read_text()
        where = attempts.log(1).read_text().splitlines()[-1]
        assert attempts.run(trial, attempt=2, **run) == 0, f"{where}\n{attempts.log(2).read_text()}"
        assert end_state(trial) == want, where
        shutil.rmtree(trial)


def test_the_last_version_is_exported_as_a_whole_model(attempts: Attempts, tmp_path: Path) -> None:
    run = lora_spec(attempts, lora=LORA | {"exportMerged": True})
    ledger = completed(attempts, tmp_path / "ledger", **run)

    merged = ledger.layout.path("merged", 2)
    manifest = ledger.verify("merged", 2)
    assert ledger.present("merged") == [2]
    assert manifest.parent == ledger.verify("weights", 2).digest
    pairs = read_pairs(ledger.layout.window(1) / "pairs.parquet")
    alone = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    of_version = logprobs(adapted(attempts, ledger.layout.weights(2)), pairs)
    assert logprobs(alone, pairs) == pytest.approx(of_version, abs=2e-4)
    assert of_version != pytest.approx(recorded(pairs), abs=2e-2), "version 2 is not version 1"
    assert AutoTokenizer.from_pretrained(merged).chat_template
    assert {finding.state for finding in verify_tree(ledger.root)} == {"committed"}

    before = (merged / "MANIFEST.json").read_bytes()
    assert attempts.run(ledger.root, attempt=2, **run) == 0, attempts.log(2).read_text()
    assert (merged / "MANIFEST.json").read_bytes() == before, "it is there already"
    (merged / "model.safetensors").write_bytes(b"")
    assert attempts.run(ledger.root, attempt=3, **run) == 0, attempts.log(3).read_text()
    assert Ledger(ledger.root, UID).verify("merged", 2).digest == manifest.digest, "a damaged one is written again"


def test_targets_that_the_model_does_not_have_are_refused_by_name(attempts: Attempts, tmp_path: Path) -> None:
    assert attempts.run(tmp_path / "ledger", **lora_spec(attempts, lora={"targets": ["query_key_value"]})) == 2
    words = attempts.termination_message(1).read_text()
    assert "trainer.lora.targets: no linear layer of LlamaForCausalLM has a name that ends in query_key_value" in words
    assert "self_attn.q_proj" in words


def test_adapters_do_not_go_on_beside_another_base(attempts: Attempts, tmp_path: Path) -> None:
    source = Path(shutil.copytree(attempts.document["spec"]["model"]["source"], tmp_path / "model"))
    run: Json = lora_spec(attempts, windows=1) | {"model": {"source": str(source)}}
    assert attempts.run(tmp_path / "ledger", **run) == 0, attempts.log(1).read_text()
    tiny_llama(source, seed=9)
    longer: Json = run | {"duration": {"windows": 2}}

    assert attempts.run(tmp_path / "ledger", attempt=2, **longer) == 2
    assert f"model.source '{source}' has other weights now than when the run began" in attempts.termination_message(2).read_text()
    tiny_llama(source)
    assert attempts.run(tmp_path / "ledger", attempt=3, **longer) == 0, attempts.log(3).read_text()
