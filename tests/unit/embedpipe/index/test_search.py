"""An index is used only with the data it was built from, and queried only by the model that made the rows."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from embedpipe.errors import DatasetError, InputError, ModelError, RunMismatch
from embedpipe.index import (
    IndexConfig,
    Searcher,
    build_index,
    embed_image,
    query_encoder,
    read_card,
    row_of_key,
    search,
)
from embedpipe.load import EmbeddingDataset
from tests import shards
from tests.unit.embedpipe.load.test_dataset import write


@pytest.fixture
def query():
    return np.float32([1, 0, 0, 0])


def test_more_than_there_is_gives_all_there_is(tmp_path, query):
    root = write(str(tmp_path), [3, 2])
    assert build_index(root).rows == 5
    hits = search(EmbeddingDataset(root), query, 100)
    assert [hit.key for hit in hits] == ["k4", "k3", "k2", "k1", "k0"]
    assert [hit.score for hit in hits] == [4, 3, 2, 1, 0]


def test_an_index_of_other_data_is_refused_until_it_is_rebuilt(tmp_path, query):
    root = write(str(tmp_path), [3])
    build_index(root)
    write(root, [3, 2])
    with pytest.raises(DatasetError, match="the data set has changed since.*embedpipe.build_index"):
        search(EmbeddingDataset(root), query)
    assert build_index(root).rows == 5
    assert len(search(EmbeddingDataset(root), query)) == 5


def test_an_index_that_is_up_to_date_is_left_alone(tmp_path):
    root = write(str(tmp_path), [3])
    card = build_index(root)
    place = tmp_path / "index" / card.file
    before = place.stat().st_mtime_ns
    assert build_index(root) == card == read_card(root, "image")
    assert place.stat().st_mtime_ns == before


def test_a_missing_or_damaged_index_is_named(tmp_path, query):
    root = write(str(tmp_path), [3])
    dataset = EmbeddingDataset(root)
    card = build_index(root)
    place = tmp_path / "index" / card.file
    data = place.read_bytes()
    for damaged in (data[:-1], data[:20] + b"\xff" + data[21:], b"", data + b"x"):
        place.write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"image-00001\.faiss: damaged.*embedpipe.build_index"):
            search(dataset, query)
    place.unlink()
    with pytest.raises(DatasetError, match="missing, though its card is there.*embedpipe.build_index"):
        search(dataset, query)
    assert build_index(root).sha256 == card.sha256
    (tmp_path / "index" / "image.json").write_bytes(b"\xff{")
    with pytest.raises(DatasetError, match="damaged.*Remove it"):
        search(dataset, query)


def test_without_an_index_every_row_is_compared_unless_they_are_many(tmp_path, query, monkeypatch):
    root = write(str(tmp_path), [3, 2])
    dataset = EmbeddingDataset(root)
    searcher = Searcher(dataset)
    assert searcher.card is None
    assert [hit.key for hit in next(searcher.hits(query[None], 2))] == ["k4", "k3"]
    monkeypatch.setattr("embedpipe.index.searcher.EXACT_ROWS", 4)
    with pytest.raises(DatasetError, match="no image index, and 5 rows are many.*embedpipe.build_index.*`exact=True`"):
        search(dataset, query)
    assert search(dataset, query, 1, exact=True)[0].key == "k4"


def test_only_what_scores_enough_is_told(tmp_path, query):
    root = write(str(tmp_path), [5])
    dataset = EmbeddingDataset(root)
    for exact in (True, False):
        build_index(root)
        assert [hit.key for hit in search(dataset, query, 10, min_score=2.5, exact=exact)] == ["k4", "k3"]
        assert search(dataset, query, 10, min_score=99, exact=exact) == []


def test_queries_that_are_no_direction_are_refused(tmp_path):
    dataset = EmbeddingDataset(write(str(tmp_path), [3]))
    for bad in ([0, 0, 0, 0], [1, np.nan, 0, 0], [np.inf, 0, 0, 0]):
        with pytest.raises(InputError, match="query 1: its embedding is zero, or holds a NaN"):
            list(Searcher(dataset).hits(np.float32([[1, 0, 0, 0], bad])))


def test_a_row_is_found_by_its_key(tmp_path):
    dataset = EmbeddingDataset(write(str(tmp_path), [3, 2]))
    assert row_of_key(dataset, "k4") == row_of_key(dataset, "k4", "1.tar") == 4
    with pytest.raises(InputError, match="no row with the key 'k4' in 0.tar"):
        row_of_key(dataset, "k4", "0.tar")
    with pytest.raises(InputError, match="no row with the key 'no'"):
        row_of_key(dataset, "no")


def test_a_key_of_two_shards_asks_which(encoded_once):
    dataset = EmbeddingDataset(encoded_once[1])
    key = dataset.keys()[0]
    assert row_of_key(dataset, key) == 0
    dataset.metadata = lambda shard, columns: pa.table({"key": [key]})
    with pytest.raises(InputError, match=f"3 rows have the key '{key}', in .*`shard`"):
        row_of_key(dataset, key)


def test_an_empty_data_set_has_no_index(tmp_path):
    with pytest.raises(DatasetError, match="no rows"):
        build_index(write(str(tmp_path), [0]))


def test_a_query_of_another_width_is_refused(tmp_path):
    root = write(str(tmp_path), [3])
    build_index(root)
    with pytest.raises(InputError, match="have 4 values"):
        search(EmbeddingDataset(root), np.zeros(5, np.float32))


def test_the_encoder_is_found_again_and_another_is_refused(encoded_once, other_model, tiny_model):
    dataset = EmbeddingDataset(encoded_once[1])
    for encoder in (query_encoder(dataset), query_encoder(dataset, tiny_model)):
        as_stored = replace(encoder.card, precision=dataset.card.precision)  # a query takes what the machine does best
        assert as_stored.fingerprint() == dataset.card.fingerprint()
    with pytest.raises(RunMismatch, match="another encoder: weights_sha256.*Give the model that made it"):
        query_encoder(dataset, other_model)
    with pytest.raises(ModelError):
        query_encoder(dataset, "/nowhere")


def test_a_row_is_found_by_its_own_picture_and_caption(encoded, tiny_encoder, tmp_path):
    build_index(str(encoded))
    build_index(str(encoded), IndexConfig("text"))
    dataset = EmbeddingDataset(str(encoded))
    (tmp_path / "q.jpg").write_bytes(shards.jpeg(5))
    assert search(dataset, embed_image(tiny_encoder, str(tmp_path / "q.jpg")), 1)[0].key == "00005"
    hit = search(dataset, tiny_encoder.texts([shards.caption(8)]).rows[0], 1, "text")[0]
    assert hit.caption == shards.caption(8)
    assert hit.score == pytest.approx(1, abs=1e-3)


def test_a_picture_that_is_none_is_an_input_error(tiny_encoder, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        embed_image(tiny_encoder, str(tmp_path / "no.jpg"))
    (tmp_path / "bad.jpg").write_bytes(b"text")
    with pytest.raises(InputError, match=r"bad\.jpg: no image format"):
        embed_image(tiny_encoder, str(tmp_path / "bad.jpg"))
