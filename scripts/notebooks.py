"""Executes the notebooks of ``examples/notebooks`` and writes them back with their outputs: ``make notebooks``.

What differs from run to run or from machine to machine is left out of the files: times, the kernel's version, numbers
of cells, paths.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
PATHS = (str(ROOT), sys.prefix, str(Path.home()))


def executed(path: Path) -> Any:
    """The notebook with the outputs of a fresh kernel.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # The networks are small.
    client = NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    client.execute()
    return notebook


def stripped(notebook: Any) -> Any:
    """The same without what belongs to one run or one machine.

    Raises:
        ValueError: if an output shows a path of this machine.
    """
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.metadata = nbformat.from_dict({})
        cell["id"] = f"cell-{number}"
        if cell.cell_type != "code":
            continue
        cell.execution_count = None
        for output in cell.outputs:
            if "execution_count" in output:
                output["execution_count"] = None
            if "metadata" in output:
                output["metadata"] = nbformat.from_dict({})
        text = nbformat.writes(nbformat.v4.new_notebook(cells=[cell]))
        found = [place for place in PATHS if len(place) > 1 and place in text]
        if found:
            raise ValueError(f"cell {number} shows {found[0]!r}, a path of this machine: let it print something else")
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description="Execute the notebooks and write them back.")
    parser.add_argument("names", nargs="*", help="such as image; all unless given")
    names = parser.parse_args().names
    for path in sorted(FOLDER.glob("*.ipynb")):
        if names and path.stem not in names:
            continue
        start = time.perf_counter()
        notebook = stripped(executed(path))
        nbformat.write(notebook, path)
        seconds, kilobytes = time.perf_counter() - start, path.stat().st_size / 1024
        print(f"{path.relative_to(ROOT)}: {seconds:.1f} s, {kilobytes:.0f} KB")


if __name__ == "__main__":
    main()
