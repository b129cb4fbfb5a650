"""`info --html`: the summary of an output as one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping

from .. import files
from ..clip_model.encoder_card import BEFORE_ACTIVATION, card_from, in_words
from ..errors import OptionError
from ..fetch.outcome import ERROR_CLASSES
from ..folder_kind import DECODER, RUN, SELECTION, what_is
from ..images.html import document, html_histogram, html_table, picture, text
from ..load.images.source import Images
from ..plural import plural
from ..progress import Listener, silent
from ..types import REJECT_CLASSES
from ..verify import KINDS
from .contents import OutputInfo, Spread, describe, without_norms
from .folders import FolderInfo, describe_run, describe_selection
from .gallery import Gallery, GalleryItem, look_at

_STYLE = """
.spreads { display: flex; flex-wrap: wrap; gap: 0 48px; }
.spreads section { width: min(480px, 100%); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(192px, 45%), 1fr)); gap: 16px; }
.grid div { font-size: 12px; }
.grid img { max-width: 100%; display: block; margin-bottom: 4px; }
.quiet { color: #777; }
"""


def info(
    path: str,
    hosts: int = 10,
    html: str | None = None,
    samples: int = 12,
    images: Images = None,
    listen: Listener = silent,
) -> OutputInfo | FolderInfo:
    """What is in an output of `fetch`, `encode` or `merge`, or in embeddings that others wrote: see `describe`.

    A training run, a decoder and a selection of rows are described from their records.

    hosts: of image shards, worst hosts to name. html: also write a page with `samples` images of each kind, from the
    image shards at `images` or where they were.
    """
    what = what_is(path)
    if what.kind in (RUN, DECODER, SELECTION):
        if html is not None:
            raise OptionError(f"{path}: is {what.said}; `html` shows images of data sets", "Leave `html` out")
        return describe_selection(path, what) if what.kind == SELECTION else describe_run(path, what)
    found = describe(path, hosts, listen)
    if html is not None:
        kind = KINDS.get(found.format, found.format)
        page = info_page(found, look_at(path, samples, images), kind, {**ERROR_CLASSES, **REJECT_CLASSES})
        files.write_bytes(html, page)
    return found


def info_page(found: OutputInfo, gallery: Gallery, kind: str, meanings: Mapping[str, str]) -> bytes:
    """The page with embedded images. kind: the name of the output's type. meanings: of error classes."""
    parts = [html_table(("", ""), _facts(found, kind))]
    spreads = [("similarity of image and text", found.similarity, "all rows that have one")]
    spreads += [
        (f"norm of the {name} projection, before it was normalised", norm, "all rows that have one")
        for name, norm in found.norms.items()
    ]
    spreads += [("characters in a caption", found.captions, "a sample of rows")]
    drawn = "\n".join(_spread(name, values, of) for name, values, of in spreads if values is not None)
    parts.append(f'<div class="spreads">\n{drawn}\n</div>')
    if found.rejects:
        parts.append(_rejects(found, gallery, meanings))
    if found.hosts:
        rows = [
            (host.host, host.failed, ", ".join(f"{n} {c:,}" for n, c in host.classes.items())) for host in found.hosts
        ]
        parts.append("<h2>Hosts that failed most</h2>" + html_table(("host", "failed", "because"), rows))
    parts += [_grid(heading, samples) for heading, samples in gallery.samples.items() if samples]
    return document(found.path, "\n".join(parts), _STYLE)


def _facts(found: OutputInfo, kind: str) -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [
        ("what", kind),
        ("shards", f"{found.shards:,} of {found.planned:,}" + ", unfinished" * (found.shards < found.planned)),
        ("rows", f"{found.rows:,}"),
        ("rejected", f"{found.rejected:,}"),
        ("size", f"{found.bytes / 1e6:,.1f} MB"),
    ]
    if found.encoder is not None:
        facts.append(("model", f"{found.encoder['model']} {found.encoder['pretrained']}".strip()))
        facts.append(("embeddings", f"{found.encoder['dim']} × {found.encoder['dtype']}, {found.encoder['precision']}"))
        facts += in_words(card_from(found.encoder))
        facts.append(("fingerprint", found.fingerprint + f", {BEFORE_ACTIVATION}" * found.dated))
    if (ruled_out := without_norms(found)) is not None:
        facts.append(("norms", ruled_out))
    if found.cut is not None:
        facts.append(("captions cut", found.cut.shares()))
    if found.tokens is not None:
        facts.append(("text tokens", f"{found.tokens:,} × {found.token_width}"))
    if found.merged:
        facts.append(("merged of", ", ".join(found.merged)))
    if found.columns:
        facts.append(("columns", ", ".join(found.columns)))
    return facts


def _spread(name: str, values: Spread, of: str) -> str:
    said = (
        f"{plural(values.n, 'row')} ({of}): mean {values.mean:.6g}, 5% {values.p05:.6g}, half {values.p50:.6g}, "
        f"95% {values.p95:.6g}, from {values.least:.6g} to {values.most:.6g}"
    )
    drawn = html_histogram(values.least, values.most, values.bins)
    return f"<section><h2>{text(name.capitalize())}</h2>\n{drawn}\n<p>{text(said)}</p></section>"


def _rejects(found: OutputInfo, gallery: Gallery, meanings: Mapping[str, str]) -> str:
    counts = sorted(found.rejects.items(), key=lambda item: (-item[1], item[0]))
    rows = [(name, count, meanings.get(name, "")) for name, count in counts]
    parts = ["<h2>Rejected because</h2>", html_table(("class", "samples", "which means"), rows)]
    for name, _ in counts:
        if some := gallery.rejects.get(name):
            lines = [(each.shard, each.what, each.message) for each in some]
            parts.append(f"<h3>{text(name)}, for example</h3>{html_table(('shard', 'which', 'message'), lines)}")
    return "\n".join(parts)


def _grid(heading: str, samples: tuple[GalleryItem, ...]) -> str:
    cells = "\n".join(
        f"<div>{picture(each.picture)}{_alike(each)}{text(each.caption or '')}"
        f'<br><span class="quiet">{text(each.shard)} {text(each.key)}</span></div>'
        for each in samples
    )
    return f'<h2>Samples: {text(heading)}</h2>\n<div class="grid">\n{cells}\n</div>'


def _alike(sample: GalleryItem) -> str:
    return f"<b>{sample.similarity:.3f}</b> " if sample.similarity is not None else ""
