"""The rendered smoke book, as a reader without a network meets it.

`make test` builds it and names it in GEOREPS_SMOKE_BOOK. The browser is Debian's chromium (or GEOREPS_CHROMIUM).
"""

import functools
import http.server
import os
import re
import shutil
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

CHROMIUM = os.environ.get("GEOREPS_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = Path(__file__).parent / "vendor" / "axe-4.14.1.min.js"  # from its npm package, for this test alone
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def html(smoke_book) -> Path:
    assert (smoke_book / "index.html").is_file(), f"{smoke_book} holds no book"
    return smoke_book


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.needed, self.internal, self.ids = [], [], set()

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids.add(values.get("id"))
        address = values.get("src") or values.get("href") or ""
        if tag in ("script", "img", "iframe") or tag == "link" and values.get("rel") == "stylesheet":
            self.needed.append(address)
        if address and not urlsplit(address).scheme and address != "#":
            self.internal.append(address)


def pages(html: Path) -> list[Path]:
    return sorted(p for p in html.rglob("*.html") if "_static" not in p.parts)


@functools.cache
def parsed(path: Path) -> Links:
    links = Links()
    links.feed(path.read_text())
    return links


def test_no_page_needs_a_script_style_or_image_from_elsewhere(html):
    for path in pages(html):
        assert not [a for a in parsed(path).needed if a.startswith(("http:", "https:", "//"))], path


def test_every_internal_link_has_its_file_and_anchor(html):
    for path in pages(html):
        for address in parsed(path).internal:
            parts = urlsplit(address)
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.exists(), f"{path}: {address}"
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in parsed(target).ids, f"{path}: {address}"


def test_the_chapters_are_pages_with_figures_and_collapsed_parameters(html):
    names = "01_worlds 02_search 03_crossview 04_pretraining 05_distribution 06_metrix 07_pooling 08_composed 09_domains 10_prompts"
    for name in (names + " 11_geolocation 12_density 13_speed 14_claims").split():
        text = (html / "chapters" / f"{name}.html").read_text()
        assert "tag_parameters" in text and "tag_hide-input" in text
        assert "papermill-error-cell" not in text and "Traceback" not in text
    assert (html / "chapters" / "03_crossview.html").read_text().count('src="../_images/') >= 4


EXHIBIT = re.compile(r'<figure class="exhibit.*?</figure>', re.DOTALL)


def test_every_picture_of_a_chapter_is_an_exhibit_with_caption_alternative_text_and_data(html):
    for path in sorted((html / "chapters").glob("*.html")):
        text = path.read_text()
        shown = [e for e in EXHIBIT.findall(text) if "<img " in e]
        assert len(shown) == text.count('src="../_images/'), f"{path}: a picture without a caption"
        for exhibit in shown:
            caption = re.search(r"<strong>(Figure|Table) \d+\.\d+\.</strong> \S+", exhibit)
            alt = re.search(r'<img alt="([^"]*)"', exhibit)
            assert caption and alt and len(alt[1]) > 40, f"{path}: {exhibit[:200]}"
            assert ".csv" in exhibit and ".json" in exhibit and ".py" in exhibit, f"{path}: {caption[0]}"


def test_of_several_exhibits_of_a_cell_all_are_shown(html):
    for path in sorted((html / "chapters").glob("*.html")):
        captions = "".join(EXHIBIT.findall(path.read_text()))
        for last in re.findall(r"\(1 of (\d+)\)", captions):
            assert f"({last} of {last})" in captions, path
        for kind in ("Figure", "Table"):
            numbers = [int(n) for n in re.findall(rf"<strong>{kind} \d+\.(\d+)\.</strong>", captions)]
            assert numbers == list(range(1, len(numbers) + 1)), f"{path}: {kind} {numbers}"


def test_roles_leave_no_trace_and_every_verdict_leads_to_its_claim_and_back(html):
    ledger = parsed(html / "chapters" / "14_claims.html").ids
    for path in sorted((html / "chapters").glob("*.html")):
        text = path.read_text()
        assert not re.search(r"\{(verdict|measured|paper|said)\}", text), path
        for claim in re.findall(r'<a class="verdict[^>]*href="14_claims.html#claim-([^"]+)"', text):
            assert f"claim-{claim}" in ledger and f"{path.name}#said-{claim}" in (html / "chapters" / "14_claims.html").read_text()


def test_pages_fold_their_plumbing_under_a_line_that_says_what_it_does(html):
    text = (html / "chapters" / "02_search.html").read_text()
    for said in ("Imports", "Parameters", "Six ways to search, and how they are timed"):
        assert f">{said}<" in text.replace("<span>", "").replace("</span>", ""), said
    assert "# fold:" not in text and "# caption:" not in text


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def address(html):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=str(html)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


BROKEN_IMAGES = "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"


SEVERE = """async (rules) => (await axe.run(document, {resultTypes: ["violations"], ...(rules ? {runOnly: rules} : {})})).violations
  .filter(v => ["serious", "critical"].includes(v.impact)).flatMap(v => v.nodes.map(n => v.id + ": " + n.html.slice(0, 200)))"""


@pytest.mark.long
@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
def test_a_browser_without_network_shows_every_page_to_everybody(html, address, half):
    """No console error, no failed or outgoing request, no broken image, mathematics typeset; by axe-core no serious violation of accessibility in
    the colours of day, nor in those of night by what depends on them. Every second page.
    """
    sync_api = pytest.importorskip("playwright.sync_api")
    problems = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(color_scheme="light", reduced_motion="reduce")  # a colour on its way to another has no contrast to judge

        def guard(route):
            if route.request.url.startswith(address):
                return route.continue_()
            problems.append(f"{page.url} asks for {route.request.url}")
            return route.abort()

        page.route("**/*", guard)
        page.on("console", lambda m: m.type == "error" and problems.append(f"{page.url} console: {m.text}"))
        page.on("pageerror", lambda e: problems.append(f"{page.url} raised: {e}"))
        page.on("response", lambda r: r.status >= 400 and problems.append(f"{page.url} misses {r.url}"))
        for path in pages(html)[half::2]:
            page.goto(address + path.relative_to(html).as_posix(), wait_until="networkidle")
            problems += [f"{path}: broken image {src}" for src in page.evaluate(BROKEN_IMAGES)]
            if "math notranslate" in path.read_text() and not page.locator("mjx-container").count():
                problems.append(f"{path}: mathematics is not typeset")
            page.add_script_tag(path=AXE)
            problems += [f"{path.name}: {said}" for said in page.evaluate(SEVERE, None)]
            page.emulate_media(color_scheme="dark")
            page.wait_for_function("document.documentElement.dataset.theme === 'dark'")
            problems += [f"{path.name}, dark: {said}" for said in page.evaluate(SEVERE, ["color-contrast"])]
            page.emulate_media(color_scheme="light")
        browser.close()
    assert not problems, "\n".join(problems[:40])


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
def test_a_narrow_window_scrolls_exhibits_and_not_the_page(html, address):
    """At 360 px pictures keep at least 36 rem, in which their words can be read."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 360, "height": 800})
        page.goto(address + "chapters/02_search.html", wait_until="networkidle")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        widths = page.evaluate("[...document.querySelectorAll('figure.exhibit > img')].map(i => i.getBoundingClientRect().width)")
        assert len(widths) >= 5 and min(widths) >= 570
        browser.close()
