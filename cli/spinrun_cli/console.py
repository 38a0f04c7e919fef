"""A terminal that nothing foreign commands, for what is drawn with rich."""

from collections.abc import Iterable

from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from spinrun_cli.show.text import printable


class Console(RichConsole):
    """rich's Console, whose texts go through `printable`; colours and the moves of the cursor are rich's own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render what is to be drawn: here passes everything that rich prints, and all that stands inside it.

        Args:
            renderable: What is to be drawn.
            options: How.
        """
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
