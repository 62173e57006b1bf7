"""HTML files in which people explore relevance, without a server or a network.

:func:`collect` runs an explainer and gives :class:`Sample` objects; :func:`write` makes a page of many targets, layers
and samples. :func:`collect_parts` and :func:`write_parts` make a page of parts: the classes of each patch or token, and
the parts of each class. Needs Jinja2: ``pip install "fastlrp[report]"``.
"""

from fastlrp.report.collecting import collect
from fastlrp.report.comparing import compare
from fastlrp.report.ledger import ledger_rows
from fastlrp.report.maps import Maps
from fastlrp.report.page import MAX_BYTES, write
from fastlrp.report.parts import Parts, collect_parts
from fastlrp.report.parts_page import write_parts
from fastlrp.report.sample import Sample

__all__ = [
    "MAX_BYTES", "Maps", "Parts", "Sample", "collect", "collect_parts", "compare", "ledger_rows", "write",
    "write_parts",
]  # fmt: skip
