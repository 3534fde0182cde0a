"""A matplotlib figure as SVG that is part of a page: its colours are the page's, its text is text, its bytes are reproducible."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib.style
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# What a figure is drawn in. In the page each becomes a CSS variable, so that dark mode reaches the pictures.
COLOURS = {
    "ink": "#1c1b1a",
    "muted": "#5f5c57",
    "rule": "#d9d6cf",
    "paper": "#fffffe",
    "kept": "#0072b2",
    "removed": "#d55e00",
}

POINTS_PER_INCH = 72
"""An SVG of matplotlib counts in points, so at this resolution a point is a pixel of the page."""

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "secateur",
    "text.parse_math": False,
    "font.size": 12,
    "figure.dpi": POINTS_PER_INCH,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "lines.linewidth": 1.6,
}


@contextmanager
def page_style() -> Iterator[None]:
    """Draw in the page's style, whatever the user's settings of matplotlib are; they are put back afterwards."""
    with matplotlib.style.context(["default", _STYLE]):
        yield


def figure(width: float, height: float) -> Figure:
    """An empty figure, its size in pixels of the page."""
    return Figure(figsize=(width / POINTS_PER_INCH, height / POINTS_PER_INCH), layout="constrained")


def inline(drawing: Figure, name: str, title: str) -> Markup:
    """The figure as an SVG element.

    Args:
        drawing: The figure, drawn within `page_style`.
        name: A word that no other figure of the page has; ids start with it.
        title: What the picture shows, for who does not see it.
    """
    FigureCanvasSVG(drawing)
    text = io.StringIO()
    drawing.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue()[text.getvalue().index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for colour, code in COLOURS.items():
        svg = svg.replace(code, f"var(--{colour})")
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None, "matplotlib gives every SVG a viewBox"
    opening = Markup('<svg {} role="img" aria-label="{}">').format(Markup(view.group()), title)
    body = svg[svg.index(">") + 1 :].strip()
    return opening + Markup(re.sub(r"\s*\n\s*", "\n", body))
