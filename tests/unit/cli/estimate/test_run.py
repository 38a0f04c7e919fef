"""The estimate of a run: layout, windows, disk, what limits it and what to set."""

from typing import Any

import pytest

from spinrun_api.documents import parse_run
from spinrun_cli.estimate.findings import quantity
from spinrun_cli.estimate.hardware import CARDS, AssumptionError, Speeds, of_card, of_machine
from spinrun_cli.estimate.memory import MAX_LOGITS, SHORT
from spinrun_cli.estimate.result import Estimate, gigabytes
from spinrun_cli.estimate.run import SHARED_GPU_MEMORY, Data, LayoutError, estimate
from spinrun_cli.estimate.shape import KNOWN
from spinrun_cli.estimate.window import SEQUENCES_IN_FLIGHT
from spinrun_cli.local import machine
from spinrun_worker.trainer.model import attention, logprobs
from spinrun_worker.trainer.sampling.limits import SamplingLimits
from unit.cli.conftest import DOCUMENT

H100, L4 = of_card(CARDS["H100"]), of_card(CARDS["L4"])
MACHINE = of_machine(Speeds(bfloat16=4e11, float32=2e11, copy=1e10, memory=25e9))


def of(
    model: str = "Qwen/Qwen2.5-7B-Instruct",
    hardware: Any = H100,
    *,
    gpus: int | None = None,
    data: Data | None = None,
    given: dict[str, float] | None = None,
    **blocks: Any,
) -> Estimate:
    document = DOCUMENT | {"spec": DOCUMENT["spec"] | {"model": {"source": model}} | blocks}
    return estimate(parse_run(document, "test"), KNOWN[model], hardware, gpus=gpus, data=data, given=given)


def texts(found: Estimate, kind: str) -> str:
    return "\n".join(finding.text for finding in found.findings if finding.kind == kind)


def test_a_run_that_fits_says_what_takes_its_time():
    found = of("Qwen/Qwen2.5-1.5B-Instruct", storage={"size": "200Gi"})

    assert found.fits
    assert (found.layout.gpus, found.windows) == (2, 5)
    assert "generation takes most of a window" in texts(found, "limit")


def test_a_model_that_does_not_fit_says_by_how_much_and_what_to_set():
    found = of("Qwen/Qwen2.5-7B-Instruct", trainer={"procsPerNode": 2})

    assert not found.fits
    assert f"{gigabytes(found.rank.excess)} too little: set " in texts(found, "problem")
    assert "trainer.procsPerNode or nodes for 4 ranks" in texts(found, "problem")


def test_what_is_said_to_set_suffices():
    found = of("Qwen/Qwen2.5-7B-Instruct", trainer={"procsPerNode": 4}, storage={"size": "1000Gi"})

    assert found.fits, texts(found, "problem")


def test_fewer_tokens_at_once_come_first_where_they_suffice():
    trainer = {"tokensPerMicroBatch": 32768}
    rollout = {"maxTokens": 256}
    found = of("Qwen/Qwen2.5-1.5B-Instruct", given={"pairsPerPrompt": 1.0, "answerTokens": 256}, trainer=trainer, rollout=rollout)

    assert "set trainer.tokensPerMicroBatch: 8192" in texts(found, "problem")
    assert "trainer.activationCheckpointing: true" in texts(found, "problem")


def test_a_rollout_that_does_not_fit_names_a_size_that_divides_its_heads():
    found = of("meta-llama/Llama-3.1-70B-Instruct", trainer={"procsPerNode": 32, "activationCheckpointing": True})

    assert f"{gigabytes(found.rollout.excess)} too little: set rollout.tensorParallelSize: 4" in texts(found, "problem")


def test_no_number_of_ranks_holds_more_than_its_largest_layer():
    found = of("Qwen/Qwen2.5-72B-Instruct", L4)

    assert "trainer.lora" in texts(found, "problem") or "ranks" in texts(found, "problem")


def test_adapters_need_less_and_publish_little():
    whole, adapters = of(), of(trainer={"lora": {"rank": 16}})

    assert adapters.rank.total < whole.rank.total / 3
    assert adapters.disk.versions < whole.disk.versions / 50
    # All seven linear layers of Qwen2.5-7B's 28, each with rank × (inputs + outputs).
    assert adapters.work.adapters == 40_370_176
    assert of(trainer={"lora": {"rank": 16, "targets": ["q_proj", "v_proj"]}}).work.adapters < 40_370_176


def test_gpus_that_the_run_does_not_use_are_refused():
    with pytest.raises(LayoutError, match=r"uses 2 GPUs: 1 for the trainer, 1 for rollouts.*procsPerNode=4 .*replicas=4"):
        of(gpus=8)


def test_gpus_that_are_too_few_are_shared_as_spinrun_local_shares_them():
    one = of("Qwen/Qwen2.5-0.5B-Instruct", gpus=1)

    assert one.layout.shared == 1
    assert one.rank.limit == pytest.approx(0.6 * 80e9)
    assert one.rollout.memory.total == pytest.approx(0.4 * 80e9)


def test_ranks_do_not_share_a_gpu():
    with pytest.raises(LayoutError, match="needs 4 at least"):
        of(gpus=3, trainer={"procsPerNode": 4})


def test_a_machine_without_gpus_has_none_to_count():
    with pytest.raises(LayoutError, match="there are none with --gpu cpu"):
        of("HuggingFaceTB/SmolLM2-135M-Instruct", MACHINE, gpus=2)


def test_trainer_and_rollouts_share_the_memory_of_a_machine():
    small = of("HuggingFaceTB/SmolLM2-135M-Instruct", MACHINE)
    large = of("Qwen/Qwen2.5-3B-Instruct", MACHINE)

    assert small.fits
    assert "and the machine has 25.3 GB" not in texts(small, "problem")
    assert "trainer and rollouts need " in texts(large, "problem")


def test_the_disk_holds_what_checkpoints_need_and_the_best_version():
    found = of("Qwen/Qwen2.5-0.5B-Instruct", trainer={"keepCheckpoints": 3})

    # Version 0 to 5: those of three checkpoints and the one being written, the newest, the best.
    assert (found.disk.num_versions, found.disk.num_checkpoints) == (5, 4)
    assert found.disk.versions == 5 * 2 * 494_032_768
    assert found.disk.checkpoints == 4 * 12 * 494_032_768


def test_a_volume_that_is_too_small_is_named_with_the_size_that_it_takes():
    found = of("Qwen/Qwen2.5-7B-Instruct", trainer={"procsPerNode": 4}, storage={"size": "50Gi"})

    # Four versions and three checkpoints of 91.4 GB, and a fifth more.
    assert "the ledger grows to 335 GB and storage.size is 50Gi: set 375Gi" in texts(found, "advice")


def test_epochs_of_data_that_nobody_has_counted_have_no_number_of_windows():
    blocks: dict[str, Any] = {"duration": {"epochs": 2}}

    assert of(**blocks).windows is None
    assert of(**blocks).disk.samples is None
    # 64 prompts a step, 16 steps a window: two epochs are two thousand prompts.
    assert of(data=Data(prompts=1024), **blocks).windows == 2


def test_pairs_that_are_asked_for_take_the_prompts_that_they_take():
    trainer = {"pairsPerStep": 32}

    assert of(trainer=trainer, given={"pairsPerPrompt": 0.5}).work.prompts == 2 * 32 * 16
    assert of(trainer=trainer, given={"pairsPerPrompt": 0.01}).work.prompts == 4 * 32 * 16  # method.sampling.maxPromptsFactor


def test_replayed_windows_are_trained_on_but_not_asked_for():
    found = of(method={"replayWindows": 1, "refUpdateFreq": 8})

    assert found.work.prompts == 64 * 8
    assert found.work.pairs == pytest.approx(2 * 0.7 * 64 * 8)
    assert found.work.steps == 16


def test_a_run_shorter_than_a_window_asks_fewer_prompts():
    assert of(duration={"steps": 3}).work.prompts == 3 * 64


def test_a_model_of_its_own_that_prefers_has_gpus_that_are_counted_and_not_estimated():
    found = of(preference={"rewardModel": {"source": "large/judge"}}, scorer={"replicas": 2})

    assert found.layout.gpus == 1 + 1 + 2
    assert "the model that prefers is not estimated" in texts(found, "limit")


def test_a_model_that_judges_takes_a_time_that_nobody_knows():
    judge = {"judge": {"url": "http://judge/v1", "model": "large"}}

    found = of(preference=judge)

    assert found.work.score_seconds is None
    assert found.window.score == 0
    assert of(preference=judge, given={"scoreSeconds": 0.01}).window.score == pytest.approx(0.01 * 8 * 1024)


def test_assumptions_that_are_given_are_said_to_be():
    found = of(given={"answerTokens": 200, "volumeRead": 1e12})

    assert {each.name: each.value for each in found.assumptions if each.given} == {"answerTokens": 200, "volumeRead": 1e12}
    assert found.work.answer_tokens == 200
    assert all(each.why for each in found.assumptions)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"speed": 1}, "speed is not an assumption. There are: answerTokens"),
        ({"answerTokens": 0}, "answerTokens must be above 0"),
        ({"answerTokens": float("nan")}, "answerTokens must be above 0"),
        ({"trainUtilization": 1.5}, "trainUtilization is a share"),
        ({"isGpu": 1}, "isGpu is not an assumption"),
    ],
)
def test_assumptions_that_cannot_be_are_refused(given: dict[str, float], message: str):
    with pytest.raises(AssumptionError, match=message):
        of(given=given)


@pytest.mark.parametrize(
    ("text", "number"), [("50Gi", 50 * 2**30), ("1T", 1e12), ("1500M", 1.5e9), ("7", 7), ("1e9", 1e9), ("100m", None)]
)
def test_quantities_of_kubernetes(text: str, number: float | None):
    assert quantity(text) == number


def test_bytes_for_people():
    assert [gigabytes(number) for number in (1.5e12, 15.2e9, 999e6, 2e3)] == ["1.5 TB", "15.2 GB", "999 MB", "2 kB"]


def test_numbers_that_others_own_are_theirs():
    assert SHARED_GPU_MEMORY == machine.SHARED_GPU_MEMORY
    assert MAX_LOGITS == logprobs.MAX_LOGITS
    assert SHORT == attention.SHORT
    assert SamplingLimits().sequences_in_flight == SEQUENCES_IN_FLIGHT


def test_a_loss_without_a_reference_has_no_pass_for_one_and_keeps_no_version_for_it():
    frequencies = {"refUpdateFreq": 32, "rolloutUpdateFreq": 16}
    compared, alone = (of(method={"loss": loss, **frequencies}) for loss in ("sigmoid", "simpo"))

    assert compared.window.reference > 0
    assert alone.window.reference == 0
    assert alone.disk.num_versions == compared.disk.num_versions - 1
