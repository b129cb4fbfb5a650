"""A data set in parquet is the data set in npy, told in one file for each shard."""

import json
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedpipe.encode.job import encode
from embedpipe.errors import DatasetError, RunMismatch
from embedpipe.info import describe
from embedpipe.load import EmbeddingDataset, EmbeddingLoader
from embedpipe.store import parquet
from embedpipe.verify import verify
from tests import shards

TOKENS = {"text_tokens": True}


@pytest.fixture(scope="module")
def both(tmp_path_factory, encode_config):
    """(shards, the data set in npy, in parquet), not to be written to."""
    root = tmp_path_factory.mktemp("formats")
    source = shards.write_shards(root / "shards")
    shards.write_tar(root / "shards" / "00003.tar", [("x.jpg", b"bad"), ("x.txt", b"c")])
    for name in ("npy", "parquet"):
        encode(source, str(root / name), encode_config(format=name, stage=TOKENS))
    return source, str(root / "npy"), str(root / "parquet")


@pytest.fixture
def mine(both, tmp_path):
    """A copy of the data set in parquet, of one's own."""
    return shutil.copytree(both[2], tmp_path / "emb")


def test_a_shard_is_one_file_and_its_rejects(both):
    assert sorted(name for name in shards.tree(both[2]) if "manifest" not in name) == [
        "embeddings/embeddings_00000.parquet",
        "embeddings/embeddings_00001.parquet",
        "embeddings/embeddings_00002.parquet",
        "embedpipe.json",
        "errors/errors_00003.parquet",
    ]


@pytest.mark.parametrize("index", [slice(None), slice(20, 3, -4), [20, 0, 8, 8, -1], np.arange(21) % 5 == 0, 13])
def test_every_column_answers_as_in_npy(both, index):
    npy, other = (EmbeddingDataset(place) for place in both[1:])
    assert len(other) == 21
    assert other.image[index].dtype == np.float16
    assert np.array_equal(npy.image[index], other.image[index])
    assert np.array_equal(npy.text[index], other.text[index])
    for one, another in zip(npy.text_tokens[index], other.text_tokens[index], strict=True):
        assert np.array_equal(one, another)


def test_everything_else_is_as_in_npy(both):
    npy, other = (EmbeddingDataset(place) for place in both[1:])
    assert other.card == npy.card
    assert other.column_names() == npy.column_names()
    for name in npy.column_names():
        assert other.column(name).equals(npy.column(name)), name
    assert other.rows([20, 3]) == npy.rows([20, 3])
    assert np.array_equal(npy.image.read(), other.image.read())
    assert verify(both[2], shards.DEEP).whole
    told, expected = describe(both[2]), describe(both[1])
    assert (told.rows, told.rejects, told.similarity, told.tokens) == (21, *_of(expected))
    batches = [next(EmbeddingLoader(dataset, np.arange(21), 8).batches(5)) for dataset in (npy, other)]
    assert np.array_equal(batches[0].image, batches[1].image)


def _of(told):
    return told.rejects, told.similarity, told.tokens


def test_any_parquet_reader_sees_lists_of_fixed_size_and_no_dictionary(both):
    place = f"{both[2]}/embeddings/embeddings_00001.parquet"
    table = pq.read_table(place)
    assert table.column("image_embedding").type == pa.list_(pa.field("element", pa.float16(), nullable=False), 16)
    assert table.num_rows == 7
    assert np.allclose(table.column("text_embedding")[3].as_py(), EmbeddingDataset(both[1]).text[10])
    group = pq.ParquetFile(place).metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    for path in ("image_embedding.list.element", "text_tokens.list.element.list.element"):
        assert not columns[path].has_dictionary_page
        assert columns[path].compression == "UNCOMPRESSED"
    assert columns["caption"].has_dictionary_page


def test_float32_for_readers_that_know_no_float16(tmp_path, encode_config):
    source = shards.write_shards(tmp_path / "in", shards=1)
    encode(source, str(tmp_path / "emb"), encode_config(format="parquet", dtype="float32", stage=TOKENS))
    dataset = EmbeddingDataset(str(tmp_path / "emb"))
    assert dataset.image[:].dtype == dataset.text_tokens[0].dtype == np.float32
    assert verify(dataset.path, shards.DEEP).whole


@pytest.mark.parametrize("stage", [{"images": False}, {"texts": False}])
def test_one_side_alone(stage, tmp_path, encode_config):
    encode(
        shards.write_shards(tmp_path / "in", 1),
        str(tmp_path / "emb"),
        encode_config(format="parquet", stage={**stage, **(TOKENS if stage.get("texts", True) else {})}),
    )
    dataset = EmbeddingDataset(str(tmp_path / "emb"))
    assert (dataset.image is None, dataset.text is None) == ("images" in stage, "texts" in stage)
    assert verify(dataset.path, shards.DEEP).whole


def test_more_rows_than_a_row_group(both, tmp_path, encode_config, monkeypatch):
    monkeypatch.setattr(parquet, "_ROWS_IN_GROUP", 3)
    encode(both[0], str(tmp_path / "emb"), encode_config(format="parquet", stage=TOKENS))
    assert pq.ParquetFile(tmp_path / "emb" / "embeddings" / "embeddings_00000.parquet").num_row_groups == 3
    one, other = EmbeddingDataset(both[2]), EmbeddingDataset(str(tmp_path / "emb"))
    assert np.array_equal(one.text[:], other.text[:])
    assert all(np.array_equal(one.text_tokens[row], other.text_tokens[row]) for row in range(21))


def test_a_field_named_like_a_column_of_embeddings_is_kept_in_extra(tmp_path, encode_config):
    members = [("a.jpg", shards.jpeg()), ("a.json", b'{"image_embedding": [1], "n": 2}'), ("a.txt", b"c")]
    source = shards.write_tar(tmp_path / "in.tar", members)
    encode(source, str(tmp_path / "emb"), encode_config(format="parquet"))
    (row,) = EmbeddingDataset(str(tmp_path / "emb")).rows([0])
    assert (row["n"], json.loads(row["extra"])) == (2, {"image_embedding": [1]})


def test_a_column_is_decoded_once_however_often_it_is_asked_for(both, monkeypatch):
    decoded = []
    real = parquet.ParquetReader.embeddings

    def embeddings(self, root, manifest, modality, digits):
        decoded.append((manifest.number, modality))
        return real(self, root, manifest, modality, digits)

    monkeypatch.setattr(parquet.ParquetReader, "embeddings", embeddings)
    dataset = EmbeddingDataset(both[2])
    for _ in range(5):
        dataset.image[[0, 20, 8]]
    assert sorted(decoded) == [(0, "image"), (1, "image"), (2, "image")]


# The same command again.


def test_another_format_is_another_run(both, encode_config):
    for out, name in ((both[1], "parquet"), (both[2], "npy")):
        with pytest.raises(RunMismatch, match="format was"):
            encode(both[0], out, encode_config(format=name, stage=TOKENS))


def test_half_a_shard_is_swept_and_made_again_to_the_byte(both, mine, encode_config):
    (mine / "manifest" / "00001.json").unlink()
    (mine / "embeddings" / "embeddings_00001.parquet").write_bytes(b"half of")
    (mine / "embeddings" / "embeddings_00002.parquet.tmp-7-a").write_bytes(b"left behind")
    encode(both[0], str(mine), encode_config(format="parquet", stage=TOKENS))
    assert shards.tree(mine) == shards.tree(both[2])
    encode(both[0], str(mine), encode_config(overwrite=True))
    assert not list((mine / "embeddings").iterdir())


# Damage.


@pytest.mark.parametrize("seed", range(40))
def test_damage_is_a_clear_error_or_other_numbers_and_verify_finds_all_of_it(seed, mine):
    rng = random.Random(seed)
    path = mine / "embeddings" / f"embeddings_0000{seed % 3}.parquet"
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data) - 3000, len(data)) if seed % 2 else rng.randrange(len(data))
    data[place] ^= 1 << rng.randrange(8)
    path.write_bytes(data if seed % 5 else data[:place])
    assert {fault.number for fault in verify(str(mine), shards.DEEP).faults} == {seed % 3}
    dataset = EmbeddingDataset(str(mine))
    for ask in (lambda: dataset.image[:], lambda: dataset.text_tokens[:], dataset.keys, lambda: dataset.rows([0, 20])):
        try:
            ask()
        except DatasetError as problem:
            assert path.name in str(problem)  # noqa: PT017 - not every damage is met


def with_tokens(table, change):
    kind = table.schema.field("text_tokens").type
    rows = [change(row) for row in table["text_tokens"].to_pylist()]
    return table.set_column(2, "text_tokens", pa.array(rows, kind))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.slice(1), "6 rows, but its manifest says 7"),
        (lambda t: t.drop_columns(["image_embedding"]), "no image embeddings"),
        (lambda t: t.drop_columns(["text_tokens"]), "no text tokens"),
        (lambda t: t.drop_columns(["key"]), "key"),
        (lambda t: t.set_column(0, "image_embedding", t["key"]), "image_embedding: of type string"),
        (lambda t: t.set_column(0, "image_embedding", pa.array([None] * 7, t.schema.field(0).type)), "7 rows"),
        (lambda t: t.set_column(2, "text_tokens", t["text_embedding"]), "text_tokens: of type None"),
        (lambda t: with_tokens(t, lambda row: row[:1]), "do not add up"),
        (lambda t: with_tokens(t, lambda row: row * 2), "do not add up"),
        (lambda t: with_tokens(t, lambda row: []), "do not add up"),
    ],
)
def test_a_file_of_another_make_is_a_fault(change, said, mine):
    path = mine / "embeddings" / "embeddings_00001.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    shards.record_anew(mine, 1, path)
    faults = verify(str(mine), shards.DEEP).faults
    assert {fault.number for fault in faults} == {1}
    assert any(said in fault.what for fault in faults), faults


def test_index_and_search_find_what_they_find_in_npy(both, embedpipe, tiny_model):
    hits = []
    for out in both[1:]:
        assert embedpipe("index", out).exit_code == 0
        found = embedpipe("search", out, "a cat and a dog", "--json")
        assert found.exit_code == 0, found.stderr
        hits.append(found.stdout)
        assert embedpipe("verify", out).exit_code == 0
        assert embedpipe("info", out).exit_code == 0
    assert hits[0].replace(both[1], "") == hits[1].replace(both[2], "")
