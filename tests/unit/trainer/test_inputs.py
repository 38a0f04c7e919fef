"""What is read before the model: its tokenizer, the prompts, and the token that true answers end with."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spinrun_api.documents import parse_run
from spinrun_api.spec import Model
from spinrun_protocol.exit_codes import ExitCode
from spinrun_worker.errors import ConfigurationError
from spinrun_worker.trainer.inputs import (
    check_vocabulary,
    find_end_token,
    load_tokenizer,
    load_training_data,
    make_stream,
    source_names,
)
from spinrun_worker.trainer.ranks.termination import describe_failure
from support.chat_templates import CHATML, FAMILIES
from support.documents import letters_run
from support.models import smallest_llama

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
DEEP = "[" * 100_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return smallest_llama(tmp_path / "model")


def put(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        document = json.loads((folder / name).read_text())
        change(document)
        (folder / name).write_text(json.dumps(document))

    return damage


def with_template(template: object) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink()
        edit(SETTINGS, lambda settings: settings.update(chat_template=template))(folder)

    return damage


PANIC = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
SEVERAL = [{"name": "rag", "template": "x"}, {"name": "tool_use", "template": "x"}]

DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda folder: os.truncate(folder / TOKENIZER, 5000), "tokenizer.json is not JSON"),
    "empty": (put(TOKENIZER, ""), "tokenizer.json is not JSON"),
    "null": (put(TOKENIZER, "null"), "tokenizer.json must hold a JSON object, and holds null"),
    "nothing in it": (put(TOKENIZER, "{}"), "has no tokenizer that can be loaded"),
    "deep": (put(TOKENIZER, DEEP), "tokenizer.json is not JSON"),
    "not there": (lambda folder: (folder / TOKENIZER).unlink(), "has no tokenizer that can be loaded"),
    "unknown model": (
        edit(TOKENIZER, lambda it: it["model"].update(type="Nope")),
        "has no tokenizer that can be loaded: data did",
    ),
    "ids below zero": (edit(TOKENIZER, lambda it: it["model"]["vocab"].update(zz=-1)), "has no tokenizer that can be loaded"),
    "a panic": (edit(TOKENIZER, lambda it: it.update(normalizer=PANIC)), "has no tokenizer that can be loaded: PanicException"),
    "settings null": (put(SETTINGS, "null"), "tokenizer_config.json must hold a JSON object"),
    "settings cut": (lambda folder: os.truncate(folder / SETTINGS, 50), "tokenizer_config.json is not JSON"),
    "an end of no text": (edit(SETTINGS, lambda it: it.update(eos_token=7)), "has no tokenizer that can be loaded: TypeError"),
    "a length in words": (edit(SETTINGS, lambda it: it.update(model_max_length="long")), "malformed .*the tokenizer fails on it"),
    "several templates": (with_template(SEVERAL), r"several chat templates \(rag, tool_use\) and none .* default"),
    "templates without names": (with_template([{"x": 1}]), "has no tokenizer that can be loaded: KeyError"),
    "a template of bytes": (put("chat_template.jinja", b"\xff\xfe"), "has no tokenizer that can be loaded: UnicodeDecodeError"),
    "a broken template": (put("chat_template.jinja", "{% for %}"), r"chat_template\.jinja: line 1: .*correct it, or set model"),
    "a template that divides by zero": (
        put("chat_template.jinja", "{{ 1 / 0 }}"),
        r"chat_template\.jinja fails on it: ZeroDivision",
    ),
    "weights that are pickled": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "pytorch_model.bin alone",
    ),
}


@pytest.mark.parametrize(("damage", "want"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_tokenizer_or_template_is_a_sentence_with_exit_code_2(
    folder: Path, damage: Callable[[Path], object], want: str
) -> None:
    damage(folder)
    run = parse_run(letters_run("letters", model={"source": str(folder)}))

    with pytest.raises(ConfigurationError, match=want) as caught:
        load_training_data(run.spec)

    assert describe_failure(caught.value).exit_code == ExitCode.INVALID_CONFIGURATION
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_is_a_file_is_named_by_its_own_field(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"model\.tokenizer: .*tokenizer\.json is not a folder"):
        load_tokenizer(Model(source=str(folder), tokenizer=str(folder / TOKENIZER)))


# --- the end of true answers ----------------------------------------------------------------------------------------------


def model_of(family: str, folder: Path, *, generation: object = None, config: object = None) -> Model:
    """A model of a family. generation, config: eos_token_id of its two files, by names of tokens; None leaves out the first."""
    tokenizer = FAMILIES[family].tokenizer()
    tokenizer.save_pretrained(folder)
    if generation is None:
        (folder / "generation_config.json").unlink()
    else:
        ids = tokenizer.convert_tokens_to_ids(generation)  # pyright: ignore[reportArgumentType]
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    end = config and tokenizer.convert_tokens_to_ids(config)  # pyright: ignore[reportArgumentType]
    edit("config.json", lambda it: it.update(eos_token_id=end))(folder)
    return Model(source=str(folder))


def end_of(model: Model) -> object:
    tokenizer = load_tokenizer(model)
    return tokenizer.convert_ids_to_tokens(find_end_token(model, tokenizer))


@pytest.mark.parametrize(
    ("family", "generation", "config", "want"),
    [
        ("Gemma", ["<eos>", "<end_of_turn>"], None, "<end_of_turn>"),
        ("Phi-3", ["<|endoftext|>", "<|end|>"], "<|endoftext|>", "<|end|>"),
        ("Qwen2.5 base", ["<|im_end|>", "<|endoftext|>"], None, "<|im_end|>"),
        ("Llama 3", "<|eot_id|>", None, "<|eot_id|>"),
        ("Llama 3", None, ["<|end_of_text|>", "<|eot_id|>"], "<|eot_id|>"),
        ("ChatML", None, None, "<|im_end|>"),
    ],
)
def test_true_answers_end_with_one_of_the_tokens_at_which_vllm_stops(
    folder: Path, family: str, generation: object, config: object, want: str
) -> None:
    assert end_of(model_of(family, folder, generation=generation, config=config)) == want


def test_the_config_counts_only_without_a_generation_config(folder: Path) -> None:
    """As in vLLM."""
    model = model_of("Llama 3", folder, generation="<|end_of_text|>", config="<|eot_id|>")
    with pytest.raises(ConfigurationError, match=r"ends an assistant's message by '<\|eot_id\|>'"):
        end_of(model)


def spin(folder: Path, **model: Any) -> Any:
    prompts = {"source": "arithmetic", "answerColumn": "answer"}
    changes: dict[str, Any] = {"method": {"name": "spin"}, "preference": {"groundTruth": {}}, "data": {"prompts": prompts}}
    return parse_run(letters_run("letters", model={"source": str(folder), **model}, **changes)).spec


def test_only_a_method_that_trains_on_true_answers_needs_their_end(folder: Path) -> None:
    model_of("Qwen2.5 base", folder, generation="<|endoftext|>")
    with pytest.raises(ConfigurationError, match="the rollouts stop at"):
        load_training_data(spin(folder))
    assert load_training_data(parse_run(letters_run("letters", model={"source": str(folder)})).spec).end_token is None
    ends_otherwise = CHATML.replace("<|im_end|>", "<|endoftext|>")
    data = load_training_data(spin(folder, chatTemplate=ends_otherwise))
    assert data.end_token is not None
    assert data.tokenizer.convert_ids_to_tokens(data.end_token) == "<|endoftext|>"


# --- a vocabulary that is too small ---------------------------------------------------------------------------------------


def test_tokens_that_the_model_does_not_know_are_refused_before_anything_is_trained_on(folder: Path) -> None:
    data = load_training_data(spin(folder))
    check_vocabulary(data, 512)
    (prompts,) = data.training.values()
    largest = max(max(record.tokens) for record in prompts.records)
    check_vocabulary(data, largest + 1)
    with pytest.raises(
        ConfigurationError, match=rf"model\.tokenizer: row \d+ of data\.prompts has the token {largest}, and .*vocab"
    ):
        check_vocabulary(data, largest)
    with pytest.raises(ConfigurationError, match=r"model\.tokenizer"):
        check_vocabulary(data, 3)


# --- several sources ------------------------------------------------------------------------------------------------------


def mixed(folder: Path, *sources: Any, **prompts: Any) -> Any:
    document = letters_run("letters", model={"source": str(folder)}, data={"prompts": {"sources": list(sources), **prompts}})
    return parse_run(document).spec


def rows(path: Path, count: int, **columns: object) -> str:
    path.write_text("".join(json.dumps({"prompt": f"{path.stem} {row}", **columns}) + "\n" for row in range(count)))
    return str(path)


def test_several_sources_are_mixed_by_weight_and_named_in_the_ids_of_prompts(folder: Path, tmp_path: Path) -> None:
    few, many = rows(tmp_path / "few.jsonl", 2), rows(tmp_path / "many.jsonl", 10)
    spec = mixed(folder, {"source": few, "weight": 3.0}, {"source": many}, shuffleSeed=1)
    data = load_training_data(spec)
    stream = make_stream(data, 1)
    assert len(stream) == 12
    drawn = stream.draw(0, 8)
    assert [prompt.id.partition("/")[0] for prompt in drawn] == ["few", "few", "few", "many"] * 2
    assert [prompt.id.partition("#")[2] for prompt in drawn if prompt.id.startswith("few")] == ["0", "0", "1", "1", "2", "2"]
    assert all(prompt.text == f"{prompt.id.partition('/')[0]} {prompt.columns['prompt'].split()[1]}" for prompt in drawn)


def test_sources_of_one_name_are_told_apart(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    one, other = rows(tmp_path / "a" / "x.jsonl", 1), rows(tmp_path / "x.jsonl", 1)
    generated = {"source": "arithmetic", "config": "addition-5"}
    data = load_training_data(mixed(folder, {"source": one}, generated, {"source": "arithmetic"}))
    assert source_names(data.training) == ["x", "arithmetic-addition-5", "arithmetic"]
    assert [prompts.records[0].id.partition("/")[0] for prompts in data.training.values()] == source_names(data.training)
    data = load_training_data(mixed(folder, {"source": one}, {"source": other}, generated))
    assert source_names(data.training) == ["0-x", "1-x", "2-arithmetic"]


def test_each_source_is_ordered_by_its_own_numbers(folder: Path, tmp_path: Path) -> None:
    spec = mixed(
        folder,
        {"source": "arithmetic", "config": "addition-5"},
        {"source": "arithmetic"},
        order={"column": "answer", "direction": "descending"},
    )
    drawn = make_stream(load_training_data(spec), 0).draw(0, 30)
    for name in ("arithmetic-addition-5", "arithmetic"):
        sums = [int(prompt.answer or "") for prompt in drawn if prompt.id.startswith(f"{name}/") and prompt.id.endswith("#0")]
        assert sums == sorted(sums, reverse=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"data\.prompts\.sources\[1\]\.source: \S+ has no rows"),
        ('{"question": "?"}\n', r"data\.prompts\.sources\[1\]\.promptColumn: there is no column 'prompt'"),
        ('{"prompt": ""}\n', r"data\.prompts\.sources\[1\]: no row of \S+ is a usable prompt"),
    ],
)
def test_a_source_that_gives_nothing_is_named_by_its_index(folder: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "b.jsonl").write_text(content)
    spec = mixed(folder, {"source": rows(tmp_path / "a.jsonl", 1)}, {"source": str(tmp_path / "b.jsonl")})
    with pytest.raises(ConfigurationError, match=message):
        load_training_data(spec)


def test_a_token_that_the_model_does_not_know_is_named_with_its_source(folder: Path, tmp_path: Path) -> None:
    spec = mixed(folder, {"source": rows(tmp_path / "a.jsonl", 1)}, {"source": rows(tmp_path / "b.jsonl", 1)})
    with pytest.raises(ConfigurationError, match=r"row a/0 of data\.prompts\.sources\[0\] has the token"):
        check_vocabulary(load_training_data(spec), 3)
