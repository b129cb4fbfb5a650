"""The page of `serve` in a real browser: search, scroll, look, cut, select and save, by mouse and by keyboard.

`make test-browser` installs what it needs, and leaves pictures of the page in build/pages.
"""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import embedpipe
from embedpipe.subset import read_subset
from tests import shards
from tests.embeddings import write_dataset
from tests.served import serving

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: make test-browser")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OFFLINE = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
PAGES = os.environ.get("EMBEDPIPE_PAGES")  # a folder for pictures of the page
HOSTILE = {
    0: "<script>window.hit = 1</script><img src=x onerror='window.hit = 2'>",
    1: "مرحبا بالعالم، هذه جملة طويلة",
    2: "👩‍👩‍👧 emoji 🏳️‍🌈 日本語",
    3: "x" * 100_000,
    4: "\u202ereversed",
}
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs Chromium: make test-browser")]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=BROWSER, args=OFFLINE)
        yield found
        found.close()


@pytest.fixture
def opened(browser):
    """Opens a page: opened(client, width, scheme). The page must not have complained when the test ends."""
    complaints = []

    def complained(message):
        if message.type == "error" and "status of 404" not in message.text:  # rows without a picture
            complaints.append(message.text)

    def open_page(client, width=1400, height=900, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.set_default_timeout(60_000)
        page.on("console", complained)
        page.on("pageerror", lambda problem: complaints.append(str(problem)))
        outside = f"http://127.0.0.1:{client.port}/"
        page.on(
            "request", lambda asked: asked.url.startswith((outside, "data:", "blob:")) or complaints.append(asked.url)
        )
        page.goto(outside)
        page.wait_for_selector(".card")
        return page

    open_page.complaints = complaints
    yield open_page
    assert complaints == []


@pytest.fixture(scope="module")
def client(encoded_once, tmp_path_factory):
    with serving(encoded_once[1], selections=str(tmp_path_factory.mktemp("selections"))) as found:
        yield found


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A data set of 700 rows without pictures, some captions of which try to be more than text."""
    image, text = np.random.default_rng(0).normal(size=(2, 700, 8))
    captions = [HOSTILE.get(row, f"caption {row}") for row in range(700)]
    columns = {"caption": captions, "class": [f"class {row % 3}" for row in range(700)]}
    path = write_dataset(tmp_path_factory.mktemp("many") / "emb", image, text, shards=2, columns=columns)
    with serving(path, no_model=True, selections=str(tmp_path_factory.mktemp("selections"))) as found:
        yield found


def until(page, expression, seconds=60):
    """Wait until it is true. Playwright's own waiting evaluates strings in the page, which its policy forbids."""
    for _ in range(20 * seconds):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"{expression} never became true; {page.inner_text('#status')!r}, {page.inner_text('#said')!r}")


def picture_of(page, name):
    if PAGES:
        Path(PAGES).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(PAGES) / f"{name}.png"))


def test_words_find_rows_which_are_looked_at_selected_and_saved(client, opened, encoded_once):
    page = opened(client)
    until(page, "[...document.images].filter((it) => it.complete && it.naturalWidth).length > 10")
    picture_of(page, "rows")
    page.keyboard.press("/")
    page.keyboard.type("a red bicycle")
    page.keyboard.press("Enter")
    page.wait_for_selector(".score", timeout=120_000)
    shown = page.eval_on_selector_all(".card p", "(all) => all.map((it) => it.textContent)")
    assert shown == [hit.caption for hit in embedpipe.search(encoded_once[1], "a red bicycle", k=21)]
    page.locator(".card").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    assert page.inner_text("#chosen") == "2 selected"
    page.keyboard.press("Enter")
    page.wait_for_selector(".near button")
    assert page.locator("#details .caption").inner_text() == shown[2]
    picture_of(page, "row")
    page.keyboard.press("Escape")
    assert page.locator("#inspector").is_hidden()
    page.keyboard.press("s")
    page.keyboard.type("bicycles")
    page.keyboard.press("Enter")
    until(page, "document.getElementById('said').textContent.startsWith('Saved 2 rows')")
    picture_of(page, "saved")
    path = Path(client.service.of("emb").selections.folder) / "bicycles"
    rows = read_subset(embedpipe.EmbeddingDataset(encoded_once[1]), str(path)).tolist()
    assert rows == sorted(hit.row for hit in embedpipe.search(encoded_once[1], "a red bicycle", k=3)[1:])
    page.select_option("#saved", "bicycles")
    until(page, "document.querySelectorAll('.card').length === 2")


def test_more_and_less_like_a_row_and_a_dropped_picture(client, opened):
    page = opened(client)
    page.locator(".card").nth(4).focus()
    page.keyboard.press("m")
    page.wait_for_selector(".score")
    assert float(page.locator(".score").first.inner_text()) > 0.999
    assert page.locator("#terms li").count() == 1
    page.locator(".card").nth(3).focus()
    page.keyboard.press("l")
    until(page, "document.querySelectorAll('#terms li').length === 2")
    page.get_by_role("button", name="Take away").first.click()
    page.get_by_role("button", name="Take away").first.click()
    until(page, "!document.querySelector('.score')")
    page.set_input_files("#file", [{"name": "a.jpg", "mimeType": "image/jpeg", "buffer": shards.jpeg(9)}])
    page.wait_for_selector(".score", timeout=120_000)
    assert float(page.locator(".score").first.inner_text()) > 0.999
    picture_of(page, "mix")


def test_sliders_and_categories_cut_and_say_what_they_keep(many, opened):
    page = opened(many)
    page.wait_for_selector(".facet")
    page.get_by_label("class 1").check()
    until(page, "document.getElementById('counts').textContent.startsWith('233 of 700')")
    slider = page.get_by_label("similarity: at least")
    slider.fill("500")
    until(page, "!document.getElementById('counts').textContent.startsWith('233 of 700')")
    kept = int(page.inner_text("#counts").split()[0])
    dataset = many.service.of("emb").dataset
    similarity = dataset.column("similarity").to_numpy()
    middle = (similarity.min() + similarity.max()) / 2
    assert kept == sum(similarity[row] >= middle for row in range(1, 700, 3))
    picture_of(page, "cut")
    page.fill("#name", "half")
    page.get_by_role("button", name="Save the whole cut").click()
    until(page, "document.getElementById('said').textContent.startsWith('Saved')")
    assert len(many.service.of("emb").selections.rows("half")) == kept
    page.get_by_role("button", name="Take the cut back").click()
    until(page, "document.getElementById('counts').textContent.startsWith('700 of 700')")
    page.fill("#where", "nonsense >")
    page.keyboard.press("Enter")
    page.wait_for_selector("#counts.bad")
    page.wait_for_selector("#status.bad")
    assert all("status of 400" in it for it in opened.complaints), "the browser's own, of the condition that is none"
    opened.complaints.clear()


def test_the_grid_grows_to_the_last_row_as_it_is_scrolled(many, opened):
    page = opened(many)
    for _ in range(60):
        page.evaluate("document.querySelector('main').scrollTo(0, 1e9)")
        page.wait_for_timeout(100)
        if page.locator("#end").inner_text() == "That is all.":
            break
    rows = page.eval_on_selector_all(".card", "(all) => all.length")
    assert rows == 700


def test_text_of_data_is_text(many, opened):
    page = opened(many)
    shown = page.eval_on_selector_all(".card p", "(all) => all.slice(0, 5).map((it) => it.textContent)")
    assert shown[:3] == [HOSTILE[row] for row in range(3)]
    assert shown[3] == "x" * 300 + "…"
    assert shown[4] == "\\u202ereversed"
    page.locator(".card").nth(3).click()
    page.wait_for_selector("#details .caption")
    assert len(page.locator("#details .caption").inner_text()) == 100_000
    picture_of(page, "text")
    page.locator(".card").nth(0).click()
    until(page, "document.querySelector('#details .caption')?.textContent.startsWith('<script>')")
    assert page.evaluate("window.hit") is None
    assert page.evaluate("getComputedStyle(document.querySelectorAll('.card p')[1]).direction") == "rtl"


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (800, "light"), (1200, "dark"), (2000, "light")])
def test_the_page_holds_at_every_width(client, opened, width, scheme):
    page = opened(client, width, 900, scheme)
    page.locator(".card").first.click()
    page.wait_for_selector(".near button")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    narrow = "[...document.querySelectorAll('.card, .facet, #details td')].filter((it) => it.offsetWidth < 40).length"
    assert page.evaluate(narrow) == 0
    picture_of(page, f"at-{width}")


def test_everything_that_takes_a_key_has_a_name(client, opened):
    page = opened(client)
    page.locator(".card").first.click()
    page.wait_for_selector(".near button")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, [role=option], [tabindex]")]
        .filter((it) => !(it.getAttribute("aria-label") || it.labels?.length || it.textContent.trim()))
        .map((it) => it.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    assert page.evaluate("document.documentElement.lang") == "en"
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((it) => it.id)")
    assert len(ids) == len(set(ids))
    low = page.evaluate(_LOW_CONTRAST)
    assert low == []


# WCAG's ratio of the luminances of text and ground, for text as it is drawn.
_LOW_CONTRAST = """() => {
  const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ground = (it) => {
    for (; it; it = it.parentElement) {
      const found = parts(getComputedStyle(it).backgroundColor);
      if (found.length === 3 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("body *")]
    .filter((it) => it.offsetWidth && [...it.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .map((it) => {
      const [a, b] = [light(parts(getComputedStyle(it).color)), light(ground(it))].sort((x, y) => y - x);
      return [it.textContent.trim().slice(0, 40), (a + 0.05) / (b + 0.05)];
    })
    .filter(([, ratio]) => ratio < 4.5);
}"""
