"""Numbers as models and data sets write them: every way of writing one reads back as it, and nothing else does."""

import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinrun_worker.rewards.numbers import MAX_DIGITS, Number, first_number, last_number, numbers, without_separators

COMMAS = [",", "{,}", ",\\!", "\\text{,}"]
SPACES = ["\\,", "\\!", "\\:", "\\;", "\\ ", "~", "{\\,}", "\u2009", "\u00a0", "\u202f", "\u2007"]
OTHERS = ["'", "’", "_", "\\_"]
SEPARATORS = ["", *COMMAS, *SPACES, *OTHERS]


def values(text: str) -> list[Fraction | None]:
    return [number.value for number in numbers(text)]


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("9{,}500", ["9500"]),
        (r"\boxed{\$32,\!348}", ["32348"]),
        ("12{,}345{,}678", ["12345678"]),
        ("1{,}234.5", ["1234.5"]),
        ("1,234", ["1234"]),
        ("1,23", ["1", "23"]),
        ("1, 2, 3", ["1", "2", "3"]),
        ("1,2,3", ["1", "2", "3"]),
        ("1,234,56", ["1", "234", "56"]),
        ("1,234,5678", ["1", "234", "5678"]),
        ("1234,567", ["1234", "567"]),
        ("0,500", ["0", "500"]),
        ("100 200", ["100", "200"]),
        ("10 080", ["10080"]),
        ("1 000 000", ["1000000"]),
        ("5 100,000", ["5", "100000"]),
        ("1234 000", ["1234", "0"]),
        ("1,2'345", ["1", "2345"]),
        ("5'11", ["5", "11"]),
        ("3{,}14", ["3.14"]),
        ("0{,}500", ["0.5"]),
        ("1.234.567", ["1234567"]),
        ("1.234.567,89", ["1234567.89"]),
        ("1.234,50", ["1234.5"]),
        ("1.234,567", ["1.234", "567"]),
        ("(3.125,7)", ["3.125", "7"]),
        ("1\u00a0234,50", ["1234.5"]),
        ("12.05.2024", ["12", "5", "2024"]),
        ("Rs.500", ["500"]),
        ("so...5", ["5"]),
        ("it is .5", ["0.5"]),
        ("12.", ["12"]),
        ("1/2", ["1/2"]),
        ("10 / 4", ["5/2"]),
        ("1,000/3", ["1000/3"]),
        ("12/05/2024", ["12", "5", "2024"]),
        ("5/0", ["5", "0"]),
        (r"\frac{1}{2}", ["1/2"]),
        (r"-\dfrac{1}{2}", ["-1/2"]),
        (r"\frac{-1}{2}", ["-1/2"]),
        (r"\frac{1}{-2}", ["-1/2"]),
        (r"\tfrac12", ["1/2"]),
        (r"\frac1{72}", ["1/72"]),
        (r"\frac{13}4", ["13/4"]),
        (r"\frac{x}{2}", ["2"]),
        ("½", ["1/2"]),
        ("3½ cups", ["7/2"]),
        ("2 1/2", ["5/2"]),
        ("-2 1/2", ["-5/2"]),
        (r"2\frac{1}{3}", ["7/3"]),
        ("2 5/4", ["2", "5/4"]),
        ("1.5e3", ["1500"]),
        ("1.5E-3", ["0.0015"]),
        (r"1.5 \times 10^{3}", ["1500"]),
        (r"1.5\cdot10^{-3}", ["0.0015"]),
        ("1.5×10³", ["1500"]),
        ("1.5 x 10^−3", ["0.0015"]),
        ("2*10**3", ["2000"]),
        ("10^{6}", ["1000000"]),
        ("10 **5**", ["10", "5"]),
        ("2e9999999999", ["2", "9999999999"]),
        ("-5", ["-5"]),
        ("−5", ["-5"]),
        ("–5", ["-5"]),
        ("x = - 5", ["-5"]),
        ("- 5 apples", ["5"]),
        ("10-3", ["10", "3"]),
        ("10–15", ["10", "15"]),
        ("10--15", ["10", "15"]),
        ("x^{2}-3", ["2", "3"]),
        ("GPT-4", ["4"]),
        ("-$5", ["-5"]),
        (r"-\$5", ["-5"]),
        ("$-5", ["-5"]),
        ("−€1.000.000", ["-1000000"]),
        ("-US$5", ["-5"]),
        ("+5", ["5"]),
    ],
)
def test_a_text_has_these_numbers(text: str, want: list[str]) -> None:
    assert values(text) == [Fraction(number) for number in want]
    assert values(f"So it is {text}, you see.") == [Fraction(number) for number in want]


digit_groups = st.tuples(st.integers(1, 999), st.lists(st.integers(0, 999), max_size=3))


@settings(max_examples=60)
@given(
    digit_groups, st.sampled_from(SEPARATORS), st.one_of(st.none(), st.integers(0, 9999)), st.sampled_from(["", "-", "−", "+"])
)
@pytest.mark.parametrize("around", ["{}", "So it is {}.", r"\boxed{{{}}}", "${}$", "**{}**!", "= {} apples", "#### {}\n"])
def test_every_way_to_write_thousands_reads_back(
    around: str, groups: tuple[int, list[int]], separator: str, decimals: int | None, sign: str
) -> None:
    head, tail = groups
    plain = str(head) + "".join(f"{group:03}" for group in tail)
    written = separator.join([str(head), *(f"{group:03}" for group in tail)])
    fraction = "" if decimals is None else f".{decimals}"
    want = Fraction(plain + fraction) * (-1 if sign in ("-", "−") else 1)
    text = around.format(sign + written + fraction)
    assert values(text) == [want]
    assert first_number(text) == last_number(text) == Number(want)


@settings(max_examples=60)
@given(
    st.decimals(min_value=Decimal("0.01"), max_value=10**6, places=2),
    st.integers(-30, 30),
    st.sampled_from(
        ["{}e{}", "{}E{}", r"{}\times 10^{{{}}}", r"{} \cdot 10^{{{}}}", "{}×10^{}", "{} x 10^{}", "{}*10**{}", "{} × 10^({})"]
    ),
)
def test_every_way_to_write_an_exponent_reads_back(mantissa: Decimal, exponent: int, form: str) -> None:
    assert values(f"It is {form.format(mantissa, exponent)} or so") == [Fraction(mantissa) * Fraction(10) ** exponent]


@settings(max_examples=60)
@given(
    st.integers(0, 9999),
    st.integers(1, 9999),
    st.sampled_from(["{}/{}", "{} / {}", "{}⁄{}", r"\frac{{{}}}{{{}}}", r"\dfrac{{ {} }}{{ {} }}", r"$\tfrac{{{}}}{{{}}}$"]),
    st.sampled_from(["", "-", "−"]),
)
def test_every_way_to_write_a_fraction_reads_back(above: int, below: int, form: str, sign: str) -> None:
    text = form.format(above, below)
    signed = f"${sign}{text[1:]}" if text.startswith("$") else sign + text
    assert values(f"It is {signed}.") == [Fraction(above, below) * (-1 if sign else 1)]


@settings(max_examples=60)
@given(
    st.integers(0, 10**7),
    st.sampled_from(["${}", r"\${}", "€{}", "£ {}", "US${}", "{} €", "{} dollars", r"\text{{{}}}", "({})", r"\text{{$}}{}"]),
)
def test_a_currency_changes_no_number(value: int, form: str) -> None:
    assert values(form.format(f"{value:,}")) == values(form.format(value)) == [Fraction(value)]


@settings(max_examples=60)
@given(st.text(st.characters(exclude_categories=["Nd", "Nl", "No"]), max_size=60))
def test_a_text_without_digits_has_no_number(text: str) -> None:
    assert numbers(text) == []
    assert without_separators(text) == text


@settings(max_examples=100)
@given(st.text(st.sampled_from("0123459.,-−/ '{}\\!$%e^*x½_"), max_size=40))
def test_any_mixture_of_what_numbers_are_made_of_is_read(text: str) -> None:
    found = numbers(text)
    assert (found[:1], found[-1:]) == ([first_number(text)] * bool(found), [last_number(text)] * bool(found))


@pytest.mark.parametrize(
    ("one", "other", "want"),
    [
        ("25%", "25", True),
        (r"25\%", "0.25", True),
        ("25 percent", "25%", True),
        (r"25\,\%", "1/4", True),
        ("0.25%", "25%", False),
        ("25%", "2.5", False),
        ("25", "0.25", False),
        ("25 percentage points", "0.25", False),
        ("0.5", r"\frac12", True),
        ("0.1", "0.10000000000000000001", False),
    ],
)
def test_a_percentage_equals_its_hundredth_and_what_stands_before_its_sign(one: str, other: str, want: bool) -> None:
    first, second = last_number(one), last_number(other)
    assert first is not None
    assert second is not None
    assert (first.equals(second), second.equals(first)) == (want, want)


def test_a_number_that_is_too_long_to_convert_is_a_number_that_equals_none() -> None:
    number = last_number("7 and " + "9" * (MAX_DIGITS + 1))
    assert number is not None
    assert number == Number(None)
    assert not number.equals(number)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (r"\boxed{10\,080}", r"\boxed{10080}"),
        ("9{,}500 and 1'000", "9500 and 1000"),
        ("32,\\!348.5", "32348.5"),
        ("(1,234) and 1,234.5 and x_1", "(1,234) and 1,234.5 and x_1"),
        ("1.234,50", "1234.50"),
        (r"a\,b, 1\,2", r"a\,b, 1\,2"),
    ],
)
def test_separators_that_can_mean_nothing_else_are_removed(text: str, want: str) -> None:
    assert without_separators(text) == want


@pytest.mark.parametrize(
    "part",
    [
        "9",
        "1,",
        "1,000,",
        "1{,}234",
        "1.",
        "1/",
        "-",
        "1e",
        "10^",
        r"\frac{1}",
        r"\frac",
        "1 ",
        "½",
        "$",
        r"1\times",
        "{,}",
        "'1",
    ],
)
@pytest.mark.parametrize("read", [first_number, last_number, without_separators])
def test_a_long_text_takes_linear_time(read, part: str) -> None:
    """Twenty times the text would take four hundred times as long if the time were quadratic."""

    def seconds(length: int) -> float:
        started = time.process_time()
        read(part * (length // len(part)))
        return time.process_time() - started

    short = min(seconds(10_000) for _ in range(3))
    assert min(seconds(200_000) for _ in range(2)) < 100 * short + 0.5
