"""Makes pages of executed notebooks: cells as they are, pictures as files, HTML outputs as HTML."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

HEAD = "{title}\n\n*A notebook: `examples/notebooks/{name}`, executed as it is shown.*\n\n"


def make(folder: Path, out: Path, relinked: Callable[[str, Path, str], str]) -> list[str]:
    """A page for each notebook in the folder; their names, as the table of contents needs them."""
    out.mkdir(parents=True)
    pages = []
    for path in sorted(folder.glob("*.ipynb")):
        page = f"notebooks/{path.stem}.md"
        text = page_of(json.loads(path.read_text()), path, out)
        (out / f"{path.stem}.md").write_text(relinked(text, path.parent, page))
        pages.append(page)
    return pages


def page_of(notebook: dict[str, Any], path: Path, out: Path) -> str:
    """Markdown of a notebook, whose pictures are written beside it. Its first cell begins with the title."""
    title, *rest = "".join(notebook["cells"][0]["source"]).split("\n", 1)
    parts = [HEAD.format(title=title, name=path.name), *rest]
    for number, cell in enumerate(notebook["cells"][1:], 1):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for place, output in enumerate(cell["outputs"]):
            parts.append(output_of(output, out, f"{path.stem}_{number}_{place}"))
    return "\n\n".join(parts) + "\n"


def output_of(output: dict[str, Any], out: Path, stem: str) -> str:
    """The richest form of one output that a page can show."""
    if output["output_type"] == "stream":
        return boxed(f"```text\n{''.join(output['text']).rstrip()}\n```")
    if output["output_type"] == "error":
        raise ValueError(f"{stem}: the notebook holds an error, {output['ename']}: execute it again")
    data = output["data"]
    if "image/png" in data:
        (out / f"{stem}.png").write_bytes(base64.b64decode("".join(data["image/png"])))
        return f"![Output of the cell above]({stem}.png)"
    if "text/html" in data:
        # A blank line would end the HTML for a reader of Markdown.
        lines = [line for line in "".join(data["text/html"]).splitlines() if line.strip()]
        return '<div class="cell-output">\n' + "\n".join(lines) + "\n</div>"
    return boxed(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")


def boxed(text: str) -> str:
    return f'<div class="cell-output">\n\n{text}\n\n</div>'
