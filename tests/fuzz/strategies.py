"""Hostile inputs that several surfaces share, and what their tests are wrapped in."""

import functools
import inspect
import json
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

Json = Any
Test = Callable[..., Any]

SCALE = float(os.environ.get("FUZZ_SCALE", "1"))
"""How many times as many inputs as `make fuzz` tries in its two minutes."""

_SLOW_OR_LARGE = (
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.large_base_example,
    HealthCheck.filter_too_much,
    HealthCheck.function_scoped_fixture,
)

tried = Counter[str]()
"""Inputs by the name of the test that they were given to."""


def fuzz(examples: int, **strategies: st.SearchStrategy[Any]) -> Callable[[Test], Test]:
    """Call a test with this many inputs, drawn from the seed that `--hypothesis-seed` names and from nothing else.

    Args:
        examples: Number of inputs in `make fuzz`.
        strategies: Where each argument comes from.
    """

    def wrap(test: Test) -> Test:
        @functools.wraps(test)
        async def counted_async(*arguments: Any, **keywords: Any) -> None:
            tried[test.__name__] += 1
            await test(*arguments, **keywords)

        @functools.wraps(test)
        def counted(*arguments: Any, **keywords: Any) -> None:
            tried[test.__name__] += 1
            test(*arguments, **keywords)

        chosen = settings(
            max_examples=max(1, round(examples * SCALE)),
            # Without it, what failed once would be tried first, and a seed would not name the inputs.
            database=None,
            # Time limits are the tests' own; fixtures are made once for all inputs, on purpose.
            deadline=None,
            suppress_health_check=_SLOW_OR_LARGE,
            phases=(Phase.generate, Phase.shrink),
        )
        return chosen(given(**strategies)(counted_async if inspect.iscoroutinefunction(test) else counted))

    return wrap


# --- text ----------------------------------------------------------------------------------------------------------

CANARY = "canary"
"""In each piece of hostile markup."""

HOSTILE_TEXTS = (
    "",
    " ",
    "\x1b[31mred\x1b[0m",
    "\x1b]52;c;Zm9v\x07",
    "\x9b2J",
    "a\rb",
    "a\bb",
    "\u202eexe.txt",
    "\u2066x\u2069",
    "\0",
    "\ud83d",
    "\udcff",
    "💥",
    "\u2028\u2029\x85",
    "x" * 3000,
    f"<script>{CANARY}()</script>",
    f"<img src=x onerror={CANARY}()>",
    f"'\"><svg onload={CANARY}()>",
    f"</title></style></textarea></script><{CANARY}>",
    f"{{{{ {CANARY} }}}}{{% {CANARY} %}}",
    "javascript:canary()",
    "../../etc/passwd",
    "$(id)`id`${id}",
    "%s%n{0}{x!r}",
    "[bold]x[/bold][/]",
    "$\\frac{$",
    "null",
    "true",
    "1e3",
    "NaN",
    "-0",
)
texts = st.sampled_from(HOSTILE_TEXTS) | st.text(max_size=30)
plain_texts = texts.map(lambda text: text.encode("utf-8", "replace").decode())
"""Without halves of surrogate pairs, which neither UTF-8 nor YAML has."""

# --- numbers and trees ---------------------------------------------------------------------------------------------

integers = st.sampled_from([0, -1, 1, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 10**30]) | st.integers()
floats = st.sampled_from([0.0, -0.0, 1.5, 5e-324, 1e308, -1e308, 1e300]) | st.floats(allow_nan=False, allow_infinity=False)
odd_floats = floats | st.sampled_from([float("nan"), float("inf"), float("-inf")])
scalars = st.none() | st.booleans() | integers | floats | texts


def trees(leaves: st.SearchStrategy[Any] = scalars, keys: st.SearchStrategy[str] = texts) -> st.SearchStrategy[Json]:
    """What JSON can hold, and integers of any size."""
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
    )


def nested(depth: int) -> Json:
    """A list in a list in a list …"""
    value: Json = []
    for _ in range(depth):
        value = [value]
    return value


def paths_in(document: Json, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a document, the document's own included."""
    found = [path]
    if isinstance(document, dict):
        found += [each for key, value in document.items() for each in paths_in(value, (*path, key))]
    elif isinstance(document, list):
        found += [each for index, value in enumerate(document) for each in paths_in(value, (*path, index))]
    return found


@st.composite
def mutated(draw: st.DrawFn, documents: st.SearchStrategy[Json], values: st.SearchStrategy[Json] | None = None) -> Json:
    """Documents with up to three values replaced, removed, renamed or repeated."""
    document = json.loads(json.dumps(draw(documents)))
    values = trees() if values is None else values
    for _ in range(draw(st.integers(0, 3))):
        *to_parent, last = draw(st.sampled_from(paths_in(document))) or (None,)
        if last is None:
            continue
        parent = functools.reduce(lambda inner, key: inner[key], to_parent, document)
        change = draw(st.sampled_from(["replace", "replace", "remove", "rename", "wrap", "add"]))
        if change == "replace":
            parent[last] = draw(values)
        elif change == "wrap":
            parent[last] = [parent[last]]
        elif change == "remove":
            del parent[last]
        elif isinstance(parent, dict):
            parent[draw(texts)] = parent.pop(last) if change == "rename" else draw(values)
        else:
            parent.insert(last, draw(values))
    return document


# --- bytes ---------------------------------------------------------------------------------------------------------


class Content(bytes):
    """Bytes of a file, of which a failure shows the beginning alone."""

    def __repr__(self) -> str:
        return repr(bytes(self)) if len(self) < 1000 else f"{bytes(self[:1000])!r}… ({len(self)} bytes)"


@st.composite
def damaged(draw: st.DrawFn, contents: st.SearchStrategy[bytes]) -> bytes:
    """Bytes with some overwritten, inserted, removed, repeated or cut off at the end."""
    data = bytearray(draw(contents))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 1, 2, 8, 100])))
        change = draw(st.sampled_from(["overwrite", "insert", "remove", "repeat", "cut"]))
        if change == "cut":
            del data[start:]
        elif change == "repeat":
            data[start:start] = data[start:end] * draw(st.integers(1, 3))
        else:
            new = b"" if change == "remove" else draw(st.binary(min_size=1, max_size=8) | st.sampled_from(_PIECES))
            data[start : start if change == "insert" else end] = new
    return bytes(data)


_PIECES = (
    b"\0",
    b"\xff",
    b"\n",
    b"\r\n",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b"\xed\xa0\xbd",
    b"\x1b[2J",
    b"-1",
    b"1e999",
    b"NaN",
    b"9" * 400,
)
