"""Builds the documentation site: ``make docs``, or ``python docs/site/build.py --out build/site``.

The pages of ``docs/`` are written to be read where they lie. Here they are copied, links to files outside ``docs/`` are
led to pages made of those files, the gallery is drawn, notebooks become pages, and a page of the reference is made for
each public module. Then Sphinx builds it all; a warning fails the build, and so does a link that leads nowhere.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

SITE = Path(__file__).parent
ROOT = SITE.parents[1]
sys.path[:0] = [str(ROOT), str(SITE), str(ROOT / "examples")]

import check  # noqa: E402
import gallery_page  # noqa: E402
import notebook_pages  # noqa: E402
import reference  # noqa: E402

LINK = re.compile(r"(?<=\]\()([^)#\s:]*)((?:#[^)\s]*)?)(?=\))")
SECTION = re.compile(r"^## (.*)$", re.M)
MERMAID = re.compile(r"^```mermaid\n.*?^```$", re.M | re.S)
DRAWING = "![How a model and an input become relevance, folder by folder](images/architecture.svg)"
"""Stands in the place of the text of a drawing, which a browser could draw with a script from elsewhere only."""
FIXED = {
    "README.md": "index.md", "docs/index.md": "index.md", "benchmarks/README.md": "benchmarks.md",
    "CHANGELOG.md": "changelog.md", "examples/gallery.py": "gallery.md",
}  # fmt: skip
"""Files outside ``docs/`` -> their pages. Examples and notebooks have theirs by rule."""


def page_of(path: Path) -> str | None:
    """Where the site has a file of the repository, or None."""
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
    if name in FIXED:
        return FIXED[name]
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    if path.suffix == ".ipynb":
        return f"notebooks/{path.stem}.md"
    if path.parent == ROOT / "examples" and path.suffix == ".py":
        return f"examples/{path.stem}.md"
    return None


def relinked(text: str, home: Path, page: str) -> str:
    """The text of a file in the folder ``home`` with its links as they must be on ``page``."""

    def moved(match: re.Match[str]) -> str:
        link, anchor = match[1], match[2]
        target = (home / link).resolve() if link else None
        if target is None or not target.exists():
            return match[0]  # Of the page itself, or no link at all but code.
        found = page_of(target)
        if found is None:
            return match[0]
        # A page that took the place of another has other headings.
        keeps_anchor = target.relative_to(ROOT).as_posix() != "README.md"
        return os.path.relpath(found, Path(page).parent) + (anchor if keeps_anchor else "")

    return LINK.sub(moved, text)


def copied(source: Path) -> None:
    """The pages, pictures and files of the repository that pages are made of."""
    shutil.copytree(ROOT / "docs" / "images", source / "images")
    files = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md"]
    for path in files:
        page = page_of(path)
        assert page is not None
        text = MERMAID.sub(DRAWING, path.read_text())
        write(source / page, relinked(text, path.parent, page))
    shutil.copytree(ROOT / "benchmarks" / "results", source / "results", ignore=lambda _, names: unwanted(names))
    for path in sorted((ROOT / "examples").glob("*.py")):
        if path.name == "gallery.py":
            continue
        title = f"# examples/{path.name}\n\n`python examples/{path.name} --help` says what it takes.\n\n"
        write(source / f"examples/{path.stem}.md", f"{title}```python\n{path.read_text()}```\n")


def unwanted(names: list[str]) -> set[str]:
    return {name for name in names if not name.endswith(".svg")}


def with_navigation(index: str, extra: dict[str, list[str]]) -> str:
    """The index with a hidden table of contents for each of its sections, made of the links there."""
    parts = SECTION.split(index)
    trees = []
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        pages = [link for link, _ in LINK.findall(body) if link.endswith(".md") and link != "index.md"]
        pages = list(dict.fromkeys([*pages, *extra.get(title, [])]))
        if pages:
            trees.append(f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n" + "\n".join(pages) + "\n```\n")
    return index + "\n" + "\n".join(trees)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def sources(source: Path, keep: bool) -> None:
    """Everything that Sphinx reads."""
    drawn = source.parent / "gallery"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    copied(source)
    if not keep:
        shutil.rmtree(drawn, ignore_errors=True)
    gallery_page.make(source, drawn)
    notebooks = notebook_pages.make(ROOT / "examples" / "notebooks", source / "notebooks", relinked)
    pages = reference.make(source / "reference")
    index = (source / "index.md").read_text()
    extra = {"Start": notebooks, "Reference": pages}
    write(source / "index.md", with_navigation(index, extra))


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the documentation site.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="folder (%(default)s)")
    parser.add_argument("--keep-gallery", action="store_true", help="take the pictures that the last build drew")
    options = parser.parse_args()
    out: Path = options.out.resolve()
    from sphinx.cmd.build import build_main

    sources(out / "source", options.keep_gallery)
    shutil.rmtree(out / "html", ignore_errors=True)
    status = build_main(
        ["-b", "html", "-W", "--keep-going", "-q", "-c", str(SITE), "-d", str(out / "doctrees"), str(out / "source"),
         str(out / "html")]
    )  # fmt: skip
    faults = check.links(out / "html")
    for fault in faults:
        print(fault, file=sys.stderr)
    if status or faults:
        print(f"docs: the site has faults, see above ({len(faults)} of links)", file=sys.stderr)
        return 1
    count = sum(1 for _ in (out / "html").rglob("*.html"))
    print(f"docs: {count} pages, every link checked: {out / 'html' / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
