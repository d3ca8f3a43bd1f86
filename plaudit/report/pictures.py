"""Figures as SVG inside the page, in its colours and font: readable in light and dark."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple
from xml.etree import ElementTree

from plaudit.report.plots import BLUE, GREEN, GREY, GRID, INK, ORANGE, PURPLE, Drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_VARIABLES = {
    BLUE: "blue",
    ORANGE: "orange",
    GREEN: "green",
    PURPLE: "purple",
    GREY: "soft",
    GRID: "line",
    INK: "ink",
    "#000000": "ink",
    "#FFFFFF": "page",
}
"""Colours that plots use, and the page's variable of each."""

_COLOUR = re.compile(r"#[0-9a-f]{6}\b", re.IGNORECASE)
_FONT = re.compile(r"font-family: [^;]*;? ?")
_REFERENCE = re.compile(r"url\(#([^)]+)\)|^#(.+)$")


class Picture(NamedTuple):
    """A figure as a page shows it."""

    svg: str
    title: str
    caption: str


def inline_pictures(drawn: Iterable[Drawn], prefix: str) -> list[Picture]:
    """Figures for a page; ``prefix`` keeps those of two evaluations apart."""
    return [
        Picture(
            title=one.figure.get_suptitle(),
            svg=inline_svg(one.figure, f"{prefix}-{one.name}", one.caption),
            caption=one.caption,
        )
        for one in drawn
    ]


def inline_svg(figure: Figure, name: str, title: str) -> str:
    """An ``<svg>`` element for an HTML page; ``name`` keeps its ids apart from other pictures'.

    Colours become the page's CSS variables and texts stay texts. ``title`` is what a screen reader
    says. The figure keeps its size but for its heading, which the page shows as text.
    """
    root = ElementTree.fromstring(_draw(figure))
    for element in list(root):
        # matplotlib's metadata names its version, and its style would hold for the whole page.
        if element.tag == f"{_SVG}metadata":
            root.remove(element)
    for parent in root.iter():
        for child in list(parent):
            if child.tag == f"{_SVG}style":
                parent.remove(child)
    _own_ids(root, name)
    for element in root.iter():
        for key, value in element.attrib.items():
            element.set(key, _COLOUR.sub(_variable, _FONT.sub("", value)))
        element.tag = element.tag.removeprefix(_SVG)
    width, height = (
        float(root.attrib.pop(side).removesuffix("pt")) for side in ("width", "height")
    )
    root.attrib.pop("version", None)
    root.set("viewBox", f"0 0 {width:g} {height:g}")
    root.set("class", "plot")
    root.set("role", "img")
    root.set("aria-label", title)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


def _draw(figure: Figure) -> bytes:
    import matplotlib

    figure.suptitle("")
    figure.patch.set_alpha(0)
    for axis in figure.axes:
        axis.patch.set_alpha(0)
    buffer = io.BytesIO()
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "plaudit"}),
        warnings.catch_warnings(),
    ):
        # The browser has the letters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _own_ids(root: ElementTree.Element, name: str) -> None:
    """Ids that something refers to get the picture's name in front; the others go."""
    referred = {
        found[1] or found[2]
        for element in root.iter()
        for value in element.attrib.values()
        for found in _REFERENCE.finditer(value)
    }
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in referred:
            element.set("id", f"{name}-{own}")
        target = element.attrib.pop(_HREF, None)
        if target is not None:
            element.set("href", f"#{name}-{target.removeprefix('#')}")
        for key, value in element.attrib.items():
            element.set(key, value.replace("url(#", f"url(#{name}-"))


def _variable(found: re.Match[str]) -> str:
    variable = _VARIABLES.get(found[0].upper())
    return found[0] if variable is None else f"var(--{variable})"
