"""What others use to read these files reads ours."""

import contextlib
import io
import json

import numpy as np
import pyarrow.parquet as pq
import webdataset
from embedding_reader import EmbeddingReader

from embedpipe.load import EmbeddingDataset
from tests import shards


def test_numpy_loads_every_array_with_as_many_rows_as_metadata(encoded_once):
    _, out = encoded_once
    for number in range(3):
        rows = pq.read_table(f"{out}/metadata/metadata_{number:05d}.parquet").num_rows
        for name in ("img_emb", "text_emb"):
            array = np.load(f"{out}/{name}/{name}_{number:05d}.npy")
            assert (array.shape, array.dtype) == ((rows, 16), np.float16)
            assert array.flags.c_contiguous


def test_embedding_reader_pairs_rows_with_their_captions(encoded_once):
    _, out = encoded_once
    dataset = EmbeddingDataset(out)
    reader = EmbeddingReader(
        embeddings_folder=f"{out}/img_emb",
        metadata_folder=f"{out}/metadata",
        meta_columns=["key", "caption", "number"],
        file_format="parquet_npy",
    )
    assert (reader.count, reader.dimension) == (21, 16)
    seen = 0
    with contextlib.redirect_stdout(io.StringIO()):
        for embeddings, meta in reader(batch_size=5, start=0, end=reader.count, show_progress=False):
            for embedding, (_, row) in zip(embeddings, meta.iterrows(), strict=True):
                number = int(row["number"])
                assert row["caption"] == shards.caption(number)
                assert row["key"] == f"{number:05d}"
                assert np.array_equal(embedding, dataset.image[number].astype(np.float32))
                seen += 1
    assert seen == 21


def test_shards_of_rejects_alone_do_not_shift_rows_of_others(tmp_path, encode_config):
    from embedpipe.encode.job import encode

    source = tmp_path / "in"
    shards.write_tar(source / "0.tar", shards.samples(3))
    shards.write_tar(source / "1.tar", [("x.jpg", b"bad"), ("x.txt", b"c")])
    shards.write_tar(source / "2.tar", shards.samples(3, first=10))
    out = str(tmp_path / "emb")
    encode(str(source), out, encode_config())
    reader = EmbeddingReader(
        embeddings_folder=f"{out}/text_emb",
        metadata_folder=f"{out}/metadata",
        meta_columns=["number"],
        file_format="parquet_npy",
    )
    ((embeddings, meta),) = reader(batch_size=10, start=0, end=6, show_progress=False)
    assert list(meta["number"]) == [0, 1, 2, 10, 11, 12]
    assert np.array_equal(embeddings, EmbeddingDataset(out).text.read())


def test_webdataset_sees_the_same_samples_in_the_same_order(encoded_once):
    source, out = encoded_once
    found = list(webdataset.WebDataset(f"{source}/{{00000..00002}}.tar", shardshuffle=False))
    assert [sample["__key__"] for sample in found] == EmbeddingDataset(out).keys()
    assert [sample["txt"].decode() for sample in found] == EmbeddingDataset(out).column("caption").to_pylist()
    assert [json.loads(sample["json"])["number"] for sample in found] == list(range(21))
