"""Blotting out secrets, by their names, wherever a document, a command line or a message leaves the processes that need them.

A name is read word by word, in snake_case, kebab-case and camelCase: `HF_TOKEN`, `aws_secret_access_key` and `wandbApiKey` name
secrets; `maxTokens`, `eos_token`, `tokenizer`, `primaryKey` and `secretName` do not. Beside that, passwords in URLs and bearer
values are blotted out whatever they are called. What is not called a secret is not recognised as one.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

BLOT = "[redacted]"
"""Stands in the place of a secret."""
LONGEST_NAME = 256
"""Characters of a longer name that are looked at: the last ones."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+")

_SECRETS = _words(
    "password passwords passwd passphrase secret secrets credential credentials authorization apikey apikeys apitoken authtoken"
    " accesstoken accesskey secretkey privatekey"
)
"""Words that name a secret whatever stands beside them."""
_RUN_TOGETHER = re.compile(r"(?:password|passwd|passphrase|secret|credentials?|(?:api|access|secret|private|auth)(?:key|token))$")
"""Ends of words that were written without a boundary, such as dbpassword."""
_PLURALS = {"tokens": "token", "keys": "key"}
"""Of these the plural mostly is a count, or a list of names: it is a secret only behind a word of _OF_ACCESS."""
_OF_ACCESS = _words(
    "access account api auth bearer deploy encryption github gitlab hf hub private refresh secret service session signing ssh"
)
# A token of text, and a key by which something is looked up, are no secrets.
_BEFORE: Mapping[str, frozenset[str]] = {
    "token": _words(
        "audio begin bos cls completion decoder end eos fim first image last mask max min next num pad per prompt sep special"
        " start stop think total unk video"
    ),
    "key": _words(
        "answer cache col column data dict field foreign group hash image index input json label lookup map match missing output"
        " partition primary prompt public query reward row sort text topology unexpected unique"
    ),
}
_BEHIND: Mapping[str, frozenset[str]] = {
    "token": _words(
        "accuracy budget classification count counts embedding embeddings id ids index length len level limit limits logprob"
        " logprobs num rate type types"
    ),
    "key": _words(
        "bias cache count dim error errors head heads layer layers len length mask norm padding proj size states"
        " type value values"
    ),
}
_REFERENCES = _words("ref refs name names file files path paths dir")
"""Last words of a name that says where the secret is."""

_REFERENCE_FIELDS = frozenset({"name", "key", "optional", "namespace"})
"""All that Kubernetes' references to a value of a Secret have."""
_KEY_OF_SOMETHING = frozenset({"name", "value", "values", "operator", "effect", "path", "optional"})
"""Fields beside which the field `key` is a name, as in tolerations."""

_NEEDED = re.compile(r"[=:\s\"']")
"""What is in every text that may lose something: most texts of a document have none of it."""
_URL_USER = re.compile(r"(?<=://)[^\s/?#\"'<>]*@")
_BEARER = re.compile(
    r"\b(bearer\s{1,4})(?!tokens?\b|auth(?:entication|orization)?\b|headers?\b|values?\b)[\w.~+/=-]{6,}+", re.IGNORECASE
)
_AUTHORIZATION = re.compile(
    r"\b(authorization\\?[\"']?\s{0,4}[:=]\s{0,4}\\?[\"']?)((?:basic|bearer|token|digest)\s{1,4})[^\s\"'\\]++", re.IGNORECASE
)
_NAME = r"(?<![\w.-])(-{0,2}[A-Za-z_][\w.-]*+)"
_TEXT = re.compile(r"""(["'])(?:(?!\1)[^\\]|\\.)*+\1|\\"[^"\\]*+\\"|["']?[^\s"'\\,;&)}\]]++""", re.DOTALL)
_WITH_A_DIGIT = re.compile(r"(?=[^\s\d]*+\d)[^\s\"'\\,;&)}\]]{6,}+")
_ARGUMENT = re.compile(r"[^\s-]\S*+")
_NAMED = (
    # NAME=value, --name=value, ?name=value and "name": "value", which may stand in a text within JSON.
    (re.compile(_NAME + r"(?:[ \t]{0,2}=(?!=)[ \t]{0,2}|\\?[\"']\s{0,4}[:=]\s{0,4})"), _TEXT),
    # name: value, where the value is no word of a sentence.
    (re.compile(_NAME + r":[ \t]{1,4}"), _WITH_A_DIGIT),
    (re.compile(r"(?<!\S)(--?[A-Za-z][\w.-]*+)[ \t]{1,4}"), _ARGUMENT),
    (re.compile(r"(?<![\w.-])(--?[A-Za-z][\w.-]*+)\\?[\"'],\s{0,4}"), _TEXT),
)
"""How a message says what has a name: the name with what follows it, and the value."""


def is_secret_name(name: str) -> bool:
    """Whether what has this name is a secret: a token, key, password, secret or credential."""
    return _is_secret_name(name[-LONGEST_NAME:])


def redacted(document: Any) -> Any:
    """A document of JSON's values without its secrets: values by the names of their fields, arguments and variables, and texts as
    in `redacted_text`. References to Secrets stay, and of pod templates no variable keeps its literal value."""
    return _redacted(document, field="", hidden=False)


def redacted_text(text: str) -> str:
    """A message without passwords in its URLs, bearer values, and what it says of something that is called a secret."""
    if not _NEEDED.search(text):
        return text
    text = _BEARER.sub(rf"\g<1>{BLOT}", _AUTHORIZATION.sub(rf"\g<1>\g<2>{BLOT}", _URL_USER.sub(f"{BLOT}@", text)))
    for name, value in _NAMED:
        text = _without_named(text, name, value)
    return text


def redacted_argv(arguments: Sequence[str]) -> list[str]:
    """A command line without the values of secret arguments."""
    before = ["", *arguments]
    return [
        BLOT if _is_secret_flag(flag) and not argument.startswith("-") else redacted_text(argument)
        for flag, argument in zip(before, arguments, strict=False)
    ]


def for_processes(document: Mapping[str, Any]) -> dict[str, Any]:
    """A SpinRun's document as the run's own processes read it, from a ConfigMap or the folder of a local run.

    Pod templates and the arguments of vLLM concern who starts the processes: of them it has no secrets, nor has it annotations.
    """
    spec: Mapping[str, Any] = document["spec"]
    metadata = {name: value for name, value in document["metadata"].items() if name != "annotations"}
    return {**document, "metadata": metadata, "spec": {name: _for_processes(block) for name, block in spec.items()}}


@lru_cache(maxsize=4096)
def _is_secret_name(name: str) -> bool:
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or words[-1] in _REFERENCES:
        return False
    return any(_is_secret(words, index) for index in range(len(words)))


def _for_processes(block: Any) -> Any:
    if not isinstance(block, Mapping):
        return block
    block = cast(Mapping[str, Any], block)
    return {name: redacted({name: value})[name] if name in ("template", "engineArgs") else value for name, value in block.items()}


def _is_secret(words: Sequence[str], index: int) -> bool:
    """Whether the word makes a secret's name of its neighbours."""
    word, before, behind = words[index], words[index - 1] if index else "", words[index + 1 : index + 2]
    if word in _SECRETS or _RUN_TOGETHER.search(word):
        return True
    if word in _PLURALS:
        return before in _OF_ACCESS
    return word in _BEFORE and before not in _BEFORE[word] and not _BEHIND[word].intersection(behind)


def _is_secret_flag(argument: str) -> bool:
    return argument.startswith("-") and "=" not in argument and is_secret_name(argument)


def _redacted(value: Any, *, field: str, hidden: bool) -> Any:
    """A part of a document.

    Args:
        value: The part.
        field: The field that holds it, or the list of which it is an entry.
        hidden: Whether everything in it is a secret.
    """
    if isinstance(value, Mapping):
        mapping = cast(Mapping[str, Any], value)
        return {name: _redacted(each, field=name, hidden=_hides(mapping, name, field, hidden)) for name, each in mapping.items()}
    if isinstance(value, list | tuple):
        entries = cast(Sequence[Any], value)
        if not hidden and entries and all(isinstance(entry, str) for entry in entries):
            return redacted_argv(entries)
        return [_redacted(entry, field=field, hidden=hidden) for entry in entries]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, str):
        return BLOT if hidden and value else redacted_text(value)
    return BLOT if hidden else value


def _hides(mapping: Mapping[str, Any], name: str, field: str, hidden: bool) -> bool:
    """Whether a member of an object, which `field` holds, is a secret with all that it holds."""
    value = mapping[name]
    if name == "value":
        # Of a variable, or of a header and the like.
        called = mapping.get("name", mapping.get("key"))
        return hidden or (isinstance(called, str) and (field == "env" or is_secret_name(called)))
    if hidden or _is_reference(value):
        return hidden and not _is_reference(value)
    if name == "key" and _KEY_OF_SOMETHING & mapping.keys():
        return False
    return is_secret_name(str(name))  # what a caller logs may have other keys


def _is_reference(value: Any) -> bool:
    """Whether this names a Secret, or all in a list do, and holds nothing of it."""
    if isinstance(value, list):
        entries = cast(list[Any], value)
        return bool(entries) and all(_is_reference(entry) for entry in entries)
    if not isinstance(value, Mapping):
        return False
    fields = set(cast(Mapping[str, Any], value))
    return "secretName" in fields or ("name" in fields and fields <= _REFERENCE_FIELDS)


def _without_named(text: str, name: re.Pattern[str], value: re.Pattern[str]) -> str:
    """The text with the values of secrets' names blotted out. Of other names the values are searched too."""
    parts: list[str] = []
    done = position = 0
    while found := name.search(text, position):
        position = found.end()
        if not _is_secret_here(found) or (secret := value.match(text, position)) is None:
            continue
        parts += [text[done:position], _blotted(secret[0])]
        done = position = secret.end()
    return "".join([*parts, text[done:]])


def _is_secret_here(found: re.Match[str]) -> bool:
    name = found[1].rpartition(".")[2]
    # As in "missing key: layers.0.weight".
    return is_secret_name(name) and not (name.lower() == "key" and found[0].rstrip().endswith(f"{name}:"))


def _blotted(value: str) -> str:
    """A value as it was written, with a blot between its quotes."""
    if BLOT.startswith(value):
        return value  # all of it but the bracket, which ends a value
    quote = next((quote for quote in ('\\"', '"', "'") if value.startswith(quote)), "")
    closing = quote if len(value) > len(quote) and value.endswith(quote) else ""
    return f"{quote}{BLOT}{closing}"
