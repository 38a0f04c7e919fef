r"""Numbers as models and data sets write them: plain, in LaTeX, with currencies, percent signs, fractions and exponents.

What counts as one number:

- **Thousands** are groups of exactly three digits after one to three digits that do not begin with 0, all with the same
  separator: a comma (also `{,}` and `,\!`), a space that does not break (thin, narrow, figure, `\,`, `\!`, `\:`, `\;`, `\ `,
  `~`), an apostrophe, an underscore, or a dot where there are two (1.234.567) or two decimals after a comma (1.234,50). A plain
  space joins only where a group begins with 0, as in `10 080`: nobody lists such numbers. So `1,234` is one number; `1,23`,
  `1, 2, 3`, `100 200` and `1,234,56` are lists.
- **Decimals** follow a dot. A comma stands before decimals only where nothing else can be meant: LaTeX's `3{,}14`, and after
  thousands with another separator, as in `1 234,50` or `1.234,50`.
- **Fractions** are `1/2`, `\frac{1}{2}`, `\frac12`, `½`, and mixed numbers such as `2 1/2`. Three parts, as in 12/05/2024, are a
  date, and so are parts that begin with 0.
- **Exponents** are `1.5e3`, `1.5 \times 10^{3}`, `1.5×10³` and the bare `10^3`, up to three digits long.
- **Signs** stand before the number or its currency, where they are not between two operands as in 10-3.

Every text is read in linear time.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import NamedTuple
from unicodedata import numeric

MAX_DIGITS = 4000
"""Digits of the longest number that has a value: Python does not convert longer ones, since that takes quadratic time."""

_CURRENCIES = "$¢£¤¥֏৳฿៛\u20a0-\u20c0﷼＄￠￡￥￦"
_SIGNS = "-+\u2010\u2011\u2012\u2013\u2212\ufe63\uff0b\uff0d"
_COMMA, _LATEX_COMMA = ",", "{,}"
_SEPARATOR = (
    r"(?:\\(?:text|mathrm|mathord|mathpunct)\{,\}|\{,\}|,\\!|,|\{?\\[,!:; ]\}?|\\thinspace\ ?|~"
    r"|[ \u00a0\u2006-\u2009\u202f]|['’ʼ＇]|\\?_)"
)
_DIGITS = r"[0-9]+(?:\.[0-9]+)*"
_VULGAR = "¼-¾⅐-⅞"
# Digits with everything that may join them. A leading dot is a decimal point, unless it ends what is before it: "Rs.500", "...5".
_RUN = re.compile(rf"(?:(?<![\w.)\]])\.)?{_DIGITS}(?:{_SEPARATOR}{_DIGITS})*|[{_VULGAR}]")
_PIECE = re.compile(rf"(?P<digits>\.?{_DIGITS})(?P<separator>{_SEPARATOR})?")

_EXPONENT = re.compile(
    rf"""
    [eE](?P<plain>[{_SIGNS}]?[0-9]{{1,3}})(?![0-9])
    |[ ]?(?:\\times|\\cdot|[×·⋅∙✕*xX])[ ]?10(?P<power>)(?=[ ]?(?:\^|\*\*)|[⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹])
    """,
    re.VERBOSE,
)
_POWER = re.compile(
    rf"""
    (?:[ ]?\^[ ]?|\*\*|[ ]\*\*[ ])
    (?:
        \{{[ ]?(?P<braces>[{_SIGNS}]?[0-9]{{1,3}})[ ]?\}}
        |\([ ]?(?P<brackets>[{_SIGNS}]?[0-9]{{1,3}})[ ]?\)
        |(?P<bare>[{_SIGNS}]?[0-9]{{1,3}})(?![0-9])
    )
    |(?P<raised>[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{{1,3}})
    """,
    re.VERBOSE,
)
_RAISED = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
_SLASH = re.compile(r" ?[/⁄∕] ?")
_FRACTION = re.compile(rf"(?P<start>\\[cdt]?frac ?)(?P<brace>\{{ ?)?(?P<sign>[{_SIGNS}]?)$")
_BETWEEN = re.compile(rf" ?(?P<end>\}})? ?(?P<brace>\{{ ?)?(?P<sign>[{_SIGNS}]?)")
_END = re.compile(r" ?\}")
_BEFORE_FRACTION = re.compile(r" |\\[,; ]|")
_SIGN = re.compile(rf"(?P<sign>[{_SIGNS}])(?P<gap> ?)(?:[A-Z]{{0,3}}\\?[{_CURRENCIES}] ?)?\{{?$")
_OPERAND = re.compile(r"[^\W_]|[)\]}%]")
_PERCENT = re.compile(r"(?: |\\[,:; ]|[~\u00a0\u2009\u202f])?(?:\\?[%％]|(?:per ?cent|pct)\b)", re.IGNORECASE)
_LOOK_BACK = 24
_TAIL = 8
"""Numerals that the last number may depend on, and more: it has three at most, as in 2 1/2."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a text."""

    value: Fraction | None
    """Exactly what is written, before a percent sign divides it; None where it has more than MAX_DIGITS digits."""
    is_percent: bool = False

    def equals(self, other: "Number") -> bool:
        """Whether both mean the same: exactly equal or, where only one of them is a percentage, equal as its hundredth.

        Data sets write 25 for 25 %, and others 0.25: both are right.
        """
        if self.value is None or other.value is None:
            return False
        if self.value == other.value:
            return True
        if self.is_percent == other.is_percent:
            return False
        percentage, plain = (self.value, other.value) if self.is_percent else (other.value, self.value)
        return percentage / 100 == plain


def first_number(text: str) -> Number | None:
    """The first number of a text; None where it has none."""
    literal = next(_literals(text, _all_numerals(text)), None)
    return None if literal is None else literal.number()


def last_number(text: str) -> Number | None:
    """The last number of a text; None where it has none."""
    tail = deque((numeral for run in deque(_RUN.finditer(text), _TAIL) for numeral in _numerals(run)), _TAIL)
    literals = list(_literals(text, tail))
    return literals[-1].number() if literals else None


def numbers(text: str) -> list[Number]:
    """All numbers of a text, in order."""
    return [literal.number() for literal in _literals(text, _all_numerals(text))]


def without_separators(text: str) -> str:
    """The text with its thousands as plain digits, except where a comma separates them: a tuple may be meant."""
    parts: list[str] = []
    done = 0
    for run in _RUN.finditer(text):
        for numeral in _numerals(run):
            written = text[numeral.start : numeral.end]
            if numeral.digits not in (written, written.replace(",", "")):
                parts += [text[done : numeral.start], numeral.digits]
                done = numeral.end
    return "".join([*parts, text[done:]])


class _Numeral(NamedTuple):
    """Digits with at most one decimal point, where they stand, and nothing around them."""

    start: int
    end: int
    digits: str
    """Without separators."""

    @property
    def is_integer(self) -> bool:
        return self.digits.isdecimal()


@dataclass(frozen=True, slots=True)
class _Literal:
    """A number that has been found and is still to be converted."""

    start: int
    end: int
    numerator: str
    denominator: str = "1"
    whole: str = "0"
    exponent: int = 0
    is_negative: bool = False
    is_percent: bool = False

    def number(self) -> Number:
        """What it means."""
        if max(len(self.whole), len(self.numerator), len(self.denominator)) > MAX_DIGITS:
            return Number(None, self.is_percent)
        value = _fraction(self.whole) + _fraction(self.numerator) / _fraction(self.denominator)
        value *= Fraction(10) ** self.exponent
        return Number(-value if self.is_negative else value, self.is_percent)


def _fraction(digits: str) -> Fraction:
    return Fraction(numeric(digits)).limit_denominator(10) if re.fullmatch(f"[{_VULGAR}]", digits) else Fraction(digits)


# --- Digits and what joins them ---------------------------------------------------------------------------------------


def _all_numerals(text: str) -> Iterator[_Numeral]:
    return (numeral for run in _RUN.finditer(text) for numeral in _numerals(run))


def _numerals(run: re.Match[str]) -> Iterator[_Numeral]:
    """The numerals of a run of joined digits: it is cut where the separator changes, and each part is one number or a list."""
    pieces = list(_PIECE.finditer(run[0]))
    if not pieces:
        yield _Numeral(run.start(), run.end(), run[0])
        return
    first = 0
    while first < len(pieces):
        separator = pieces[first]["separator"]
        last = first
        while last + 1 < len(pieces) and pieces[last]["separator"] == separator:
            last += 1
        joined = _joined([piece["digits"] for piece in pieces[first : last + 1]], separator)
        if joined is not None:
            decimals = pieces[last + 1 : last + 2] if _has_decimals(pieces, last, separator) else []
            if decimals:
                joined, last = f"{joined}.{decimals[0]['digits']}", last + 1
            yield _Numeral(run.start() + pieces[first].start(), run.start() + pieces[last].end("digits"), joined)
            first = last + 1
            continue
        if _is_dotted_decimal(pieces, first):
            digits = f"{pieces[first]['digits'].replace('.', '')}.{pieces[first + 1]['digits']}"
            yield _Numeral(run.start() + pieces[first].start(), run.start() + pieces[first + 1].end("digits"), digits)
            first += 2
            continue
        # The last of a list may begin a number with another separator, as in 1,2'345.
        alone = pieces[first : max(last, first + 1)]
        for piece in alone:
            digits, start = piece["digits"], run.start() + piece.start()
            if "." in digits:
                yield from _dotted(digits, start)
            else:
                yield _Numeral(start, start + len(digits), digits)
        first += len(alone)


def _joined(digits: list[str], separator: str | None) -> str | None:
    """The digits of one number with this separator between its thousands, or before its decimals; None for a list."""
    if len(digits) == 1 or separator is None:
        return None
    head, *groups = digits
    integers, (tail, dot, decimals) = groups[:-1], groups[-1].partition(".")
    is_list = separator == " " and not any(group.startswith("0") for group in groups)
    if _is_head(head) and all(_is_group(group) for group in [*integers, tail]) and "." not in decimals and not is_list:
        return f"{head}{''.join(integers)}{tail}{dot}{decimals}"
    is_decimal_comma = separator.endswith(_LATEX_COMMA) and len(digits) == 2 and head.isdecimal() and tail.isdecimal() and not dot
    return f"{head}.{tail}" if is_decimal_comma else None


def _has_decimals(pieces: list[re.Match[str]], last: int, separator: str) -> bool:
    """Whether the next piece is the last one and stands after a comma, where the thousands have another separator."""
    after = pieces[last]["separator"]
    return (
        last + 2 == len(pieces)
        and after is not None
        and after in (_COMMA, _LATEX_COMMA)
        and _COMMA not in separator.replace("\\,", "")
        and "." not in pieces[last]["digits"]
        and pieces[last + 1]["digits"].isdecimal()
    )


def _is_dotted_decimal(pieces: list[re.Match[str]], first: int) -> bool:
    """Whether a piece with dots between its thousands and the next one are one number, as 1.234,50 or 1.234.567,89."""
    if first + 2 != len(pieces) or pieces[first]["separator"] not in (_COMMA, _LATEX_COMMA):
        return False
    head, *groups = pieces[first]["digits"].split(".")
    decimals = pieces[first + 1]["digits"]
    is_grouped = bool(groups) and _is_head(head) and all(map(_is_group, groups))
    return is_grouped and decimals.isdecimal() and (len(groups) > 1 or len(decimals) == 2)


def _dotted(digits: str, start: int) -> Iterator[_Numeral]:
    """The numerals of digits with dots: a decimal, thousands as 1.234.567, or the parts of a date or a version."""
    parts = digits.split(".")
    if len(parts) <= 2:
        yield _Numeral(start, start + len(digits), digits)
    elif _is_head(parts[0]) and all(map(_is_group, parts[1:])):
        yield _Numeral(start, start + len(digits), "".join(parts))
    else:
        for part in parts:
            if part:
                yield _Numeral(start, start + len(part), part)
            start += len(part) + 1


def _is_head(digits: str) -> bool:
    return len(digits) <= 3 and digits.isdecimal() and digits[0] != "0"


def _is_group(digits: str) -> bool:
    return len(digits) == 3 and digits.isdecimal()


# --- What stands around them ------------------------------------------------------------------------------------------


def _literals(text: str, numerals: Iterable[_Numeral]) -> Iterator[_Literal]:
    """The numbers that a text makes of its numerals, in order."""
    held: _Literal | None = None  # the last one, while it may still be the whole part of a mixed number
    for literal in _unmixed(text, iter(numerals)):
        if held is not None:
            mixed = _mixed(text, held, literal)
            if mixed is not None:
                yield mixed
                held = None
                continue
            yield held
        held = literal
    if held is not None:
        yield held


def _mixed(text: str, whole: _Literal, part: _Literal) -> _Literal | None:
    """A whole number and the proper fraction right after it as one number, or None."""
    is_plain = whole.numerator.isdecimal() and whole.denominator == "1" and not (whole.exponent or whole.is_percent)
    if not is_plain or part.is_negative or part.exponent or part.start - whole.end > 2:
        return None
    if _BEFORE_FRACTION.fullmatch(text, whole.end, part.start) is None or not _is_proper(part):
        return None
    return replace(part, start=whole.start, whole=whole.numerator, is_negative=whole.is_negative)


def _is_proper(part: _Literal) -> bool:
    if not part.numerator.isdecimal():
        return part.denominator == "1" and "." not in part.numerator  # ½
    return (
        part.denominator != "1"
        and len(part.denominator) <= 9
        and part.denominator.isdecimal()
        and (len(part.numerator) <= 9 and int(part.numerator) < int(part.denominator))
    )


def _unmixed(text: str, numerals: Iterator[_Numeral]) -> Iterator[_Literal]:
    """The same, where a mixed number is still two."""
    done = 0
    ahead: list[_Numeral] = []
    while True:
        while len(ahead) < 2 and (numeral := next(numerals, None)) is not None:
            ahead.append(numeral)
        if not ahead:
            return
        numeral = ahead.pop(0)
        if numeral.start < done:
            continue
        following = ahead[0] if ahead else None
        literal = _latex_fraction(text, numeral, following) or _slashed(text, numeral, following) or _powered(text, numeral)
        literal = _with_percent(text, _with_sign(text, literal))
        done = literal.end
        yield literal


def _latex_fraction(text: str, numeral: _Numeral, following: _Numeral | None) -> _Literal | None:
    r"""`\frac{1}{2}`, `\frac12`, `\frac1{2}` or `\frac{1}2`, if the numeral begins one."""
    before = text[max(0, numeral.start - _LOOK_BACK) : numeral.start]
    head = _FRACTION.search(before)
    if head is None:
        return None
    start = numeral.start - len(before) + head.start()
    if head["brace"] is None and len(numeral.digits) > 1:
        if (
            head["sign"]
            or not numeral.is_integer
            or numeral.digits[1] == "0"
            or numeral.digits != text[numeral.start : numeral.end]
        ):
            return None
        return _Literal(start, numeral.start + 2, numeral.digits[0], numeral.digits[1])
    if following is None or following.start - numeral.end > 6 or _is_zero(following.digits):
        return None
    between = _BETWEEN.fullmatch(text, numeral.end, following.start)
    if between is None or (between["end"] is None) != (head["brace"] is None):
        return None
    is_negative = _is_minus(head["sign"]) != _is_minus(between["sign"])
    if between["brace"] is not None:
        end = _END.match(text, following.end)
        return None if end is None else _Literal(start, end.end(), numeral.digits, following.digits, is_negative=is_negative)
    if following.digits[0] in "0." or not following.digits[0].isdecimal():
        return None
    return _Literal(start, following.start + 1, numeral.digits, following.digits[0], is_negative=is_negative)


def _slashed(text: str, numeral: _Numeral, following: _Numeral | None) -> _Literal | None:
    """`1/2`, if the numeral begins it and nothing else is divided: 12/05/2024 and 1/2/3 are not fractions."""
    if following is None or following.start - numeral.end > 3:
        return None
    is_divided = _SLASH.fullmatch(text, numeral.end, following.start) is not None
    before = text[max(0, numeral.start - 3) : numeral.start].rstrip(" ")
    is_chain = _is_slash_after_digit(before) or _SLASH.match(text, following.end) is not None
    if not is_divided or is_chain or _is_zero(following.digits):
        return None
    if any(len(each.digits) > 1 and each.digits[0] == "0" and each.is_integer for each in (numeral, following)):
        return None
    return _Literal(numeral.start, following.end, numeral.digits, following.digits)


def _is_slash_after_digit(before: str) -> bool:
    return before[-1:] in ("/", "⁄", "∕") and before[-2:-1].strip().isdecimal()


def _powered(text: str, numeral: _Numeral) -> _Literal:
    """The numeral with its power of ten, if it has one."""
    plain = _Literal(numeral.start, numeral.end, numeral.digits)
    if text[numeral.start : numeral.end] == "10":
        power = _POWER.match(text, numeral.end)
        if power is not None:
            return replace(plain, end=power.end(), numerator="1", exponent=_exponent(power))
    found = _EXPONENT.match(text, numeral.end)
    if found is None:
        return plain
    if found["plain"] is not None:
        return replace(plain, end=found.end(), exponent=_signed(found["plain"]))
    power = _POWER.match(text, found.start("power"))
    return plain if power is None else replace(plain, end=power.end(), exponent=_exponent(power))


def _exponent(power: re.Match[str]) -> int:
    return _signed(power["braces"] or power["brackets"] or power["bare"] or power["raised"].translate(_RAISED))


def _signed(digits: str) -> int:
    return -int(digits[1:]) if _is_minus(digits[0]) else int(digits.lstrip(_SIGNS))


def _with_sign(text: str, literal: _Literal) -> _Literal:
    """The number with the sign before it. One between two operands is an operator, and one before a space begins a list."""
    offset = max(0, literal.start - _LOOK_BACK)
    before = text[offset : literal.start]
    sign = _SIGN.search(before)
    if sign is None:
        return literal
    rest = before[: sign.start()].rstrip(_SIGNS)
    is_sign = rest.rstrip().endswith("=") if sign["gap"] else _OPERAND.search(rest[-1:]) is None
    if not is_sign:
        return literal
    return replace(literal, start=offset + sign.start(), is_negative=literal.is_negative != _is_minus(sign["sign"]))


def _with_percent(text: str, literal: _Literal) -> _Literal:
    percent = _PERCENT.match(text, literal.end)
    return literal if percent is None else replace(literal, end=percent.end(), is_percent=True)


def _is_minus(sign: str) -> bool:
    return sign != "" and sign in _SIGNS and sign not in "+＋"


def _is_zero(digits: str) -> bool:
    return digits.strip("0.") == ""
