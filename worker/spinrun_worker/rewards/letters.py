r"""The letter of a multiple-choice question that a text settles on.

What a text says of its choice, in order of precedence; within each rank the last one counts:

1. Explicit statements: `\boxed{E}`, `<answer>E</answer>`, "Answer: E", "the answer is (E)", "the correct option is E", and a text
   or a last line that is nothing but the letter.
2. Marks: "option E", "choice E", "answer E", "I choose E", "(E)", "E." or "E)" before a space, `**E**`, `\text{E}`.
3. The same in lower case where it stands in brackets: "(e)", "e)".

Lower case counts as an explicit statement where nothing follows it but punctuation, so that the article in "the answer is a dog"
is not one. A statement that names several letters, such as "A and B", is not one either.

Every quantifier is bounded, and white space is reduced first: every text is read in linear time.
"""

import re

# What may stand between a statement and its letter: markup, such as $\boxed{\text{( or **, and words, such as "most likely".
_LEAD = (
    r"(?:[ \n*_$({\[\"'“‘`]"
    r"|\\(?:boxed|fbox|mbox|text(?:bf|it|rm|sf|tt|normal)?|math(?:bf|it|rm|sf|tt|bb|cal)?|bf|rm|left|large|Large|displaystyle)"
    r"(?![A-Za-z])|\\[(\[]"
    r"|(?i:the|most|likely|probably|clearly|therefore|correct|right|best|final|option|choice|letter|answer)[ \n:]{1,3}){0,16}+"
)
# Neither the article in "a dog" nor the x in \boxed{x + 1} is a choice: only punctuation, markup or the end may follow.
_CLOSED = r"(?= ?(?:\n|[*_$)}\]\"'”’`.:;!<]|\\[)\]]|$))"
_WORD_ENDS = r"(?![\w'’])"
_NOT_I = r"(?!I [a-z])"  # as in "Answer: I think"
_ONE_LETTER = r"(?! ?(?:,|/|&|\\&|(?i:and|or)\b) ?\(?[A-HJ]\b(?!['’]))"

_BOXED = rf"\\(?:boxed|fbox) ?\{{{_LEAD}([A-Za-z]){_CLOSED}"
_TAGGED = rf"<(?i:(?:final_?)?answer)>{_LEAD}([A-Za-z]){_CLOSED}"
_IS = r"(?:(?i:is|was|would be|must be|should be|has to be)\b|[:=→—–-])"
_SAID = (
    rf"\b(?i:answer|choice|option)[*_\"'”’)$ ]{{0,6}}{_IS}[:*_ ]{{0,6}}{_LEAD}"
    rf"(?:{_NOT_I}([A-Z]){_WORD_ENDS}{_ONE_LETTER}|([a-z]){_WORD_ENDS}{_CLOSED}{_ONE_LETTER})"
)
_STATEMENT = re.compile(rf"{_BOXED}|{_TAGGED}|{_SAID}")

_MARKED = re.compile(
    r"(?<!\w)\(([A-Z])\)"
    r"|(?<![\w.'’])([A-J])[.):](?=[ \n]|$)"
    rf"|\b(?i:option|choice|answer|choose|pick|select){_LEAD}(?:{_NOT_I}([A-J]){_WORD_ENDS}|([a-j]){_WORD_ENDS}{_CLOSED})"
    r"|\*\*\(?([A-J])\)?[.:]?\*\*"
    r"|\\(?:text(?:bf|it|rm)?|math(?:bf|it|rm))\{\(?([A-J])\)?\}"
)
_LOWER_CASE = re.compile(r"(?<!\w)\(([a-z])\)|(?<![\w.'’(])([a-j])\)(?=[ \n]|$)")
_ALONE = re.compile(rf"{_LEAD}([A-Za-z])[ *_$)}}\]\"'”’`.:;!\\]{{0,12}}")
_LONGEST_LINE = 80
"""Of a line that is nothing but a letter in markup."""


def settled_letter(text: str) -> str | None:
    """The letter that a text settles on, in upper case; None where it marks none."""
    stated = stated_letter(text)
    if stated is not None:
        return stated
    flat = _flat(text)
    return _last(_MARKED, flat) or _last(_LOWER_CASE, flat)


def stated_letter(text: str) -> str | None:
    """The letter of a text's last explicit statement, in upper case; None where it makes none."""
    line = text.strip().rpartition("\n")[2].strip()
    alone = _ALONE.fullmatch(line) if len(line) <= _LONGEST_LINE else None
    if alone is not None:
        return alone[1].upper()
    return _last(_STATEMENT, _flat(text))


def _flat(text: str) -> str:
    """The text without empty lines, and with one space in place of several."""
    return "\n".join(filter(None, (" ".join(line.split()) for line in text.splitlines())))


def _last(marks: re.Pattern[str], text: str) -> str | None:
    """The last letter that is marked, in upper case."""
    last = None
    for last in marks.finditer(text):  # noqa: B007 - the last one is wanted
        pass
    return None if last is None else "".join(filter(None, last.groups())).upper()
