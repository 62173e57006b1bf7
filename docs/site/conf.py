"""Sphinx settings of the documentation site, which ``make docs`` builds; see ``docs/site/build.py``.

Why Sphinx with Furo, and not MkDocs Material: the docstrings of this package are reStructuredText with roles such as
``:func:``, which Sphinx reads as they are and checks against the code; mkdocstrings would show them as text. The pages
are Markdown (MyST) in either case, and Furo is light, dark and narrow without anything from elsewhere.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import fastlrp  # noqa: E402

project, author = "fastlrp", "The authors of fastlrp"
copyright = "the authors of fastlrp, BSD-3-Clause"
version = release = fastlrp.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "code_names"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
root_doc, language = "index", "en"
exclude_patterns = ["images/**"]

myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]
suppress_warnings = ["myst.header"]  # A page that begins with a table's own heading level is still a page.

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 88
add_module_names = False
nitpicky = True

highlight_language = "python"
pygments_style, pygments_dark_style = "friendly", "github-dark"
html_theme = "furo"
html_title = f"fastlrp {version}"
html_static_path = [str(Path(__file__).parent / "static")]
html_css_files = ["site.css"]
html_show_sourcelink, html_copy_source = False, False
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#a3223b", "color-brand-content": "#a3223b"},
    "dark_css_variables": {"color-brand-primary": "#ff8fa0", "color-brand-content": "#ff8fa0"},
}
copybutton_prompt_text = r"\$ |>>> "
copybutton_prompt_is_regexp = True
