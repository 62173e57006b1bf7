"""Draws the gallery: every function of ``examples/gallery.py``, with its picture, what it shows and its text."""

from __future__ import annotations

import inspect
import shutil
from pathlib import Path

HEAD = """# Gallery

Each picture was drawn when this page was built, by the function below it, on small networks that were trained on the
spot. The whole file is `examples/gallery.py` (`python examples/gallery.py --out out/gallery`).
[How to draw such pictures](pictures.md).
"""
PART = """
## {title}

{caption}

![{caption}](images/gallery/{name}.png)

<details><summary>The code</summary>

```python
{code}```

</details>
"""


def make(source: Path, drawn: Path) -> None:
    """Write the page ``gallery.md`` and its pictures into the folder that Sphinx reads.

    Args:
        drawn: where pictures are drawn; those that are there already are taken.
    """
    import gallery
    from fastlrp import viz

    drawn.mkdir(parents=True, exist_ok=True)
    parts = []
    for draw in gallery.PICTURES:
        picture = drawn / f"{draw.__name__}.png"
        if not picture.exists():
            viz.save(draw(), picture)
        caption = inspect.cleandoc(draw.__doc__ or "").replace("``", "`")
        title = draw.__name__.replace("_", " ").capitalize()
        code = inspect.getsource(draw)
        parts.append(PART.format(title=title, caption=caption, name=draw.__name__, code=code))
    shutil.copytree(drawn, source / "images" / "gallery")
    (source / "gallery.md").write_text(HEAD + "".join(parts))
