"""`spinrun estimate`: from a file and options to a table, JSON or one clear message."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from spinrun_cli.estimate.hardware import CARDS, Speeds
from spinrun_cli.local import checks, estimate, speeds
from unit.cli.conftest import DOCUMENT
from unit.cli.shell import Shell
from unit.cli.test_installed import OF_EXTRAS, run_without

SMOLLM2: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
TWO_CORES = Speeds(bfloat16=4e11, float32=2e11, copy=1e10, memory=25e9)


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a GPU, measured already."""
    monkeypatch.setattr(speeds, "measure_speeds", lambda: TWO_CORES)
    monkeypatch.setattr(speeds, "gpu_name", lambda: None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A run of a model whose config.json is here."""
    return write(tmp_path, SMOLLM2)


def write(folder: Path, config: dict[str, Any] | str, **blocks: Any) -> Path:
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    document = DOCUMENT | {"spec": DOCUMENT["spec"] | {"model": {"source": str(model)}} | blocks}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_person_reads_memory_seconds_bytes_and_what_limits(spinrun: Shell, file: Path):
    code, out, err = spinrun(
        "estimate", str(file), "--set", "spec.rollout.maxTokens=16", "--set", "spec.data.maxPromptTokens=112"
    )

    assert (code, err) == (0, "")
    assert "adding: 5 windows of 16 steps on this machine, 2 cores (1 rank, 1 rollout)" in out
    for title in (
        "memory of a rank",
        "memory of a rollout",
        "a window",
        "bytes",
        "what limits it",
        "assumed (--assume NAME=VALUE)",
    ):
        assert re.search(rf"^{re.escape(title)} ", out, re.MULTILINE), title
    assert re.search(r"^answerTokens +8 +half of the longest", out, re.MULTILINE)


def test_a_program_reads_numbers(spinrun: Shell, file: Path):
    code, out, _ = spinrun("estimate", str(file), "--gpu", "h100", "--assume", "answerTokens=100", "--output", "json")

    document = json.loads(out)
    assert code == 0
    assert (document["fits"], document["hardware"], document["model"]["parameters"]) == (True, "H100", 134_515_008)
    assert document["memory"]["rank"]["parts"]["weights"] == 4 * 134_515_008
    assert document["boundary"] == {"versionBytes": 269_030_016, "writtenBytes": 7 * 269_030_016, "readBytes": 269_030_016}
    assert document["window"]["seconds"] > document["window"]["generateSeconds"] > 0
    assert {"name": "answerTokens", "value": 100.0, "why": "as given", "given": True} in document["assumptions"]
    # The built-in questions of the test split, every window.
    assert {each["name"]: each["value"] for each in document["assumptions"]}["evaluationPrompts"] == 90


def test_a_run_that_does_not_fit_ends_with_1_and_says_what_to_set(spinrun: Shell, file: Path):
    code, out, _ = spinrun("estimate", str(file), "--gpu", "L4", "--set", "spec.trainer.tokensPerMicroBatch=100000")

    assert code == 1
    assert re.search(r"a rank needs .* too little: set trainer.tokensPerMicroBatch", out)


def test_the_shape_of_a_known_model_needs_no_hub(spinrun: Shell, file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checks, "config_of_hub_model", lambda *_: pytest.fail("asked the Hub"))

    code, out, _ = spinrun("estimate", str(file), "--set", "spec.model.source=Qwen/Qwen2.5-1.5B", "--gpu", "H100", "-o", "json")

    assert code == 0
    assert json.loads(out)["model"]["parameters"] == 1_543_714_304
    assert "its shape is that of its config.json as published" in json.loads(out)["notes"][0]


def test_a_model_that_cannot_be_fetched_says_what_to_do(spinrun: Shell, file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    code, _, err = spinrun("estimate", str(file), "--set", "spec.model.source=nobody/nothing", "--gpu", "H100")

    assert code == 2
    assert "config.json of nobody/nothing was found neither in the cache nor on the Hub" in err
    assert "give its config.json from elsewhere by --model-config PATH. Known without the Hub: HuggingFaceTB/SmolLM2" in err


def test_a_config_from_elsewhere_takes_the_place_of_the_models_own(spinrun: Shell, file: Path, tmp_path: Path):
    options = ("--gpu", "H100", "-o", "json", "--set", "spec.model.source=/ledger/models/mine")

    refused = spinrun("estimate", str(file), *options)
    folder = spinrun("estimate", str(file), *options, "--model-config", str(tmp_path / "model"))
    config = spinrun("estimate", str(file), *options, "--model-config", str(tmp_path / "model" / "config.json"))

    assert refused[0] == 2
    assert "/ledger/models/mine is not a folder here: correct the path, or give its config.json by --model-config" in refused[2]
    assert folder == config
    assert json.loads(folder[1])["model"]["parameters"] == 134_515_008


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu", "V100"], f"--gpu V100: not known. Known are {', '.join(CARDS)}, and cpu for this machine"),
        (["--gpu", "H100", "--gpus", "8"], "--gpus 8: the run uses 2 GPUs: 1 for the trainer, 1 for rollouts; the others"),
        (["--gpu", "cpu", "--gpus", "2"], "--gpus counts GPUs, and there are none with --gpu cpu"),
        (["--gpu", "H100", "--assume", "speed=3"], "speed is not an assumption. There are: answerTokens"),
        (["--gpu", "H100", "--assume", "answerTokens"], "--assume answerTokens: must look like answerTokens=200"),
        (["--gpu", "H100", "--assume", "answerTokens=many"], "must look like answerTokens=200"),
        (["--gpu", "H100", "--set", "spec.trainer.nods=2"], "did you mean nodes?"),
        (["--gpu", "H100", "--set", "spec.rollout.tensorParallelSize=2"], "2 GPUs cannot share the model evenly"),
        (["--gpu", "H100", "--set", "spec.data.prompts.config=sums"], "spec.data.prompts.config: must be OPERATION-LARGEST"),
    ],
)
def test_options_that_cannot_be_are_one_message(spinrun: Shell, file: Path, options: list[str], message: str):
    code, out, err = spinrun("estimate", str(file), *options)

    assert (code, out) == (2, "")
    assert message in err


def test_no_gpus_are_refused(spinrun: Shell, file: Path):
    code, _, err = spinrun("estimate", str(file), "--gpu", "H100", "--gpus", "0")

    assert code == 2
    assert "--gpus" in err


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "is not a JSON object"),
        ("[" * 100_000, "is not a JSON object"),
        ("[]", "is not a JSON object"),
        ('{"model_type": "llama"}', "it has no hidden_size"),
        (json.dumps(SMOLLM2 | {"hidden_size": 10**30}), "hidden_size: it is not from 1 to"),
        (json.dumps(SMOLLM2 | {"vocab_size": -1}), "vocab_size: -1 is not from 1 to"),
        (json.dumps(SMOLLM2 | {"num_local_experts": 8}), "mixtures of experts are not trained"),
        (json.dumps(SMOLLM2 | {"layer_types": ["\x1b[2Jlinear"]}), "only layers of full or sliding attention"),
        ('{"hidden_size": NaN, "num_attention_heads": Infinity}', "it has no hidden_size"),
    ],
)
def test_a_hostile_config_is_one_message(spinrun: Shell, tmp_path: Path, config: str, message: str):
    code, out, err = spinrun("estimate", str(write(tmp_path, config)), "--gpu", "H100")

    assert (code, out) == (2, "")
    assert message in err
    assert "\x1b" not in err


def test_a_model_without_a_config_is_one_message(spinrun: Shell, file: Path, tmp_path: Path):
    (tmp_path / "model" / "config.json").unlink()

    code, _, err = spinrun("estimate", str(file), "--gpu", "H100")

    assert code == 2
    assert "a model is a Hugging Face folder with a config.json" in err


def test_a_file_that_holds_no_run_is_one_message(spinrun: Shell, tmp_path: Path):
    (tmp_path / "other.yaml").write_text("kind: Pod\n")

    assert spinrun("estimate", str(tmp_path / "other.yaml"))[0] == 2
    assert spinrun("estimate", str(tmp_path / "none.yaml"))[0] == 2


def test_prompts_of_a_file_are_counted(spinrun: Shell, tmp_path: Path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n' * 512)
    data = {"prompts": {"source": str(prompts), "answerColumn": "answer"}}
    file = write(tmp_path, SMOLLM2, data=data, duration={"epochs": 2})

    counted = json.loads(spinrun("estimate", str(file), "--gpu", "H100", "-o", "json")[1])
    limited = json.loads(spinrun("estimate", str(file), "--gpu", "H100", "-o", "json", "--set", "spec.data.prompts.limit=512")[1])

    assert (counted["run"]["windows"], limited["run"]["windows"]) == (2, 1)


def test_this_machines_own_card_is_known_by_its_name(spinrun: Shell, file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(speeds, "gpu_name", lambda: "NVIDIA H100 80GB HBM3")
    assert json.loads(spinrun("estimate", str(file), "-o", "json")[1])["hardware"] == "H100"

    monkeypatch.setattr(speeds, "gpu_name", lambda: "NVIDIA L40S")
    assert json.loads(spinrun("estimate", str(file), "-o", "json")[1])["hardware"] == "L40S"

    monkeypatch.setattr(speeds, "gpu_name", lambda: "Tesla T4")
    code, _, err = spinrun("estimate", str(file))
    assert (code, "this machine's Tesla T4 is not among the known cards" in err) == (2, True)


def test_several_ranks_and_rollouts_share_one_machine(spinrun: Shell, file: Path):
    one = json.loads(spinrun("estimate", str(file), "-o", "json")[1])
    settings = ("spec.trainer.procsPerNode=2", "spec.trainer.nodes=3", "spec.rollout.replicas=2")
    two = json.loads(spinrun("estimate", str(file), "-o", "json", *(part for each in settings for part in ("--set", each)))[1])

    # Nodes are for pods. The work stays as it is, and so do the cores.
    assert (two["layout"]["ranks"], two["layout"]["gpus"]) == (2, 0)
    assert two["window"]["generateSeconds"] == pytest.approx(one["window"]["generateSeconds"], rel=0.2)


def test_a_card_needs_no_package_of_the_worker(file: Path):
    program = f"""
        import sys
        from spinrun_cli.main import main

        sys.argv = ["spinrun", "estimate", {str(file)!r}, "--gpu", "H100", "--output", "json"]
        main()
    """
    ended = run_without(*OF_EXTRAS, "huggingface_hub", "safetensors", program=program)

    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["fits"]


def test_this_machine_is_measured_in_a_moment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    monkeypatch.setattr(speeds, "PRODUCT_SECONDS", 0.01)

    found = speeds.measure_speeds()

    assert found.float32 > 1e5
    assert found.copy > 1e5
    assert found.memory > 1e8


def test_the_largest_file_that_is_read_has_a_size(spinrun: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(estimate, "MAX_CONFIG_BYTES", 100)

    code, _, err = spinrun("estimate", str(write(tmp_path, SMOLLM2)), "--gpu", "H100")

    assert (code, "at most 100 bytes" in err) == (2, True)
