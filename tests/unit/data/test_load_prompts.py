import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from spinrun_api.spec import GENERATORS, Evaluation, Order, Source
from spinrun_protocol.wire import Sample
from spinrun_worker.data import PromptSet, check_disjoint, encode_answer, load_prompts, sources
from spinrun_worker.errors import ConfigurationError
from support.models import tiny_tokenizer, words_of

TOKENIZER = tiny_tokenizer()


def write(directory: Path, rows: list[dict[str, Any]]) -> str:
    path = directory / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(source: Source, *, needs_answer: bool = False, max_prompt_tokens: int = 512, **options: Any) -> PromptSet:
    arguments: dict[str, Any] = {"tokenizer": TOKENIZER, "chat_template": None, "seed": 0, **options}
    arguments.setdefault("block", "data.evaluation" if isinstance(source, Evaluation) else "data.prompts")
    return load_prompts(source, max_prompt_tokens=max_prompt_tokens, needs_answer=needs_answer, **arguments)


def seen_by_the_model(prompts: PromptSet) -> dict[str, str]:
    return {record.id: words_of(TOKENIZER, record.tokens) for record in prompts.records}


def without_chat_template() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    return tokenizer


def test_a_prompt_becomes_the_users_message_of_the_chat_template(tmp_path: Path):
    source = write(tmp_path, [{"prompt": "hi there", "answer": 42, "topic": "greeting"}])
    prompts = load(Source(source=source, answer_column="answer"))
    assert seen_by_the_model(prompts) == {"0": "<bos><|im_start|>user\nhi there<|im_end|>\n<|im_start|>assistant\n"}
    record = prompts.records[0]
    assert (record.text, record.answer) == ("hi there", "42")
    assert record.columns == {"prompt": "hi there", "answer": 42, "topic": "greeting"}


def test_messages_are_kept_as_a_conversation(tmp_path: Path):
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    prompts = load(Source(source=write(tmp_path, [{"chat": messages}]), messages_column="chat"))
    want = "<bos><|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert seen_by_the_model(prompts) == {"0": want}
    assert prompts.records[0].text == "hi"


def test_the_specs_chat_template_wins_over_the_tokenizers(tmp_path: Path):
    source = write(tmp_path, [{"prompt": "hi"}])
    prompts = load(Source(source=source), chat_template="USER {{ messages[0]['content'] }} MODEL")
    assert seen_by_the_model(prompts) == {"0": "USER hi MODEL"}


def test_without_any_chat_template_the_prompt_is_raw_text(tmp_path: Path):
    prompts = load(Source(source=write(tmp_path, [{"prompt": "hi"}])), tokenizer=without_chat_template())
    assert seen_by_the_model(prompts) == {"0": "hi"}


def test_messages_without_any_chat_template_are_refused(tmp_path: Path):
    source = Source(source=write(tmp_path, [{"chat": []}]), messages_column="chat")
    with pytest.raises(ConfigurationError, match=r"data\.prompts\.messagesColumn: .*model\.chatTemplate"):
        load(source, tokenizer=without_chat_template())


def test_a_broken_chat_template_is_named(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"model\.chatTemplate: line 1"):
        load(Source(source=write(tmp_path, [{"prompt": "hi"}])), chat_template="{% for %}")


@pytest.mark.parametrize(
    ("template", "want"),
    [
        ("{question} Why?", "2+2? Why?"),
        ("{level}: {question}", "3: 2+2?"),
        (r"{question} Put it in \boxed{}.", r"2+2? Put it in \boxed{}."),
        (r"{question} Put it in \boxed{{x}}.", r"2+2? Put it in \boxed{x}."),
        ("{question} {", "2+2? {"),
        ("{the topic} {question}", "sums 2+2?"),
    ],
)
def test_templates_are_filled_from_the_row(tmp_path: Path, template: str, want: str):
    source = write(tmp_path, [{"question": "2+2?", "level": 3, "the topic": "sums"}])
    assert load(Source(source=source, template=template)).records[0].text == want


def test_what_a_row_holds_is_never_taken_for_a_template(tmp_path: Path):
    source = write(tmp_path, [{"prompt": "{answer} {prompt.__class__} {{", "answer": "secret"}])
    assert load(Source(source=source, template="Q: {prompt}")).records[0].text == "Q: {answer} {prompt.__class__} {{"


@pytest.mark.parametrize("template", ["{prompt.__class__}", "{prompt[0]}", "{prompt!r}", "{prompt:>10}", "{0}"])
def test_templates_reach_columns_only(tmp_path: Path, template: str):
    with pytest.raises(ConfigurationError, match=r"data\.prompts\.template: there is no column"):
        load(Source(source=write(tmp_path, [{"prompt": "hi"}]), template=template))


def test_a_template_without_a_column_is_refused(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"data\.prompts\.template: names no \{column\}"):
        load(Source(source=write(tmp_path, [{"prompt": "hi"}]), template="Say hi."))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"prompt_column": "qestion"}, "promptColumn"),
        ({"messages_column": "qestion"}, "messagesColumn"),
        ({"prompt_column": "question", "answer_column": "qestion"}, "answerColumn"),
        ({"template": "{qestion}"}, "template"),
    ],
)
@pytest.mark.parametrize(("model", "block"), [(Source, "data.prompts"), (Evaluation, "data.evaluation")])
def test_a_missing_column_is_named_with_those_that_exist(
    tmp_path: Path, options: dict[str, str], field: str, model: type[Source], block: str
):
    source = model(source=write(tmp_path, [{"question": "2+2?", "solution": "4"}]), **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigurationError) as caught:
        load(source)
    assert str(caught.value).startswith(f"{block}.{field}: there is no column 'qestion'. Did you mean question?")
    assert "question, solution" in str(caught.value)


def test_messages_and_template_exclude_each_other(tmp_path: Path):
    source = Source(source=write(tmp_path, [{"chat": []}]), messages_column="chat", template="{chat}")
    with pytest.raises(ConfigurationError, match=r"data\.prompts\.template: is not used with messagesColumn"):
        load(source)


def test_messages_in_the_prompt_column_are_pointed_out(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"data\.prompts\.promptColumn: .*holds a list.*messagesColumn"):
        load(Source(source=write(tmp_path, [{"prompt": [{"role": "user", "content": "hi"}]}])))


def test_rows_that_cannot_be_used_are_dropped_and_counted_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    rows: list[dict[str, Any]] = [
        {"prompt": "good", "answer": "1"},
        {"prompt": "   ", "answer": "1"},
        {"answer": "1"},
        {"prompt": "no answer", "answer": None},
        {"prompt": "x" * 600, "answer": "1"},
    ]
    prompts = load(Source(source=write(tmp_path, rows), answer_column="answer"), needs_answer=True)
    assert [record.id for record in prompts.records] == ["0"]
    assert prompts.dropped == {"empty": 2, "no_answer": 1, "too_long": 1}
    assert "data.prompts: 4 rows dropped" in caplog.text
    assert "data.maxPromptTokens is 512" in caplog.text


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "empty"),
        (None, "empty"),
        ([{"role": "user", "content": " "}], "empty"),
        ("hi", "malformed"),
        (["hi"], "malformed"),
        ([{"role": "user"}], "malformed"),
        ([{"role": "user", "content": [{"type": "image"}]}], "malformed"),
        ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}], "malformed"),
        ([{"role": "refused", "content": "hi"}], "malformed"),
    ],
)
def test_conversations_that_cannot_be_answered_are_dropped(tmp_path: Path, messages: object, reason: str):
    good = [{"role": "user", "content": "hi"}]
    template = "{% if messages[0]['role'] == 'refused' %}{{ raise_exception('no such role') }}{% endif %}fine"
    source = Source(source=write(tmp_path, [{"chat": messages}, {"chat": good}]), messages_column="chat")
    prompts = load(source, chat_template=template)
    assert ([record.id for record in prompts.records], prompts.dropped) == (["1"], {reason: 1})


def test_no_usable_row_at_all_is_an_error_that_says_why(tmp_path: Path):
    source = Source(source=write(tmp_path, [{"prompt": "x" * 600}]))
    with pytest.raises(
        ConfigurationError, match=r"data\.prompts: no row .* 1 too_long \(row 0: 6\d\d tokens, data\.maxPromptTokens"
    ):
        load(source)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_nan_is_no_answer_and_whole_numbers_have_no_decimals(tmp_path: Path, kind: str):
    rows = pd.DataFrame({"prompt": ["a", "b", "c"], "answer": [42, None, 0.5], "level": [1, 2, None]})
    path = tmp_path / f"prompts.{kind}"
    if kind == "parquet":
        rows.to_parquet(path)
    else:
        path.write_text(str(rows.to_json(orient="records", lines=True)).replace("null", "NaN"))

    prompts = load(Source(source=str(path), answer_column="answer", template="{prompt}{level}"), needs_answer=True)
    assert {record.text: record.answer for record in prompts.records} == {"a1": "42"}
    assert prompts.dropped == {"no_answer": 1, "empty": 1}

    prompts = load(Source(source=str(path), answer_column="answer"))
    assert {record.text: record.answer for record in prompts.records} == {"a": "42", "b": None, "c": "0.5"}


def test_columns_inside_columns_are_named_with_dots(tmp_path: Path):
    row = {"extra": {"question": "2+2?", "level": 3}, "reward_model": {"ground_truth": "4"}, "x.y": "z"}
    source = write(tmp_path, [row])
    records = load(Source(source=source, prompt_column="extra.question", answer_column="reward_model.ground_truth")).records
    assert [(record.text, record.answer, record.columns) for record in records] == [("2+2?", "4", row)]
    template = "{extra.level} {extra.question} {x.y}"
    assert load(Source(source=source, template=template)).records[0].text == "3 2+2? z"


def test_an_empty_file_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"data\.prompts\.source: .* has no rows"):
        load(Source(source=write(tmp_path, [])))


def test_a_true_answer_is_what_the_model_would_have_said_with_its_end():
    tokenizer = tiny_tokenizer()

    whole = encode_answer(tokenizer, "forty 2", max_tokens=100)
    tokens = whole.tokens

    assert words_of(tokenizer, tokens[:-1]) == "forty 2"
    assert tokens[-1] == tokenizer.eos_token_id
    assert whole == Sample(tokens=tokens, text="forty 2", finish_reason="stop")
    assert encode_answer(tokenizer, "forty 2", max_tokens=len(tokens)) == whole
    for shorter in (2, len(tokens) - 1):
        cut = encode_answer(tokenizer, "forty 2", max_tokens=shorter)
        assert cut == Sample(tokens=tokens[:shorter], text="forty 2", finish_reason="length")


def test_true_answers_need_an_end_token():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None

    with pytest.raises(ConfigurationError, match=r"model\.tokenizer has no end token"):
        encode_answer(tokenizer, "forty", max_tokens=100)


def test_a_rule_that_needs_answers_needs_their_column(tmp_path: Path):
    with pytest.raises(ConfigurationError, match=r"data\.prompts\.answerColumn: the preference compares"):
        load(Source(source=write(tmp_path, [{"prompt": "hi"}])), needs_answer=True)


def test_the_limit_takes_the_first_usable_prompts_after_shuffling(tmp_path: Path):
    rows = [{"prompt": "" if row % 2 else f"question {row}"} for row in range(100)]
    source = write(tmp_path, rows)

    def ids(seed: int = 0, **options: Any) -> list[str]:
        return [record.id for record in load(Source(source=source, **options), seed=seed).records]

    assert len(ids()) == 50
    assert ids(limit=10) == ids()[:10]
    assert ids(limit=10, seed=1) != ids(limit=10)
    assert set(ids(seed=1)) == set(ids())


@pytest.mark.parametrize(("direction", "want"), [("ascending", (1.0, 2.5, math.inf)), ("descending", (-2.5, -1.0, math.inf))])
def test_prompts_are_ranked_by_the_numbers_of_a_column(tmp_path: Path, direction: Any, want: tuple[float, ...], caplog: Any):
    rows: list[dict[str, Any]] = [{"prompt": "b", "of": {"level": "2.5"}}, {"prompt": "a", "of": {"level": 1}}, {"prompt": "c"}]
    prompts = load(Source(source=write(tmp_path, rows)), order=Order(column="of.level", direction=direction))
    assert prompts.ranks is not None
    assert tuple(sorted(prompts.ranks)) == want
    by_text = dict(zip((record.text for record in prompts.records), map(abs, prompts.ranks), strict=True))
    assert by_text == {"a": 1.0, "b": 2.5, "c": math.inf}
    assert "1 of 3 prompts of data.prompts have no number in the column of.level" in caplog.text


@pytest.mark.parametrize("level", [None, "hard", True, math.nan, [3]])
def test_a_column_without_any_number_orders_nothing(tmp_path: Path, level: object):
    source = write(tmp_path, [{"prompt": "a", "level": level}, {"prompt": "b", "level": level}])
    with pytest.raises(ConfigurationError, match=r"data\.prompts\.order\.column: no prompt of data\.prompts has a number"):
        load(Source(source=source), order=Order(column="level"))


def test_a_column_that_does_not_exist_orders_nothing(tmp_path: Path):
    with pytest.raises(
        ConfigurationError, match=r"data\.prompts\.order\.column: there is no column 'levle'.* Did you mean level"
    ):
        load(Source(source=write(tmp_path, [{"prompt": "a", "level": 1}])), order=Order(column="levle"))


def test_sums_are_ordered_by_what_they_come_to():
    ranks = load(Source(source="arithmetic"), order=Order(column="answer")).ranks
    assert ranks is not None
    assert (min(ranks), max(ranks)) == (3.0, 30.0)


def test_rows_beyond_one_batch_keep_their_ids_and_texts(tmp_path: Path):
    source = write(tmp_path, [{"prompt": f"question {row}"} for row in range(2500)])
    records = load(Source(source=source)).records
    assert len(records) == 2500
    assert all(record.text == f"question {record.id}" for record in records)
    assert all(f"question {record.id}<" in words_of(TOKENIZER, record.tokens) for record in records[1000:1100])


def test_arithmetic_brings_its_own_answers():
    records = load(Source(source="arithmetic"), needs_answer=True).records
    assert len(records) == 135
    assert all(int(record.answer or "") == record.columns["a"] + record.columns["b"] for record in records)


@pytest.mark.parametrize("source", GENERATORS)
def test_generators_bring_their_answers_and_their_splits_are_disjoint(source: str):
    train, test = load(Source(source=source), needs_answer=True), load(Evaluation(source=source), needs_answer=True)
    assert all(record.answer for record in train.records + test.records)
    assert check_disjoint([train], test) == 0


@pytest.mark.parametrize(
    "evaluation", [Evaluation(source="arithmetic", split="train"), Evaluation(source="arithmetic", config="addition-20")]
)
def test_generated_questions_that_are_trained_on_cannot_be_held_out(evaluation: Evaluation):
    with pytest.raises(ConfigurationError, match=r"data\.evaluation: \d+ of \d+ held-out prompts are also trained on"):
        check_disjoint([load(Source(source="arithmetic"))], load(evaluation))


def test_shared_prompts_of_other_data_are_counted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    source = write(tmp_path, [{"prompt": "same"}, {"prompt": "same"}, {"prompt": "other"}])
    (tmp_path / "test").mkdir()
    held_out = write(tmp_path / "test", [{"prompt": "same"}, {"prompt": "new"}])
    assert check_disjoint([load(Source(source=source))], load(Evaluation(source=held_out))) == 1
    assert "data.evaluation: 1 of 2 held-out prompts are also trained on" in caplog.text


# --- texts and templates that fail ----------------------------------------------------------------------------------------

HALF = "\ud83d"
GOOD: dict[str, Any] = {"prompt": "good", "answer": "1", "chat": [{"role": "user", "content": "good"}]}


def write_escaped(directory: Path, rows: list[dict[str, Any]]) -> str:
    """As JSON writes half an emoji: by its number."""
    path = directory / "prompts.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"prompt": f"What a {HALF} day"}, {}),
        ({"answer": f"{HALF}1"}, {}),
        ({"chat": [{"role": "system", "content": HALF}, {"role": "user", "content": "hi"}]}, {"messages_column": "chat"}),
        ({"chat": [{"role": HALF, "content": "hi"}]}, {"messages_column": "chat"}),
        ({"prompt": "hi", "answer": "\udfff"}, {}),
    ],
    ids=["prompt", "answer", "system message", "role", "the other half"],
)
def test_a_row_with_half_an_emoji_is_dropped_and_counted_with_its_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: dict[str, Any], columns: dict[str, Any]
):
    source = write_escaped(tmp_path, [GOOD, GOOD | row, GOOD])
    prompts = load(Source(source=source, answer_column="answer", **columns), needs_answer=True)
    assert (sorted(record.id for record in prompts.records), prompts.dropped) == (["0", "2"], {"malformed": 1})
    assert "1 malformed (row 1: holds half a character (U+D" in caplog.text


def test_half_an_emoji_is_noticed_without_a_chat_template_too(tmp_path: Path):
    source = Source(source=write_escaped(tmp_path, [GOOD, {"prompt": HALF}]))
    assert load(source, tokenizer=without_chat_template()).dropped == {"malformed": 1}


def test_columns_that_nobody_reads_may_hold_anything(tmp_path: Path):
    prompts = load(Source(source=write_escaped(tmp_path, [GOOD | {"topic": HALF}])))
    assert [record.id for record in prompts.records] == ["0"]


def test_a_row_that_the_chat_template_fails_on_costs_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    source = Source(source=write(tmp_path, [{"prompt": word} for word in ("a", "zero", "b")]))
    template = "{% if messages[0].content == 'zero' %}{{ 1 / 0 }}{% endif %}{{ messages[0].content }}"
    prompts = load(source, chat_template=template)
    assert (sorted(record.id for record in prompts.records), prompts.dropped) == (["0", "2"], {"malformed": 1})
    assert "row 1: model.chatTemplate fails on it: ZeroDivisionError: division by zero" in caplog.text


def test_a_chat_template_that_fails_on_every_row_is_named_with_what_it_said(tmp_path: Path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ 1 / 0 }}"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    loaded = type(tokenizer).from_pretrained(tmp_path / "tokenizer")
    with pytest.raises(ConfigurationError) as caught:
        load(Source(source="arithmetic"), tokenizer=loaded)
    message = str(caught.value)
    assert message.startswith("data.prompts: no row of arithmetic is a usable prompt: 135 malformed (row ")
    assert f"the chat template of {tmp_path}/tokenizer/chat_template.jinja fails on it: ZeroDivisionError" in message
    assert "model.chatTemplate" in message


def test_a_row_that_the_tokenizer_fails_on_costs_no_other(tmp_path: Path):
    class Fails:
        """A tokenizer that has no token for one of the texts, as WordLevel without an unknown token has none."""

        chat_template = None

        def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
            if any("zero" in text for text in texts):
                raise Exception("Missing [UNK] token")
            return {"input_ids": [[len(text)] for text in texts]}

    rows = [{"prompt": word} for word in ("a", "zero", "bb")]
    prompts = load(Source(source=write(tmp_path, rows)), tokenizer=Fails())
    assert ({record.id: record.tokens for record in prompts.records}) == {"0": (1,), "2": (2,)}
    assert prompts.dropped == {"malformed": 1}


@pytest.mark.parametrize("template", ["nothing", "{{ bos_token }}<|im_start|>user\n<|im_end|>"])
def test_a_chat_template_that_loses_what_is_asked_is_refused(template: str):
    with pytest.raises(ConfigurationError, match=r"data\.prompts: all 135 prompts have the same \d+ tokens: model\.chatTemplate"):
        load(Source(source="arithmetic"), chat_template=template)


def test_rows_that_cannot_be_read_are_no_traceback(monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object) -> list[dict[str, Any]]:
        raise ImportError("decoding images needs Pillow")

    monkeypatch.setattr(sources.MemoryTable, "take", fails)
    with pytest.raises(ConfigurationError, match=r"data\.prompts\.source: rows of arithmetic: ImportError: decoding images"):
        load(Source(source="arithmetic"))
