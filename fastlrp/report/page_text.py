"""What both pages of a report are written with: numbers, data and templates as text, and their content policy."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any


def short(value: float) -> float:
    """Seven digits: what float32 holds."""
    return float(f"{float(value):.7g}")


def safe_json(data: Any) -> str:
    """JSON that can stand in a script element: ASCII, without ``<``, ``>`` and ``&``."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def policy(style: str, script: str) -> str:
    """A content security policy: this style, this script, images inside the page, and nothing from anywhere else."""

    def source(text: str) -> str:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return f"'sha256-{digest}'"

    return (
        f"default-src 'none'; img-src data:; style-src {source(style)}; script-src {source(script)}; "
        f"base-uri 'none'; form-action 'none'"
    )


def template(text: str) -> Any:
    """A template of Jinja2, in which a name that is not given is an error."""
    try:
        import jinja2
    except ImportError as error:
        raise ImportError(
            f'reports need Jinja2, which could not be imported ({error}): pip install "fastlrp[report]"'
        ) from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(text)
