from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captionlib import report
from captionlib.report import Card, Page, RunSummary
from captionlib.report.page import flatten, share, visible

PHOTO = Image.fromarray(np.arange(600 * 400 * 3, dtype=np.uint32).reshape(400, 600, 3).astype(np.uint8))
SUMMARY = RunSummary(num_planned=1004, num_captioned=1000, num_failed=4, seconds=50.0, fingerprint="lstm-3f9c2a71")
VOID_TAGS = ("meta", "img", "input", "wbr")


class Reader(HTMLParser):
    """What a browser would see: texts by the class of their element, and all that could load something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.alternatives: list[str | None] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(html)
        self.close()

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.tags.append(tag)
        self.links += [given[name] or "" for name in ("src", "href", "srcset", "data", "action") if name in given]
        if tag == "img":
            self.alternatives.append(given["alt"])
        if tag not in VOID_TAGS:
            self._open.append(given.get("class") or tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID_TAGS:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.setdefault(self._open[-1], []).append(data.strip())


def read(page: Page) -> Reader:
    return Reader(report.render_page(page).decode())


def read_gallery(*cards: Card, summary: RunSummary = SUMMARY, **options: Any) -> Reader:
    return read(report.gallery_page(summary, cards, **options))


def test_a_card_tells_everything_about_its_image() -> None:
    thumbnail = report.thumbnail_jpeg(PHOTO)
    gallery = read_gallery(
        Card(
            path="s3://photos/a.jpg",
            thumbnail_jpeg=thumbnail,
            caption="a dog runs",
            log_prob=-2.0,
            num_tokens=4,
            alternatives=[("a dog", -3.25)],
            notes=[("CIDEr-D", "1.20"), ("reference", "A dog."), ("reference", "The dog.")],
        )
    )
    assert gallery.texts["caption"] == ["a dog runs"]
    assert "".join(gallery.texts["path"]) == "s3://photos/a.jpg"
    assert gallery.texts["span"] == ["log p −2.00", "−0.50 per token"]
    assert gallery.texts["summary"] == ["1 more hypothesis"]
    assert gallery.texts["li"] == ["a dog"]
    assert gallery.texts["dd"][-3:] == ["1.20", "A dog.", "The dog."]
    assert gallery.texts["dt"].count("reference") == 1  # not repeated for each
    [source] = [link for link in gallery.links if link.startswith("data:")]
    assert base64.b64decode(source.removeprefix("data:image/jpeg;base64,")) == thumbnail


def test_the_page_loads_nothing() -> None:
    html = report.render_page(
        report.gallery_page(SUMMARY, [Card(path="a.jpg", thumbnail_jpeg=report.thumbnail_jpeg(PHOTO), caption="x")] * 9)
    ).decode()
    assert all(link.startswith(("data:", "#")) for link in Reader(html).links)
    assert "default-src 'none'" in html
    assert "@import" not in html
    assert "url(" not in html
    assert 'loading="lazy"' in html


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("\"'><img src=x onerror=y>&amp;", "\"'><img src=x onerror=y>&amp;"),
        ("{{ 7 * 7 }}{% raw %}", "{{ 7 * 7 }}{% raw %}"),
        ("two\nlines\ttab", "two\\nlines\\ttab"),
        ("кот 猫\u3000👨‍👩‍👧", "кот 猫\u3000👨‍👩‍👧"),
        ("caf\udce9", "caf\\udce9"),
        ("gpj.\u202egnp", "gpj.\\u202egnp"),
    ],
)
def test_any_text_is_shown_as_it_is_and_is_never_markup(text: str, shown: str, tmp_path: Path) -> None:
    plain = read_gallery(Card(path="p", caption="c"), Card(path="p", error="E: m"))
    card = Card(
        path=text,
        thumbnail_jpeg=report.thumbnail_jpeg(PHOTO),
        caption=text,
        log_prob=-1.0,
        notes=[(text, text)],
        alternatives=[(text, -2.0)],
    )
    summary = RunSummary(
        title=text,
        num_planned=2,
        num_captioned=1,
        num_failed=1,
        seconds=1,
        settings={text: text},
        fingerprint=text,
    )
    gallery = read_gallery(card, Card(path=text, error=f"E: {text}"), summary=summary, repeated_captions=[(text, 3)])
    assert visible(text) == shown
    assert gallery.texts["caption"] == gallery.texts["h1"] == gallery.texts["title"] == [shown]
    assert gallery.texts["error"] == [shown]
    assert "".join(gallery.texts["path"]) == shown * 2
    assert shown in gallery.texts["td"]
    assert gallery.alternatives == [shown]
    assert gallery.tags.count("script") == plain.tags.count("script") == 1
    html = report.render_page(report.gallery_page(summary, [card])).decode()
    assert shown in "".join(Reader(html).texts["caption"])


def test_counts_and_rate() -> None:
    gallery = read_gallery()
    assert gallery.texts["dt"] == ["planned", "captioned", "failed", "time", "images per second", "model"]
    assert gallery.texts["dd"] == ["1,004", "1,000", "4", "50.0 s", "20.1", "lstm-3f9c2a71"]
    resumed = RunSummary(num_planned=1004, num_captioned=1000, num_failed=4, seconds=50.0, num_this_run=100)
    assert read_gallery(summary=resumed).texts["dd"][-1] == "2.0"


def test_counts_that_do_not_add_up_are_said() -> None:
    assert "alert" not in read_gallery().texts
    short = RunSummary(num_planned=1004, num_captioned=900, num_failed=4, seconds=50.0)
    assert read_gallery(summary=short).texts["alert"] == [
        "900 captioned and 4 failed are 904, but 1,004 were planned: the run is not complete."
    ]


def test_sections_appear_when_there_is_something_in_them() -> None:
    assert "h2" not in read_gallery().texts
    gallery = read_gallery(
        Card(path="a.jpg", caption="x"),
        caption_lengths={9: 600, 11: 400},
        throughput=[(0.0, 0.0), (60.0, 20.0)],
        repeated_captions=[("a man", 7)],
        error_counts={"NotAnImage": 4},
    )
    assert gallery.texts["h2"] == ["Sample", "The run", "Most repeated captions", "Not captioned"]
    assert gallery.texts["quiet"][0] == "1 of 1,000 captioned images."
    assert gallery.texts["td"] == ["a man", "NotAnImage"]
    assert gallery.texts["figure"] == ["Images", "Share", "7", "0.70%", "Images", "Share", "4", "0.40%"]


def test_errors_come_last_grouped_by_kind_with_a_few_examples() -> None:
    failed = [Card(path=f"{number}.jpg", error="TruncatedImage: cut") for number in range(6)]
    gallery = read_gallery(Card(path="z.jpg", error="EmptyFile: 0 bytes"), *failed, Card(path="ok.jpg", caption="x"))
    assert [text for text in gallery.texts["td"] if text.isalpha()] == ["TruncatedImage", "EmptyFile"]
    assert gallery.texts["path"] == ["ok.jpg", "0.jpg", "1.jpg", "2.jpg", "3.jpg", "z.jpg"]
    assert gallery.texts["b"] == ["TruncatedImage"] * 4 + ["EmptyFile"]


def test_thumbnails_are_small_and_keep_the_shape() -> None:
    with Image.open(io.BytesIO(report.thumbnail_jpeg(PHOTO, side=256))) as small:
        assert (small.format, small.mode, small.size) == ("JPEG", "RGB", (256, 171))
    with Image.open(io.BytesIO(report.thumbnail_jpeg(PHOTO.resize((30, 20))))) as tiny:
        assert tiny.size == (30, 20)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (8.44, "8.4 s"),
        (59.96, "1 min"),
        (60, "1 min"),
        (725.4, "12 min 5 s"),
        (3599.7, "1 h"),
        (12_000, "3 h 20 min"),
        (86_399, "1 d"),
        (187_200, "2 d 4 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text


def test_share_and_flatten() -> None:
    assert [share(*counts) for counts in ((0, 0), (0, 5), (1, 8), (1, 10**6))] == [
        "0.00%",
        "0.00%",
        "12.50%",
        "<0.01%",
    ]
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": [3]}) == {"a.b": 1, "a.c.d": 2, "e": [3]}


def test_the_public_names() -> None:
    assert report.__all__ == [
        "Card",
        "Chart",
        "Page",
        "RunSummary",
        "Section",
        "attention_map",
        "bar_chart",
        "curves_png",
        "duration",
        "gallery_page",
        "line_chart",
        "named_bars",
        "render_page",
        "thumbnail_jpeg",
        "training_page",
    ]
