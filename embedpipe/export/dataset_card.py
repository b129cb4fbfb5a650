"""The README.md of a Hugging Face data set: YAML for `datasets` and the hub, then a description for people."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from ..clip_model.encoder_card import BEFORE_ACTIVATION, in_words
from ..load import EmbeddingDataset
from ..plural import in_full

_NAMES = {"halffloat": "float16", "float": "float32", "double": "float64"}
# Characters that YAML accepts unescaped in double quotes; JSON allows more.
_NOT_PRINTABLE = re.compile("[^\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SIZES = (("n<1K", 10**3), ("1K<n<10K", 10**4), ("10K<n<100K", 10**5), ("100K<n<1M", 10**6), ("1M<n<10M", 10**7))
_LARGER_SIZES = (("10M<n<100M", 10**8), ("100M<n<1B", 10**9), ("1B<n<10B", 10**10), ("10B<n<100B", 10**11))


@dataclass(frozen=True, slots=True)
class Split:
    """A split: its number of rows, and its bytes before compression."""

    name: str
    rows: int
    bytes: int


def dataset_card(dataset: EmbeddingDataset, schema: pa.Schema, splits: Sequence[Split]) -> str:
    """The whole file."""
    return "\n".join(["---", *_front_matter(schema, splits), "---", "", *_words(dataset, schema, splits), ""])


def _front_matter(schema: pa.Schema, splits: Sequence[Split]) -> Iterator[str]:
    total = sum(split.rows for split in splits)
    yield "license: unknown"
    yield "tags:"
    yield "- clip"
    yield "- embeddings"
    yield "size_categories:"
    yield f"- {next((name for name, most in (*_SIZES, *_LARGER_SIZES) if total < most), 'n>1T')}"
    yield "dataset_info:"
    yield "  features:"
    for field in schema:
        yield f"  - name: {yaml_quoted(field.name)}"
        yield from _feature(field.type, "    ")
    yield "  splits:"
    for split in splits:
        yield f"  - name: {split.name}"
        yield f"    num_bytes: {split.bytes}"
        yield f"    num_examples: {split.rows}"
    yield f"  dataset_size: {sum(split.bytes for split in splits)}"
    yield "configs:"
    yield "- config_name: default"
    yield "  data_files:"
    for split in splits:
        yield f"  - split: {split.name}"
        yield f"    path: data/{split.name}-*"


def _feature(kind: pa.DataType, indent: str) -> Iterator[str]:
    """A column's type. `sequence` is read by old and new versions of `datasets`."""
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind):
        inner = kind.value_type
        if pa.types.is_fixed_size_list(inner):
            yield f"{indent}sequence:"
            yield from _feature(inner, f"{indent}  ")
        else:
            yield f"{indent}sequence: {_NAMES.get(str(inner), str(inner))}"
        if pa.types.is_fixed_size_list(kind):
            yield f"{indent}length: {kind.list_size}"
    else:
        yield f"{indent}dtype: {_NAMES.get(str(kind), str(kind))}"


def yaml_quoted(text: str) -> str:
    """`text` as a YAML scalar in double quotes."""
    plain = json.dumps(text, ensure_ascii=False)
    return _NOT_PRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", plain)


def _words(dataset: EmbeddingDataset, schema: pa.Schema, splits: Sequence[Split]) -> Iterator[str]:
    card, spec = dataset.card, dataset.card.preprocess
    yield "# CLIP embeddings of images and captions"
    yield ""
    yield "Each row is one image-text pair. The license of the data is not known. Written by `embedpipe export`."
    yield ""
    yield "| | |"
    yield "|---|---|"
    rows = {
        "rows": ", ".join(f"{split.name} {split.rows:,}" for split in splits),
        "model": " ".join(map(public_name, (card.model, card.pretrained))).strip(),
        "sha256 of the weights": card.weights_sha256,
        "dimension": card.dim,
        "L2-normalised": "yes" if card.normalised else "no",
        "computed in": card.precision,
        "image preprocessing": f"{spec.size[0]} × {spec.size[1]} px, {spec.resize_mode}, {spec.interpolation}, "
        f"mean {in_full(spec.mean)}, std {in_full(spec.std)}",
        "tokenizer": f"{card.tokenizer}, {card.context_length} tokens",
        **{f"encoder's {name}": said for name, said in in_words(card)},
        "fingerprint": card.fingerprint() + (f", {BEFORE_ACTIVATION}" if card.dated else ""),
    }
    for name, value in rows.items():
        yield f"| {name} | {_cell(str(value))} |"
    yield ""
    yield "## Columns"
    yield ""
    for field in schema:
        yield f"- `{_cell(field.name)}`: {field.type}"
    yield ""
    yield "`src_shard` and `key` together say where a row comes from."


def public_name(name: str) -> str:
    """The name of a model, or the last part of a local path, which should not be published."""
    return name.rstrip("/").rpartition("/")[2] if name.startswith("/") else name


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
