"""Renders a report as one self-contained HTML file without network access.

The caption job, the evaluation and the training each fill such a page with sections.
"""

from __future__ import annotations

import base64
import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from captionlib.report.cards import Card
from captionlib.report.charts import Chart

if TYPE_CHECKING:
    import jinja2

# Control characters, halves of surrogate pairs, line separators, marks that turn the direction of writing.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069]")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page with a heading. Contents that are given are shown in the order of the fields."""

    title: str
    text: str = ""
    charts: Sequence[Chart] = ()
    table_head: Sequence[str] = ()
    table: Sequence[Sequence[Any]] = ()
    """Rows; numbers and percentages are right-aligned."""
    cards: Sequence[Card] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """The contents of a whole page."""

    title: str
    text: str = ""
    """A line below the title."""
    numbers: Sequence[tuple[str, str]] = ()
    """Most important figures: label and value."""
    alert: str = ""
    """A warning that is shown prominently."""
    sections: Sequence[Section] = ()
    settings: Mapping[str, Any] | None = None
    """Settings of the run; groups may be nested."""


def render_page(page: Page) -> bytes:
    """Render a page as HTML in UTF-8. All text is escaped."""
    html = _environment().get_template("page.html").render(page=page, settings=flatten(page.settings or {}))
    return html.encode()


def visible(value: Any) -> Any:
    r"""Escape characters that are invisible or that UTF-8 cannot represent.

    A line feed in a file name becomes `\n`, and a byte of a name that is not UTF-8 becomes `\udce9`.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), value)


def share(part: int, whole: int) -> str:
    """Format a percentage; small ones are not rounded to 0."""
    if part and part < 0.0001 * whole:
        return "<0.01%"
    return f"{part / max(1, whole):.2%}"


def duration(seconds: float) -> str:
    """Format a duration with its two largest units: `8.4 s`, `12 min 5 s`, `3 h 20 min`, `2 d 4 h`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    for unit, size, lesser, lesser_size in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        whole = round(seconds / lesser_size) * lesser_size
        if whole >= size:
            rest = whole % size // lesser_size
            return f"{whole // size} {unit}" + (f" {rest} {lesser}" if rest else "")
    raise AssertionError("a minute has sixty seconds")


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"base64": _base64, "number": _number, "exp": math.exp, "path": _path}
    environment.tests["figure"] = _is_figure
    return environment


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _is_figure(value: Any) -> bool:
    """Whether a cell of a table is right-aligned."""
    return isinstance(value, Real) or bool(re.fullmatch(r"[<−-]?[\d.,]+%?", str(value)))


def _path(path: str) -> Markup:
    """Allow line breaks after the slashes of a long path."""
    return Markup("/<wbr>").join(visible(part) for part in path.split("/"))


def _number(value: Any, pattern: str = "") -> str:
    """Format a number with thousands separators and a minus sign; anything else as text."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    text = format(value, pattern) if pattern else f"{value:,}" if isinstance(value, Integral) else f"{value:,.4g}"
    return text.replace("-", "−")
