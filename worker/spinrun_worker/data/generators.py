"""The built-in generators, by the name that a spec has in `source`."""

from collections.abc import Callable, Mapping

from spinrun_worker.data import arithmetic, letters

GENERATORS: Mapping[str, Callable[..., list[dict[str, str | int]]]] = {
    arithmetic.SOURCE: arithmetic.questions,
    letters.SOURCE: letters.questions,
}
"""Each gives the rows of a config and a split; the true answer is in the column `answer`. The spec has the same names:
`spinrun_api.spec.GENERATORS`."""
