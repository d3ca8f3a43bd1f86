"""What HTML pages share: texts of data, and figures as SVG."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar
from xml.etree import ElementTree

from plaudit.report.plots import BLUE, GREEN, GREY, GRID, INK, ORANGE, PURPLE, Drawn
from plaudit.types import Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from plaudit.evaluation.schema import TokenChange


# ---- texts of the data: no hidden characters, no endless lines

MOST_CHARACTERS = 4000
"""Of a text in the page: three quarters from its start, the rest its end."""

MOST_TURNS = 12
"""Of a conversation in the page: the first two, the rest its last."""

_LINE = 160
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


Whole = TypeVar("Whole", str, "tuple[Turn, ...]")


class Excerpt(NamedTuple, Generic[Whole]):
    """A text or turns cut in the middle: ``left_out`` of it are missing between both parts."""

    head: Whole
    left_out: int
    tail: Whole


class Turn(NamedTuple):
    """One turn of a conversation as it is shown; ``role`` is None for plain text."""

    role: str | None
    text: Excerpt[str]


def showable(text: str) -> str:
    """With signs in place of control characters, and nothing that UTF-8 cannot hold."""
    return _CONTROLS.sub(_sign, text.replace("\r\n", "\n"))


def _sign(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else "\N{REPLACEMENT CHARACTER}"


def brief(value: Any, most: int = _LINE) -> str:
    """One line for a table's cell; says how many characters it leaves out."""
    # Long before it is looked through character by character.
    text = str(value)
    line = " ".join(text[: 4 * most].split())
    if len(text) <= 4 * most and len(line) <= most:
        return line
    return f"{line[:most]}… ({len(text):,} characters)"


def excerpt(text: str, most: int = MOST_CHARACTERS) -> Excerpt[str]:
    """The start and the end of a text of more than ``most`` characters."""
    return _cut(text, most, most * 3 // 4)


def conversation(turns: Text) -> Excerpt[tuple[Turn, ...]]:
    """A prompt or a response as ``mistakes.jsonl`` holds it."""
    if isinstance(turns, str):
        return _cut((Turn(None, excerpt(turns)),), MOST_TURNS, 2)
    shown = tuple(Turn(str(turn["role"]), excerpt(_content(turn))) for turn in turns)
    return _cut(shown, MOST_TURNS, 2)


def _cut(whole: Whole, most: int, head: int) -> Excerpt[Whole]:
    left_out = max(0, len(whole) - most)
    if not left_out:
        return Excerpt(whole, 0, whole[:0])
    return Excerpt(whole[:head], left_out, whole[head + left_out :])


def _content(turn: Mapping[str, Any]) -> str:
    """What a turn says; whatever is no text (parts, calls of tools) as JSON."""
    content = turn.get("content")
    rest = {key: value for key, value in turn.items() if key not in ("role", "content")}
    parts = [content if isinstance(content, str) else _json(content)] if content is not None else []
    return "\n".join([*parts, *([_json(rest)] if rest else [])])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, default=str)


def preview(turns: Text, most: int = _LINE) -> str:
    """The last turn of a prompt in one line."""
    return brief(turns if isinstance(turns, str) else _content(turns[-1]) if turns else "", most)


_SHADES = 4


def shade(change: float | None, largest: float) -> str:
    """The class of a token by its share of the largest change: ``u1``…``u4``, ``d1``…``d4``."""
    if change is None or not largest:
        return ""
    step = round(_SHADES * abs(change) / largest)
    return "" if not step else f"{'u' if change > 0 else 'd'}{step}"


def spark(tokens: Sequence[TokenChange], low: float, high: float) -> str:
    """Points of a line in a box of 100 by 20: rewards from ``low`` at the bottom to ``high``."""
    width, height = max(len(tokens) - 1, 1), high - low or 1.0
    return " ".join(
        f"{100 * place / width:.1f},{19 - 18 * (token.reward - low) / height:.1f}"
        for place, token in enumerate(tokens)
    )


# ---- figures as SVG, in the colours and the font of the page: readable in light and dark

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
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_REFERENCE = re.compile(r"url\(#([^)]+)\)|^#(.+)$")


class Picture(NamedTuple):
    """A figure as a page shows it."""

    name: str
    svg: str
    title: str
    caption: str


def inline_pictures(drawn: Iterable[Drawn], prefix: str) -> list[Picture]:
    """Figures for a page; ``prefix`` keeps those of two evaluations apart."""
    return [
        Picture(
            name=one.name,
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
    root = ElementTree.fromstring(_draw(figure, name))
    for parent in root.iter():
        for child in list(parent):
            # matplotlib's metadata names its version, and its style would hold for the whole page.
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    _drop_ids(root)
    for element in root.iter():
        for key, value in element.attrib.items():
            # Coordinates to a hundredth of a pixel keep the page small.
            short = _LONG_NUMBER.sub(lambda found: f"{float(found[0]):.2f}", value)
            element.set(key, _COLOUR.sub(_variable, _FONT.sub("", short)))
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


def inline_formula(latex: str) -> str:
    """A formula as an ``<svg>`` element in the colour of the text; readers hear its LaTeX."""
    from matplotlib.path import Path
    from matplotlib.textpath import TextPath

    path = TextPath((0, 0), f"${latex}$", size=_FORMULA_PIXELS)
    box = path.get_extents()
    letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C"}
    steps = []
    for numbers, code in path.iter_segments(simplify=False, curves=True):
        if code == Path.CLOSEPOLY:
            steps.append("Z")
            continue
        points = numbers.reshape(-1, 2)
        steps.append(letters[code] + " ".join(f"{x:.2f},{-y:.2f}" for x, y in points))
    root = ElementTree.Element(
        "svg",
        {
            "class": "formula",
            "role": "img",
            "aria-label": latex,
            "viewBox": f"{box.x0:.2f} {-box.y1:.2f} {box.width:.2f} {box.height:.2f}",
            "width": f"{box.width:.1f}",
            "height": f"{box.height:.1f}",
        },
    )
    ElementTree.SubElement(root, "path", {"d": "".join(steps), "fill": "currentColor"})
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=False)


_FORMULA_PIXELS = 18


def _draw(figure: Figure, name: str) -> bytes:
    import matplotlib

    figure.suptitle("")
    figure.patch.set_alpha(0)
    for axis in figure.axes:
        axis.patch.set_alpha(0)
    buffer = io.BytesIO()
    # The salt makes ids that no other picture of the page has.
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"plaudit-{name}"}),
        warnings.catch_warnings(),
    ):
        # The browser has the letters that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _drop_ids(root: ElementTree.Element) -> None:
    """Ids that nothing refers to go: they are the same in every picture."""
    referred = {
        found[1] or found[2]
        for element in root.iter()
        for value in element.attrib.values()
        for found in _REFERENCE.finditer(value)
    }
    for element in root.iter():
        if element.get("id") not in referred:
            element.attrib.pop("id", None)
        if (target := element.attrib.pop(_HREF, None)) is not None:
            element.set("href", target)


def _variable(found: re.Match[str]) -> str:
    variable = _VARIABLES.get(found[0].upper())
    return found[0] if variable is None else f"var(--{variable})"
