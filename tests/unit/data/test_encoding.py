"""Chat templates and tokenizers: what ends an answer, and what comes of those that fail, or never end."""

import resource
import signal
import threading
from typing import Any

import pytest

from spinrun_worker.data import encode_answer
from spinrun_worker.data import encoding as encoding_module
from spinrun_worker.data.encoding import Encoder, TextError
from spinrun_worker.errors import ConfigurationError
from support.chat_templates import CHATML, FAMILIES, Family
from support.models import tiny_tokenizer as typed_tokenizer
from support.models import words_of

ASK = [{"role": "user", "content": "hi"}]


def tiny_tokenizer() -> Any:
    """Its own types are incomplete."""
    return typed_tokenizer()


def ids(tokenizer: Any, names: tuple[str, ...]) -> set[int]:
    return set(tokenizer.convert_tokens_to_ids(list(names)))


# --- the end of an answer -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
def test_a_true_answer_ends_as_the_chat_template_ends_an_assistants_message(family: Family) -> None:
    tokenizer = family.tokenizer()
    ends = ids(tokenizer, (family.eos, *family.ends))

    end = Encoder(tokenizer, None).end_of_answer(ends)

    assert tokenizer.convert_ids_to_tokens(end) == family.want
    tokens = encode_answer(tokenizer, "forty 2", max_tokens=100, end=end).tokens
    assert (words_of(tokenizer, tokens[:-1]), tokens[-1]) == ("forty 2", end)
    # As far as the end, it is what the template itself makes of a whole conversation.
    whole = tokenizer.apply_chat_template([*ASK, {"role": "assistant", "content": "forty 2"}, *ASK], tokenize=False)
    assert isinstance(whole, str)
    assert f"forty 2{family.want}" in whole.replace(" </s>", "</s>")


@pytest.mark.parametrize("family", [family for name, family in FAMILIES.items() if name != "GLM-4"])
def test_without_known_ends_the_chat_template_is_believed(family: Family) -> None:
    tokenizer = family.tokenizer()
    assert tokenizer.convert_ids_to_tokens(encode_answer(tokenizer, "yes", max_tokens=9).tokens[-1]) == family.want


def test_an_end_at_which_the_rollouts_would_not_stop_is_refused_with_both_tokens_and_the_remedy() -> None:
    tokenizer = FAMILIES["Qwen2.5 base"].tokenizer()
    with pytest.raises(ConfigurationError) as caught:
        Encoder(tokenizer, None).end_of_answer(ids(tokenizer, ("<|endoftext|>",)))
    message = str(caught.value)
    (end,), (eos,) = ids(tokenizer, ("<|im_end|>",)), ids(tokenizer, ("<|endoftext|>",))
    assert f"ends an assistant's message by '<|im_end|>' ({end})" in message
    assert f"the rollouts stop at '<|endoftext|>' ({eos})" in message
    assert "model.chatTemplate" in message
    assert "eos_token_id" in message


@pytest.mark.parametrize(
    ("template", "want"),
    [
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "by 'us"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "by no token of its own"),
        ("{{ messages | tojson }}", "by"),
        ("{% if messages[-1].role != 'user' %}{{ raise_exception('users last') }}{% endif %}x", "refuses it: .*users last"),
        ("{% if messages | length > 1 %}{{ 1 / 0 }}{% endif %}x", "ZeroDivisionError"),
    ],
    ids=["plain text", "leaves answers out", "JSON", "refuses answers", "fails on answers"],
)
def test_a_template_without_an_end_is_refused_in_a_sentence(template: str, want: str) -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(ConfigurationError, match=rf"^model\.chatTemplate .*{want}"):
        Encoder(tokenizer, template).end_of_answer({tokenizer.eos_token_id})


def test_without_a_chat_template_answers_end_with_the_tokenizers_token() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    assert Encoder(tokenizer, None).end_of_answer({1, 3}) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    assert Encoder(tokenizer, None).end_of_answer({1}) == 1


def test_the_specs_chat_template_says_how_answers_end() -> None:
    tokenizer: Any = FAMILIES["Gemma"].tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    assert Encoder(tokenizer, CHATML).end_of_answer({tokenizer.eos_token_id}) == tokenizer.eos_token_id


def test_a_true_answer_that_cannot_be_encoded_is_no_traceback() -> None:
    with pytest.raises(ConfigurationError, match=r"the true answer '1\\ud83d' cannot be encoded"):
        encode_answer(tiny_tokenizer(), "1\ud83d", max_tokens=9)


# --- templates that fail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "want"),
    [
        ("{{ 1 / 0 }}", "fails on it: ZeroDivisionError"),
        ("{{ messages + 1 }}", "fails on it: TypeError"),
        ("{{ nothing.at.all }}", "refuses it: UndefinedError: 'nothing' is undefined"),
        ("{{ raise_exception('roles must alternate') }}", "refuses it: .*roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "refuses it: SecurityError"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "fails on it: OverflowError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails on it: RecursionError"),
        ("{% include 'etc/passwd' %}", "fails on it"),
        ("{{ strftime_now(5) }}", "fails on it: TypeError"),
    ],
)
def test_whatever_a_template_raises_is_of_that_conversation(template: str, want: str) -> None:
    with pytest.raises(TextError, match=rf"^model\.chatTemplate {want}"):
        Encoder(tiny_tokenizer(), template).render(ASK)


@pytest.mark.parametrize("template", ["{% for %}", "{{ messages", "{% endif %}", "{{ messages | nope }}"])
def test_what_is_no_template_is_refused_with_its_line(template: str) -> None:
    with pytest.raises(ConfigurationError, match=r"model\.chatTemplate: line 2: .*: correct it"):
        Encoder(tiny_tokenizer(), f"\n{template}").render(ASK)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}xx{% endfor %}{% endfor %}",
        "{{ 9 ** (9 ** 9) }}",
    ],
    ids=["silent", "talking", "power"],
)
def test_a_template_that_does_not_end_is_ended(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding_module, "RENDER_SECONDS", 0.2)
    before = signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(ConfigurationError, match=r"model\.chatTemplate takes more than 0\.2 s to compute for one conversation"):
        Encoder(tiny_tokenizer(), template).render(ASK)
    assert signal.getsignal(signal.SIGVTALRM) is before
    assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0


@pytest.mark.parametrize("template", ["{{ 'x' * 10 ** 12 }}", "{% for i in range(9999) %}{{ 'x' * 10 ** 7 }}{% endfor %}"])
def test_a_template_that_takes_all_memory_gets_none(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding_module, "RENDER_BYTES", 1 << 28)
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(ConfigurationError, match=r"model\.chatTemplate takes more than .* of memory for one conversation"):
        Encoder(tiny_tokenizer(), template).render(ASK)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_template_that_makes_much_of_little_is_refused_and_a_long_conversation_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding_module, "MAX_CHARACTERS", 1000)
    encoder = Encoder(tiny_tokenizer(), "{{ messages[0].content }}{{ ' ' * 600 }}")
    assert len(encoder.render([{"role": "user", "content": "x" * 600}])) == 1200
    with pytest.raises(ConfigurationError, match="makes 1002 characters of one conversation"):
        Encoder(tiny_tokenizer(), "{{ messages[0].content }}{{ ' ' * 1000 }}").render(ASK)


def test_templates_are_rendered_in_other_threads_too() -> None:
    encoder, rendered = Encoder(tiny_tokenizer(), None), list[str]()
    thread = threading.Thread(target=lambda: rendered.append(encoder.render(ASK)))
    thread.start()
    thread.join()
    assert rendered == [encoder.render(ASK)]


@pytest.mark.parametrize(
    ("template", "want"),
    [
        ({"rag": "x", "tool_use": "x"}, r"several chat templates \(rag, tool_use\) and none .* default: set model\.chatTemplate"),
        ({"default": 5}, "a chat template of type int"),
        (5, "a chat template of type int"),
        ([{"name": "default"}], "a chat template of type list"),
    ],
    ids=["no default", "default is a number", "a number", "a list"],
)
def test_chat_templates_that_are_not_one_text_are_refused(template: Any, want: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ConfigurationError, match=want):
        Encoder(tokenizer, None)
    assert Encoder(tokenizer, "{{ messages[0].content }}").render(ASK) == "hi", "the spec's own needs none of them"


def test_of_several_chat_templates_the_default_is_taken() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"rag": "no", "default": "{{ messages[0].content }}!"}
    assert Encoder(tokenizer, None).render(ASK) == "hi!"
