"""The part of a page that is written by a program: what stands between two lines that mark it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Markers:
    """The lines before and after that part."""

    begin: str
    end: str

    @classmethod
    def of(cls, name: str) -> Markers:
        """Comments of Markdown, ``<!-- name:begin -->`` and ``<!-- name:end -->``."""
        return cls(f"<!-- {name}:begin -->", f"<!-- {name}:end -->")

    def write(self, page: Path, text: str) -> None:
        """Replace what stands between them.

        Raises:
            ValueError: if the page does not have both markers once, in this order.
        """
        whole, begin, end = page.read_text(), self.begin, self.end
        if whole.count(begin) != 1 or whole.count(end) != 1 or whole.index(end) < whole.index(begin):
            raise ValueError(f"{page.name} needs the lines {begin} and {end}, each once")
        before, rest = whole.split(begin)
        after = rest.split(end)[1]
        page.write_text(f"{before}{begin}\n{text}\n{end}{after}")
