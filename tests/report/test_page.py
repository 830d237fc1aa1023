"""The report in a real browser: offline, silent, whole, readable on any screen, by keyboard and on paper."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_up import CHOSEN, write_whole_folder

from adept_ray.report.search_page import write_report

DESKTOP, PHONE = {"width": 1180, "height": 800}, {"width": 360, "height": 740}
A4 = {"width": 688, "height": 1017}  # 210 x 297 mm less the margins, in CSS pixels
FIGURES = (
    "Score of every trial against k",
    "Score, general and domain change against the dial",
    "General against domain change of every trial",
    "Score of every trial as it trained",
    "Training loss",
    "Importance of 6 layers",
    "Layer 3, copy of 2",
    "Layer 6, copy of 4",
    "Score of every method",
    "General against domain change",
)
DRAWN = "figure svg:visible:not(.legend svg)"
PIECES = "p, pre, dl, .card, figure svg, h1, h2, details, .scroll"
LEAST_PIXELS = 9  # of text in a figure on a phone


class Watched:
    """The report, opened once, and all that it said and asked for since."""

    def __init__(self, browser: Any, file: Path) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.address = file.as_uri()
        self.page = browser.new_page(viewport=DESKTOP)
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(self.address)

    def at(self, size: dict[str, int], media: str = "screen") -> Any:
        """The page on a screen of that size, or on paper, with nothing focused."""
        self.page.set_viewport_size(size)
        self.page.emulate_media(media=media)
        self.page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
        return self.page


@pytest.fixture(scope="module")
def report(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = write_whole_folder(tmp_path_factory.mktemp("page") / "tiny-medical")
    watched = Watched(browser, write_report(folder))
    yield watched
    watched.page.close()


def test_the_first_screen_answers(report: Watched) -> None:
    """Which k, why, what it gained and what it cost: all above the fold."""
    page = report.at(DESKTOP)
    shown = page.locator("h1, .lead, .why, .card")
    assert max(box["y"] + box["height"] for box in map(boxed, shown.all())) <= DESKTOP["height"]
    words = page.locator("header").inner_text()
    for answer in ("k = 2", "Copies of layers 2, 4", "is the smallest within", "+9.00 %", "−0.11 %", "6 → 8",
                   "+15.49 k", "+32.4 %", "6 min 37 s"):  # fmt: skip
        assert answer in words


def boxed(each: Any) -> dict[str, float]:
    box = each.bounding_box()
    assert box is not None, "it isn't shown"
    return box


def test_every_figure_is_drawn(report: Watched) -> None:
    """Every figure takes its room on the page, has an axis, and its caption a number of its own."""
    page = report.at(DESKTOP)
    names = [each.get_attribute("aria-label") for each in page.locator(DRAWN).all()]
    for start in FIGURES:
        assert any(name.startswith(start) for name in names), start
    for svg in page.locator(DRAWN).all():
        box = boxed(svg)
        assert box["width"] > 150 and box["height"] > 100
        assert svg.locator("text").count() > 4
    captions = page.locator("figcaption:visible").count()
    assert captions == len(names) - (len(CHOSEN) - 1)  # the panels of the rates share one


def test_every_trial_can_be_reached_by_keyboard(report: Watched) -> None:
    """Tab comes by every trial in every figure and shows its numbers beside it, within the screen."""
    page = report.at(DESKTOP)
    wanted = set(page.eval_on_selector_all(".point[tabindex]", "points => points.map(point => point.id)"))
    seen = set()
    for _ in range(len(wanted) + 40):
        page.keyboard.press("Tab")
        focused = page.evaluate("document.activeElement.id")
        if focused in wanted:
            seen.add(focused)
            tip = boxed(page.locator("#tip"))
            assert page.locator("#tip").inner_text().startswith(("trial-00", "untouched"))
            assert tip["x"] >= 0 and tip["x"] + tip["width"] <= DESKTOP["width"] and tip["y"] >= 0
    assert len(wanted) > 15 and seen == wanted
    page.keyboard.press("Escape")
    assert page.locator("#tip").is_hidden()


def test_a_trial_that_is_pointed_at_shows_everywhere(report: Watched) -> None:
    """Its words appear, its marks in other figures and its row light up; they go with the pointer."""
    page = report.at(DESKTOP)
    page.locator("#score-trial2").hover()
    assert "trial-002, k = 2, chosen\nscore +4.70 ± 0.21" in page.locator("#tip").inner_text()
    assert {"score-trial2", "trade-trial2", "curve-loss-trial2"} <= set(
        page.eval_on_selector_all(".point.lit", "points => points.map(point => point.id)")
    )
    assert "trial-002" in page.locator("tr.lit").inner_text()
    page.locator("h1").hover()
    assert page.locator("#tip").is_hidden() and page.locator(".lit").count() == 0


# Text on the background of the nearest element that paints one, by the formula of WCAG 2.
FAINT = """() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => {
    const [r, g, b] = numbers(color).slice(0, 3).map((each) => {
      const part = each / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = getComputedStyle(each).backgroundColor;
      const [, , , alpha = 1] = numbers(color);
      if (alpha === 1) return color;
      if (alpha > 0) throw new Error("half-transparent background: " + each.outerHTML.slice(0, 99));
    }
    throw new Error("no background");
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let count = 0;
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), element = walker.currentNode.parentElement;
    if (!text || ["SCRIPT", "title"].includes(element.tagName) || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const inks = element.closest("svg") ? style.fill : style.color;
    const [a, b] = [luminance(inks), luminance(behind(element))].sort((x, y) => y - x);
    const contrast = (a + 0.05) / (b + 0.05);
    count += 1;
    if (!(contrast >= 4.5)) found.push([text.slice(0, 40), inks, contrast]);
  }
  return [count, found];
}"""


def test_all_text_stands_out(report: Watched) -> None:
    """All visible text, in figures, tables and tips, has a contrast of 4.5 : 1 or more (WCAG AA)."""
    page = report.at(DESKTOP)
    page.eval_on_selector_all("details", "all => all.forEach(each => each.open = true)")
    page.locator("#score-trial2").focus()
    count, faint = page.evaluate(FAINT)
    assert count > 300 and faint == []


def test_it_fits_a_phone(report: Watched) -> None:
    """At 360 pixels nothing sticks out but tables that scroll, and the figures' text can be read."""
    page = report.at(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    for each in page.locator(PIECES).locator("visible=true").all():
        box = boxed(each)
        assert box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"]
    sizes = page.eval_on_selector_all(
        "figure svg text",
        "all => all.filter(t => t.checkVisibility())"
        ".map(t => parseFloat(getComputedStyle(t).fontSize) * t.ownerSVGElement.getScreenCTM().a)",
    )
    assert len(sizes) > 100 and min(sizes) >= LEAST_PIXELS


def test_it_prints_without_cutting_a_figure(report: Watched) -> None:
    """On A4 nothing is cut at the edge, and all words of a figure are on the page of its caption."""
    from pypdf import PdfReader

    page = report.at(A4, "print")
    assert page.evaluate("document.documentElement.scrollWidth") <= A4["width"]
    drawn = page.eval_on_selector_all(
        "figure",
        "all => all.map(f => [f.querySelector('figcaption').innerText, [...f.querySelectorAll('svg text')]"
        ".filter(t => t.checkVisibility()).map(t => t.textContent)])",
    )
    file = io.BytesIO(page.pdf(prefer_css_page_size=True))
    printed = [squeezed(sheet.extract_text()) for sheet in PdfReader(file).pages]
    assert 2 <= len(printed) <= 8 and len(drawn) > 6
    for caption, texts in drawn:
        at = [sheet for sheet in printed if squeezed(caption) in sheet]
        assert len(at) == 1, caption
        assert [text for text in texts if squeezed(text) not in at[0]] == []


def squeezed(text: str) -> str:
    """Text without white space and ligatures, which are set differently on paper."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text))


def test_it_said_and_asked_for_nothing(report: Watched) -> None:
    """After all of that: nothing on the console, no error, and no request but for the page itself."""
    page = report.at(DESKTOP)
    for each in page.locator(".point:visible").all():
        each.dispatch_event("pointerenter")
    assert report.said == []
    assert report.asked == [report.address]
