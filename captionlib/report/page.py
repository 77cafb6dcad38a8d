"""A report as one HTML file that needs nothing else: no network, no second file.

The caption job, the evaluation and the training each put their sections on such a page.
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

import fsspec
from markupsafe import Markup

from captionlib.report.cards import Card
from captionlib.report.charts import Chart

if TYPE_CHECKING:
    import jinja2

# Control characters, halves of surrogate pairs, line separators, marks that turn the direction of writing.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069]")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of a page under a heading. Shows whichever of its contents are given, in this order."""

    title: str
    text: str = ""
    charts: Sequence[Chart] = ()
    table_head: Sequence[str] = ()
    table: Sequence[Sequence[Any]] = ()
    """Rows; numbers and percentages are aligned to the right."""
    cards: Sequence[Card] = ()


@dataclass(frozen=True, kw_only=True)
class Page:
    """Everything on a page, from its head to its foot."""

    title: str
    text: str = ""
    """A line below the title."""
    numbers: Sequence[tuple[str, str]] = ()
    """What is read first: label and value."""
    alert: str = ""
    """Something that must not be overlooked."""
    sections: Sequence[Section] = ()
    settings: Mapping[str, Any] | None = None
    """Settings under which it was made; groups may be nested once or more."""


def render_page(page: Page) -> str:
    """The page's HTML. All text is escaped, whatever the paths and captions hold."""
    return _environment().get_template("page.html").render(page=page, settings=flatten(page.settings or {}))


def write_page(path: str, page: Page) -> None:
    """Writes the page to a file or an fsspec URL, as UTF-8."""
    write_bytes(path, render_page(page).encode("utf-8"))


def write_bytes(path: str, data: bytes) -> None:
    """Writes a file, local or behind an fsspec URL."""
    with fsspec.open(path, "wb") as file:
        file.write(data)


def visible(value: Any) -> Any:
    """Text with everything that a reader would not see, or UTF-8 cannot hold, written as an escape.

    A line feed in a file name becomes `\\n`, and a byte of a name that is not UTF-8 `\\udce9`.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), value)


def share(part: int, whole: int) -> str:
    """A percentage that is not rounded to nothing."""
    if part and part < 0.0001 * whole:
        return "<0.01%"
    return f"{part / max(1, whole):.2%}"


def duration(seconds: float) -> str:
    """`8.4 s`, `12 min 5 s`, `3 h 20 min`, `2 d 4 h`: the two largest units."""
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
    """Nested groups of settings as one: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
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
    """Whether a table's cell is aligned to the right."""
    return isinstance(value, Real) or bool(re.fullmatch(r"[<−-]?[\d.,]+%?", str(value)))


def _path(path: str) -> Markup:
    """A long path breaks after its slashes."""
    return Markup("/<wbr>").join(visible(part) for part in path.split("/"))


def _number(value: Any, pattern: str = "") -> str:
    """A number with thousands separators and a true minus sign; anything else as text."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return str(value)
    text = format(value, pattern) if pattern else f"{value:,}" if isinstance(value, Integral) else f"{value:,.4g}"
    return text.replace("-", "−")
