"""A page as one file: its template, style and scripts, which ask nothing of the network."""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

HERE = Path(__file__).parent
MEGABYTE = 2**20


def render(template: str, context: dict[str, Any], folder: Path = HERE) -> str:
    """A template of a folder, or one that all pages share, with the style, Plotly and the script that all have."""
    style, script, plotly = (
        *((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")),
        get_plotlyjs(),
    )
    loader = FileSystemLoader([folder, HERE])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(
        context,
        style=Markup(style),
        scripts=[Markup(plotly), Markup(script)],
        hashes=[script_hash(text) for text in (plotly, script)],
    )


def script_hash(text: str) -> str:
    """By which a Content-Security-Policy allows this script and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
