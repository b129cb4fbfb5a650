"""Pages in a browser, from a phone's width to a wide screen's: nothing sticks out, and no text is squeezed."""

import html
import json
import re
import shutil
import subprocess

import pytest

from embedpipe import DedupConfig, FilterConfig, dedup, filter, info
from embedpipe.images.pages import contact_page
from embedpipe.images.sheet import SheetCell

WIDTHS = (400, 800, 1200, 1600)
LEAST_PX = 40  # of a text's room
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OFFLINE = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
           "--disable-sync")  # fmt: skip
_MEASURE = """
<pre id="found"></pre>
<script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map((frame) => {
    const inside = frame.contentDocument;
    const texts = [...inside.querySelectorAll("p, td, th, figcaption, .grid div")];
    const across = texts.filter((it) => it.textContent.trim()).map((it) => it.offsetWidth);
    return [frame.name, inside.documentElement.scrollWidth, Math.min(...across)];
  });
  document.getElementById("found").textContent = JSON.stringify(found);
});
</script>
"""


@pytest.fixture
def pages(encoded_once, tmp_path):
    """By name, as a reader finds them."""
    data = encoded_once[1]
    filter(data, str(tmp_path / "filter"), FilterConfig(min_similarity=0.0, where=("caption_length > 3",)))
    dedup(data, str(tmp_path / "dedup"), DedupConfig(threshold=0.5))
    info(data, html=str(tmp_path / "info.html"))
    (tmp_path / "search.html").write_bytes(contact_page([SheetCell(None, "0.3 " + "x" * 300)] * 9, "y" * 300))
    files = ("filter/examples.html", "dedup/pairs.html", "info.html", "search.html")
    return {name: (tmp_path / name).read_text() for name in files}


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_pages_hold_at_every_width(pages, tmp_path):
    frames = [
        f'<iframe name="{name} at {width}" width="{width}" height="900" style="border: 0" '
        f'srcdoc="{html.escape(re.sub("<meta http-equiv[^>]*>", "", page))}"></iframe>'
        for name, page in pages.items()
        for width in WIDTHS
    ]
    (tmp_path / "all.html").write_text("<!doctype html><meta charset=utf-8>" + "\n".join(frames) + _MEASURE)
    words = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        *OFFLINE,
    ]
    words += ["--virtual-time-budget=20000", "--dump-dom", f"file://{tmp_path / 'all.html'}"]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', shown, re.DOTALL)[1]))
    assert len(found) == len(frames)
    for name, across, narrowest in found:
        assert across <= int(name.split()[-1]), name
        assert narrowest >= LEAST_PX, name
