"""Norms of the projections: the tower's own, kept wherever rows go, and missed by name where they are not."""

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from embedpipe import Foreign, manifest
from embedpipe.columns import EXTRA, MEASURED, column_names, schema, split_row
from embedpipe.encode.job import encode
from embedpipe.errors import DatasetError, InputError
from embedpipe.export import EXPORTS, ExportConfig
from embedpipe.export.job import export
from embedpipe.info import describe
from embedpipe.load import EmbeddingDataset
from embedpipe.merge import merge
from embedpipe.verify import verify
from tests import foreign, shards, tiny_clip
from tests.embeddings import write_dataset

OLD = Path(__file__).parents[3] / "data" / "v01-norms-resume"
WITHOUT = (
    "was written without norms: it has image embeddings, but no image_norm. .*diffusers.*Karlo.*encode the data again"
)


def by_open_clip(folder, count=21):
    """(image, text) float32 [n, dim] as open_clip itself projects the samples of `shards`, not normalised."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    model.eval()
    import io

    pictures = [transform(Image.open(io.BytesIO(shards.jpeg(i))).convert("RGB")) for i in range(count)]
    with torch.inference_mode():
        image = model.encode_image(torch.stack(pictures), normalize=False)
        text = model.encode_text(tokenizer([shards.caption(i) for i in range(count)]), normalize=False)
    return image.numpy(), text.numpy()


@pytest.mark.parametrize("architecture", ["vit", "coca"])
@pytest.mark.parametrize(("dtype", "storage"), [("float16", "npy"), ("float16", "parquet"), ("float32", "npy")])
def test_raw_rows_are_the_towers_own(architecture, dtype, storage, tmp_path, encode_config):
    folder = tiny_clip.write(tmp_path / "model", tiny_clip.CONFIGS[architecture])
    source, out = shards.write_shards(tmp_path / "in"), str(tmp_path / "emb")
    encode(source, out, encode_config(folder, dtype=dtype, decode="pillow", format=storage))
    data = EmbeddingDataset(out)
    for column, expected in zip((data.image, data.text), by_open_clip(folder), strict=True):
        norms = np.linalg.norm(expected, axis=1)
        assert np.abs(norms - 1).min() > 0.05, "norms of 1 would prove nothing"
        assert np.ptp(norms) > 1e-3
        raw = column.raw()
        assert np.allclose(raw.norms(), norms, rtol=1e-5)
        # Half a unit in the last place of what is stored, of values up to the norm.
        most = (2**-11 if dtype == "float16" else 2**-20) * norms[:, None] + 1e-6
        assert (np.abs(raw.read() - expected) <= most).all()
        assert raw.read().dtype == np.float32
    assert verify(out, shards.DEEP).whole


def test_raw_columns_are_read_as_the_stored_ones_are(encoded_once):
    data = EmbeddingDataset(encoded_once[1])
    norm = data.column("image_norm").to_numpy()
    expected = data.image[:].astype(np.float32) * norm[:, None]
    raw = data.image.raw()
    assert (len(raw), raw.dim) == (21, 16)
    assert raw[8].shape == (16,)
    assert np.array_equal(raw[-2], expected[-2])
    for index in (slice(3, 17, 2), [20, 0, 8, 8, -1], slice(0, 0), np.arange(21) % 5 == 0):
        assert np.array_equal(raw[index], expected[index])
        assert np.array_equal(raw.norms(index), norm[index])
    for wrong in (21, [0, -22]):
        with pytest.raises(IndexError):
            raw[wrong]


@pytest.mark.parametrize("reuse", [False, True])
def test_raw_batches_go_from_end_to_end(encoded_once, reuse):
    data = EmbeddingDataset(encoded_once[1])
    batches = [
        (batch.image.copy(), batch.text.copy()) for batch in data.batches(4, raw=True, reuse=reuse, start=2, stop=20)
    ]
    assert [len(image) for image, _ in batches] == [4, 4, 4, 4, 2]
    assert np.array_equal(np.concatenate([image for image, _ in batches]), data.image.raw()[2:20])
    assert np.array_equal(np.concatenate([text for _, text in batches]), data.text.raw()[2:20])
    (one,) = data.batches(30, raw=True, sides=("text",))
    assert one.image is None
    assert np.array_equal(one.text, data.text.raw().read())
    with pytest.raises(InputError, match="no raw batches of 'float16'"):
        data.batches(4, dtype="float16", raw=True)


def test_columns_stand_behind_similarity_in_both_formats(encoded_once, tmp_path, encode_config):
    source, npy = encoded_once
    encode(source, str(tmp_path / "emb"), encode_config(format="parquet"))
    for path in (Path(npy) / "metadata/metadata_00000.parquet", tmp_path / "emb/embeddings/embeddings_00000.parquet"):
        found = pq.read_schema(path)
        first = found.names.index("similarity")
        assert found.names[first : first + 5] == [
            "similarity",
            "image_norm",
            "text_norm",
            "text_tokens_cut",
            "src_shard",
        ]
        assert [str(found.field(name).type) for name in MEASURED] == ["float", "float", "int32"]


@pytest.mark.parametrize(("side", "other"), [("images", "text"), ("texts", "image")])
def test_one_side_has_its_norm_and_the_others_is_null(side, other, encoded_once, tmp_path, encode_config):
    encode(encoded_once[0], str(tmp_path), encode_config(stage={side: False}))
    data, both = EmbeddingDataset(str(tmp_path)), EmbeddingDataset(encoded_once[1])
    there = {"text": "text", "image": "image"}[other]
    missing = "image" if there == "text" else "text"
    assert data.column(f"{missing}_norm").null_count == 21
    assert np.allclose(data.require(there).raw().read(), both.require(there).raw().read(), atol=1e-6)
    assert verify(str(tmp_path), shards.DEEP).whole
    assert list(describe(str(tmp_path)).norms) == [there]


def test_a_field_of_such_a_name_is_the_inputs_and_not_lost(tmp_path, encode_config):
    members = [("a.jpg", shards.jpeg()), ("a.json", json.dumps({"image_norm": 7.5, "text_tokens_cut": 0}).encode())]
    encode(
        shards.write_tar(tmp_path / "a.tar", [*members, ("a.txt", b"a cat")]), str(tmp_path / "emb"), encode_config()
    )
    data = EmbeddingDataset(str(tmp_path / "emb"))
    row = data.metadata[0]
    assert row["image_norm"] == pytest.approx(float(data.image.raw().norms()[0]))
    assert row["image_norm"] != 7.5
    assert json.loads(row["extra"]) == {"image_norm": 7.5}, "what is the same need not be said twice"


def test_values_keep_their_type_or_go_to_extra():
    columns = {"a": "float", "b": "int32"}
    assert split_row({"a": 0.5, "b": 7}, columns, {}) == {"a": 0.5, "b": 7, EXTRA: None}
    row = split_row({"a": 0.1, "b": 2**31}, columns, {})
    assert (row["a"], row["b"], json.loads(row[EXTRA])) == (None, None, {"a": 0.1, "b": 2**31})
    assert split_row({"a": 1e300}, columns, {})["a"] is None


def test_a_column_of_such_a_name_and_another_type_is_left_where_it_was():
    assert column_names({"image_norm": "double", "x": "string"})[-3:] == ("image_norm", "x", EXTRA)
    assert schema({"x": "string", **MEASURED}).names.index("image_norm") == 8


# Data sets without.


@pytest.fixture
def old(tmp_path):
    """What version 0.1 wrote: the first of two shards."""
    return shutil.copytree(OLD, tmp_path / "old")


def test_a_data_set_of_before_says_that_it_has_none(old, embedpipe):
    emb = str(old / "emb")
    data = EmbeddingDataset(emb)
    assert not set(MEASURED) & set(data.column_names())
    assert data.image[:].shape == (2, 16)
    for ask in (data.image.raw, lambda: data.batches(2, raw=True)):
        with pytest.raises(DatasetError, match=WITHOUT):
            ask()
    with pytest.raises(DatasetError, match="text embeddings, but no text_norm"):
        data.text.raw()
    assert describe(emb).norms == {}
    assert describe(emb).cut is None
    shown = " ".join(embedpipe("info", emb).stdout.replace("│", " ").split())
    assert "not stored (image and text)" in shown
    assert "image_embeds" in shown
    assert "captions cut" not in shown
    assert verify(emb, shards.DEEP).whole


def as_of_this_model(old, model, encode_config, tmp_path):
    """Let the old output be of the model as its card is written today: of other columns only."""
    encode(str(old / "shards"), str(tmp_path / "probe"), encode_config(model))
    run = manifest.read_run(str(tmp_path / "probe"))
    card = json.loads((tmp_path / "probe" / "embedpipe.json").read_text())["encoder"]
    shards.edit(old / "emb" / "embedpipe.json", encoder=card)
    shards.edit(old / "emb" / "manifest" / "00000.json", fingerprint=run.encoder.fingerprint())


def test_an_output_of_before_goes_on_with_the_columns_it_began_with(old, tmp_path, tiny_model, encode_config):
    as_of_this_model(old, tiny_model, encode_config, tmp_path)
    emb = str(old / "emb")
    report = encode(str(old / "shards"), emb, encode_config())
    assert (report.report.tasks, report.rows) == (1, 4)
    first, second = (pq.read_schema(old / f"emb/metadata/metadata_0000{i}.parquet") for i in range(2))
    assert first.equals(second)
    assert "image_norm" not in second.names
    assert verify(emb, shards.DEEP).whole
    with pytest.raises(DatasetError, match=WITHOUT):
        EmbeddingDataset(emb).image.raw()


def test_merged_with_one_that_has_them_its_rows_have_null(old, tmp_path, tiny_model, encode_config, embedpipe):
    as_of_this_model(old, tiny_model, encode_config, tmp_path)
    shards.write_shards(tmp_path / "in", 1, 5)
    (tmp_path / "in" / "00000.tar").rename(tmp_path / "in" / "new.tar")
    encode(str(tmp_path / "in"), str(tmp_path / "new"), encode_config())
    out = tmp_path / "out"
    result = embedpipe("merge", old / "emb", tmp_path / "new", out)
    assert result.exit_code == 0, result.stderr
    assert "columns image_norm, text_norm, text_tokens_cut: absent in" in result.stdout
    merged, new = EmbeddingDataset(str(out)), EmbeddingDataset(str(tmp_path / "new"))
    assert merged.column("image_norm").to_pylist() == [None, None, *new.column("image_norm").to_pylist()]
    assert merged.column("text_tokens_cut").to_pylist() == [None, None, 0, 0, 0, 0, 0]
    assert np.array_equal(merged.image.raw()[2:], new.image.raw().read())
    with pytest.raises(DatasetError, match=r"image_norm is null in 2 of 7 rows, first in row 0; .*without norms"):
        merged.image.raw().read()
    with pytest.raises(DatasetError, match=r"null in 1 of 2 rows, first in row 1"):
        merged.text.raw()[[4, 1]]
    assert verify(str(out), shards.DEEP).whole
    shown = " ".join(embedpipe("info", out).stdout.replace("│", " ").split())
    assert "of 5 of 7 rows" in shown
    assert describe(str(out)).cut.rows == 5
    kept = tmp_path / "kept"
    assert embedpipe("filter", out, kept, "--where", "image_norm is not null", "--materialise").exit_code == 0
    assert np.array_equal(EmbeddingDataset(str(kept)).image.raw().read(), new.image.raw().read())
    assert verify(str(kept), shards.DEEP).whole


@pytest.mark.parametrize(
    ("name", "kind", "own"), [("image_norm", "float", "double"), ("text_tokens_cut", "int32", "int64")]
)
def test_merged_with_a_column_of_that_name_and_another_type_nothing_is_lost(name, kind, own, tmp_path):
    image, text = np.random.default_rng(0).normal(size=(2, 4, 8))
    theirs = write_dataset(tmp_path / "theirs", image, text, columns={name: (own, [7, 8, 9, 10])})
    measured = write_dataset(tmp_path / "measured", image, text, columns={name: (kind, [20, 21, 22, 23])})
    for number, order in enumerate(([theirs, measured], [measured, theirs])):
        out = str(tmp_path / f"out{number}")
        merge(order, out)
        found = EmbeddingDataset(out).column(name).to_pylist()
        assert sorted(found) == [7, 8, 9, 10, 20, 21, 22, 23]


def test_merged_with_its_kind_nothing_is_lost(encoded_once, tmp_path, encode_config):
    shards.write_shards(tmp_path / "in", 1, 5)
    encode(str(tmp_path / "in"), str(tmp_path / "other"), encode_config())
    merge([encoded_once[1], str(tmp_path / "other")], str(tmp_path / "out"))
    merged = EmbeddingDataset(str(tmp_path / "out")).image.raw().read()
    parts = [EmbeddingDataset(path).image.raw().read() for path in (encoded_once[1], str(tmp_path / "other"))]
    assert np.array_equal(merged, np.concatenate(parts))
    assert verify(str(tmp_path / "out"), shards.DEEP).whole


# Wherever rows go.


def test_selections_keep_them(encoded_once, tmp_path, embedpipe):
    data = EmbeddingDataset(encoded_once[1])
    median = float(np.median(data.column("image_norm").to_numpy()))
    result = embedpipe("filter", encoded_once[1], tmp_path / "f", "--where", f"image_norm > {median}", "--materialise")
    assert result.exit_code == 0, result.stderr
    result = embedpipe("dedup", encoded_once[1], tmp_path / "d", "--threshold", "0.9999", "--materialise")
    assert result.exit_code == 0, result.stderr
    for name in ("f", "d"):
        kept = EmbeddingDataset(str(tmp_path / name))
        assert 0 < len(kept) <= 21
        rows = data.find(kept.keys())
        assert np.array_equal(kept.image.raw().read(), data.image.raw()[rows])
        assert np.array_equal(kept.text.raw().read(), data.text.raw()[rows])
        assert verify(str(tmp_path / name), shards.DEEP).whole


@pytest.mark.parametrize("to", ["clip-retrieval", "parquet", "hf", "datacomp"])
def test_exports_carry_them_and_are_read_back(to, encoded_once, tmp_path):
    data = EmbeddingDataset(encoded_once[1])
    export(encoded_once[1], str(tmp_path / "out"), ExportConfig(to))
    tables = [pq.read_table(path) for path in sorted((tmp_path / "out").rglob("*.parquet"))]
    for name in MEASURED:
        found = [value for table in tables for value in table[name].to_pylist()]
        assert found == data.column(name).to_pylist()
    shutil.rmtree(tmp_path / "out" / ".embedpipe")  # as others get it
    where = tmp_path / "out" / "data" if to == "hf" else tmp_path / "out"
    again = EmbeddingDataset(str(where))
    assert not again.card.normalised
    assert np.array_equal(again.image.raw().read(), data.image.raw().read())
    assert np.array_equal(again.text.raw()[[3, 1]], data.text.raw()[[3, 1]])


def test_of_others_rows_of_any_norm_are_the_raw_ones_and_unit_rows_are_not(tmp_path, embedpipe):
    arrays, captions = foreign.rows()
    foreign.clip_retrieval(tmp_path / "unit", arrays, captions)
    with pytest.raises(DatasetError, match=WITHOUT):
        EmbeddingDataset(str(tmp_path / "unit")).image.raw()
    assert "not stored" in embedpipe("info", tmp_path / "unit").stdout
    long = {
        side: (array.astype(np.float32) * np.linspace(3, 9, 12)[:, None]).astype(np.float16)
        for side, array in arrays.items()
    }
    foreign.clip_retrieval(tmp_path / "long", long, captions)
    found = EmbeddingDataset(str(tmp_path / "long"))
    assert np.array_equal(found.image.raw().read(), long["image"].astype(np.float32))
    assert np.allclose(found.image.raw().norms([0, 11]), [3, 9], rtol=1e-3)
    assert "written without" not in embedpipe("info", tmp_path / "long").stdout
    (batch,) = found.batches(12, raw=True)
    assert np.array_equal(batch.text, long["text"].astype(np.float32))
    normalised = EmbeddingDataset(str(tmp_path / "long"), Foreign(normalise=True))
    with pytest.raises(DatasetError, match=WITHOUT):
        normalised.image.raw()


# Damage.


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.0, "image_norm: 1 of 7 rows are not finite and above 0, the first is row 3 of the shard"),
        (float("nan"), "image_norm: 1 of 7 rows are not finite and above 0"),
        (-2.0, "image_norm: 1 of 7 rows are not finite"),
        (None, "image_norm: 1 rows have none"),
    ],
)
def test_verify_finds_norms_that_cannot_be(value, said, encoded):
    path = encoded / "metadata" / "metadata_00001.parquet"
    table = pq.read_table(path)
    column = table["image_norm"].to_pylist()
    column[3] = value
    place = table.column_names.index("image_norm")
    import pyarrow as pa

    pq.write_table(
        table.set_column(place, "image_norm", pa.array(column, pa.float32())), path, write_page_checksum=True
    )
    shards.record_anew(encoded, 1, path)
    (fault,) = verify(str(encoded), shards.DEEP).faults
    assert said in fault.what


def test_a_data_set_written_by_hand_with_norms_is_read(tmp_path):
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(2, 9, 4))
    norms = np.linalg.norm(image, axis=1).astype(np.float32)
    folder = write_dataset(tmp_path / "emb", image, text, columns={"image_norm": ("float", norms.tolist())})
    data = EmbeddingDataset(folder)
    assert np.allclose(data.image.raw().read(), image, atol=norms.max() * 2**-11)
    with pytest.raises(DatasetError, match="no text_norm"):
        data.text.raw()
    assert "not stored (text)" in " ".join(embedpipe_info(folder))


def embedpipe_info(folder):
    from embedpipe.info import without_norms

    return [without_norms(describe(folder))]


def exported_columns(out, to, column_names):
    """Those columns of an export by key, as the layout's own program reads them."""
    if to == "lance":
        table = (
            pytest.importorskip("lance").dataset(str(out / "embeddings.lance")).to_table(columns=["key", *column_names])
        )
    else:
        parts = [path for path in sorted(out.rglob("*.parquet")) if "key" in pq.read_schema(path).names]
        table = pa.concat_tables(pq.read_table(path, columns=["key", *column_names]) for path in parts)
    keys, *columns = (column.to_pylist() for column in table.columns)
    return dict(zip(keys, zip(*columns, strict=True), strict=True))


@pytest.mark.parametrize("to", sorted(EXPORTS))
@pytest.mark.parametrize("some", [False, True])
def test_every_layout_with_metadata_keeps_norms_beside_their_keys(to, some, encoded_once, tmp_path):
    data = EmbeddingDataset(encoded_once[1])
    keys = data.keys()[1::3] if some else data.keys()
    (tmp_path / "keys.txt").write_text("".join(f"{key}\n" for key in keys))
    settings = ExportConfig(
        to, keys=str(tmp_path / "keys.txt") if some else None, index_width=1 if to == "aligned" else None
    )
    export(encoded_once[1], str(tmp_path / "out"), settings)
    if to == "aligned":
        assert not list((tmp_path / "out").rglob("*.parquet")), "its loader reads none: docs/exporting.md says so"
        return
    columns = ("image_norm", "text_norm", "text_tokens_cut")
    rows = zip(data.keys(), *(data.column(name).to_pylist() for name in columns), strict=True)
    wanted = {key: values for key, *values in rows if key in set(keys)}
    assert len({image for image, *_ in wanted.values()}) == len(wanted) > 5
    assert exported_columns(tmp_path / "out", to, columns) == {key: tuple(values) for key, values in wanted.items()}
