"""What `secateur report` comes to."""

from dataclasses import dataclass
from pathlib import Path

from rich.text import Text


@dataclass(frozen=True, slots=True)
class Page:
    """A report that was drawn.

    Attributes:
        path: Where it is.
    """

    path: Path

    def to_json(self) -> dict[str, str]:
        """Where it is."""
        return {"report": str(self.path)}

    def __rich__(self) -> Text:
        """What a terminal shows."""
        return Text(str(self.path))
