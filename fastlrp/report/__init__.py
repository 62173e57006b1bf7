"""One HTML file in which people explore relevance: many targets, layers and samples, without a server or a network.

:func:`collect` runs an explainer and gives :class:`Sample` objects; :func:`write` makes the file. Needs Jinja2:
``pip install "fastlrp[report]"``.
"""

from fastlrp.report.collecting import collect
from fastlrp.report.ledger import ledger_rows
from fastlrp.report.maps import Maps
from fastlrp.report.page import MAX_BYTES, write
from fastlrp.report.sample import Sample

__all__ = ["MAX_BYTES", "Maps", "Sample", "collect", "ledger_rows", "write"]
