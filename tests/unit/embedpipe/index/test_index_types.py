"""The index type follows from rows and memory."""

import pytest

from embedpipe.errors import InputError
from embedpipe.index import IndexConfig
from embedpipe.index.index_types import FLAT_ROWS, choose_index_type, parse_bytes

GIB = 1 << 30


@pytest.mark.parametrize(
    ("rows", "memory", "look_up", "factory"),
    [
        (1, 4 * GIB, True, "Flat"),
        (FLAT_ROWS, 4 * GIB, True, "Flat"),
        (FLAT_ROWS + 1, 4 * GIB, True, "RR512,IVF256,RaBitQ"),
        (1_000_000, 4 * GIB, True, "RR512,IVF1024,RaBitQ"),
        (1_000_000, 4 * GIB, False, "IVF1024,SQ8"),
        (20_000_000, 4 * GIB, True, "RR512,IVF4096,RaBitQ"),
        (20_000_000, 4 * GIB, False, "IVF4096,PQ128"),
        (100_000_000, 4 * GIB, True, "IVF8192_HNSW32,PQ32"),
        (100_000_000, 16 * GIB, True, "RR512,IVF8192_HNSW32,RaBitQ"),
        (2_000_000_000, 64 * GIB, True, "IVF32768_HNSW32,PQ16"),
        (2_000_000_000, GIB, True, "IVF4096,PQ8"),
    ],
)
def test_what_is_chosen(rows, memory, look_up, factory):
    kind = choose_index_type("auto", rows, 512, memory, look_up)
    assert kind.factory == factory
    assert kind.candidates == (look_up and factory != "Flat")
    assert kind.training_rows * 512 * 4 <= memory // 4, "the sample has room"
    assert kind.training_rows >= 32 * kind.lists or kind.training_rows == rows
    if factory != "IVF4096,PQ8":
        assert kind.index_bytes(rows, 512) <= memory


@pytest.mark.parametrize("rows", [1, 2, 31, 100, 5000])
@pytest.mark.parametrize("dim", [1, 3, 7, 512, 768, 1024])
def test_every_size_has_every_type(rows, dim):
    for name in ("flat", "hnsw", "ivf", "ivf-sq8", "ivf-pq"):
        assert choose_index_type(name, rows, dim, GIB, True).training_rows <= rows


def test_what_does_not_fit_into_memory_says_what_does():
    with pytest.raises(
        InputError, match=r"`kind='hnsw'`: 10,000,000 rows of 512 take 21\.5 GiB of memory, .* `kind='ivf'`"
    ):
        choose_index_type("hnsw", 10_000_000, 512, 4 * GIB, True)
    with pytest.raises(InputError, match="more than the budget"):
        choose_index_type("HNSW16", 10_000_000, 512, 4 * GIB, True)


@pytest.mark.parametrize(
    ("text", "value"), [("8G", 8 * GIB), ("512M", 512 << 20), ("1.5g", 3 * GIB // 2), ("2GiB", 2 * GIB), ("1000", 1000)]
)
def test_sizes(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "lots", "-1G", "G", "1P"])
def test_what_is_no_size(text):
    with pytest.raises(InputError, match="`memory=.* is no size"):
        parse_bytes(text)


def test_settings_that_cannot_be():
    with pytest.raises(InputError, match="not built in less than 256M"):
        IndexConfig(memory="10M")
    for recall in (0, 1.1, -1):
        with pytest.raises(InputError, match="`recall="):
            IndexConfig(recall=recall)
