"""Data sets that others wrote are read as ours are, once all their files were found to fit."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from embedding_reader import EmbeddingReader

from embedpipe.curate import FilterConfig, dedup, filter
from embedpipe.errors import DatasetError, InputError, RunMismatch
from embedpipe.export import ExportConfig
from embedpipe.export.job import export
from embedpipe.index import build_index, query_encoder, search
from embedpipe.info import describe
from embedpipe.load import EmbeddingDataset, EmbeddingLoader, Foreign, splits
from embedpipe.store.foreign import LAYOUTS
from tests import foreign


@pytest.fixture(scope="module", params=foreign.LAYOUTS)
def written(request, tmp_path_factory):
    """(name, folder, arrays and captions in the order of the rows)."""
    writer, _, _ = foreign.LAYOUTS[request.param]
    root = tmp_path_factory.mktemp(request.param) / "data"
    arrays, captions = foreign.rows()
    writer(root, arrays, captions)
    order = foreign.order(request.param)
    return request.param, str(root), {s: a[order] for s, a in arrays.items()}, [captions[i] for i in order]


def test_every_layout_is_tried():
    assert {layout for _, layout, _ in foreign.LAYOUTS.values()} == set(LAYOUTS)


def test_its_layout_is_found_and_nothing_is_said_of_its_model(written):
    name, root, _, _ = written
    dataset = EmbeddingDataset(root)
    assert dataset.run.format == f"foreign/{foreign.LAYOUTS[name][1]}"
    assert not dataset.card.known
    assert dataset.card.model == "unknown"
    assert dataset.card.dim == foreign.DIM
    said = EmbeddingDataset(root, Foreign(model="ViT-L-14, openai")).card
    assert (said.model, said.known) == ("ViT-L-14, openai", False)
    assert said.fingerprint() != dataset.card.fingerprint()


def test_rows_are_those_that_were_written(written):
    name, root, arrays, captions = written
    dataset = EmbeddingDataset(root)
    assert len(dataset) == 12
    for side in ("image", "text"):
        column = getattr(dataset, side)
        assert (column is not None) == (side in foreign.LAYOUTS[name][2])
        if column is not None:
            assert np.array_equal(column[:], arrays[side])
            assert np.array_equal(column[[11, 0, 5]], arrays[side][[11, 0, 5]])
    if name != "npy":
        assert dataset.metadata["caption"][:].to_pylist() == captions
    batches = list(dataset.batches(5))
    assert [len(batch.image) for batch in batches] == [5, 5, 2]
    assert np.array_equal(np.concatenate([batch.image for batch in batches]), arrays["image"])


def test_rows_are_drawn_from_it(written):
    _, root, arrays, _ = written
    batches = EmbeddingLoader(EmbeddingDataset(root), None, 4, seed=1).batches()
    seen = np.concatenate([next(batches).image for _ in range(3)])
    assert sorted(map(tuple, seen)) == sorted(map(tuple, arrays["image"].astype(np.float32)))


def test_it_has_the_columns_that_ours_have(written):
    name, root, _, _ = written
    dataset = EmbeddingDataset(root)
    keys = dataset.keys()
    assert len({(r["src_shard"], r["key"]) for r in dataset.metadata[:].to_pylist()}) == 12
    assert list(dataset.find([keys[7]], dataset.metadata["src_shard"][7])) == [7]
    assert dataset.metadata[4]["src_index"] == 0 if name != "datacomp" else 1
    assert {"train", "valid"} == set(splits(dataset, None, 0.5))
    if name == "clip-retrieval":
        assert keys[:2] == ["000000000", "000000001"]
        assert dataset.metadata[[0, 1]]["width"].to_pylist() == [None, 640]
        assert dataset.metadata["NSFW"][3] == "UNLIKELY"
    if name == "datacomp":
        assert keys[0] == f"{4:032x}"
        assert dataset.metadata["similarity"][0] == pytest.approx(0.2)
        assert dataset.metadata["face_bboxes"][0] == "[[0.1, 0.2]]"
        assert dataset.metadata["width"][0] == 4


def test_commands_work_on_it(written, tmp_path, embedpipe):
    _, source, arrays, _ = written
    root = shutil.copytree(source, tmp_path / "data")
    assert build_index(str(root)).rows == 12
    hits = search(EmbeddingDataset(str(root)), arrays["image"][8].astype(np.float32), 1)
    assert hits[0].row == 8
    assert dedup(str(root), str(tmp_path / "dedup")).kept == 12
    assert describe(str(root)).rows == 12
    shown = embedpipe("info", root)
    assert shown.exit_code == 0, shown.stderr
    assert "unknown" in shown.stdout
    assert "norms as they were written" in shown.stdout
    nobody_knows = embedpipe("search", root, "a cat")
    assert nobody_knows.exit_code == 1
    assert "which model made it is not known (unknown). Give --model and --pretrained" in nobody_knows.stderr


def test_chosen_rows_of_it_become_a_data_set_of_ours(written, tmp_path):
    _, root, arrays, _ = written
    report = filter(root, str(tmp_path / "chosen"), FilterConfig(where=("src_index < 2",), materialise=True))
    assert report.kept == 6
    ours, theirs = EmbeddingDataset(str(tmp_path / "chosen")), EmbeddingDataset(root)
    rows = np.flatnonzero(np.array(theirs.metadata["src_index"][:]) < 2)
    assert ours.run.format == "embedpipe/embeddings"
    assert np.array_equal(ours.image[:], arrays["image"][rows])
    assert ours.metadata[:].to_pylist() == theirs.metadata[rows].to_pylist()
    assert not ours.card.known


@pytest.mark.parametrize("name", ["npy", "parquet", "parquet_npy"])
def test_embedding_reader_reads_the_same(name, tmp_path):
    arrays, captions = foreign.rows()
    foreign.LAYOUTS[name][0](tmp_path, arrays, captions)
    where = {"embeddings_folder": str(tmp_path / "emb" if name == "parquet_npy" else tmp_path)}
    if name == "parquet_npy":
        where["metadata_folder"] = str(tmp_path / "meta")
    reader = EmbeddingReader(**where, file_format=name, meta_columns=["caption"] if name != "npy" else None)
    dataset = EmbeddingDataset(str(tmp_path))
    seen = 0
    for embeddings, meta in reader(batch_size=5, show_progress=False):
        assert np.array_equal(embeddings, dataset.image[seen : seen + len(meta)].astype(np.float32))
        if name != "npy":
            assert list(meta["caption"]) == dataset.metadata["caption"][seen : seen + len(meta)].to_pylist()
        seen += len(meta)
    assert seen == 12


def test_parquet_npy_in_two_folders_by_name(tmp_path):
    arrays, captions = foreign.rows()
    foreign.parquet_npy(tmp_path / "both", arrays, captions)
    (tmp_path / "both" / "meta").rename(tmp_path / "meta")
    how = Foreign("parquet_npy", text="emb", metadata=str(tmp_path / "meta"))
    dataset = EmbeddingDataset(str(tmp_path / "both"), how)
    assert dataset.image is None
    assert np.array_equal(dataset.text[:], arrays["image"])
    assert dataset.column("caption").to_pylist() == captions
    (tmp_path / "both" / "embedpipe-foreign.json").write_text('{"metadata": "../meta"}')
    assert EmbeddingDataset(str(tmp_path / "both")).column("caption").to_pylist() == captions


def test_a_note_beside_the_data_says_how_to_read_it(tmp_path):
    arrays, captions = foreign.rows()
    foreign.datacomp(tmp_path, {side: array * 3 for side, array in arrays.items()}, captions)
    with pytest.raises(
        DatasetError, match=r"image rows have norms of (2\.9|3)\S* to 3\S*, not 1\. Write .*normalise.*foreign"
    ):
        build_index(str(tmp_path))
    note = tmp_path / "embedpipe-foreign.json"
    note.write_text(json.dumps({"normalise": True, "model": "ViT-L-14"}))
    dataset = EmbeddingDataset(str(tmp_path))
    assert dataset.card.normalised
    assert np.allclose(np.linalg.norm(dataset.image.read(), axis=1), 1, atol=1e-3)
    assert build_index(str(tmp_path)).rows == 12
    note.write_text(json.dumps({"image": "b32_img"}))
    assert EmbeddingDataset(str(tmp_path)).image.dim == 4
    assert EmbeddingDataset(str(tmp_path)).text is None
    note.write_text(json.dumps({"image": "h14_img"}))
    with pytest.raises(DatasetError, match=r"0f3a\.npz: has no array 'h14_img'.*l14_img"):
        EmbeddingDataset(str(tmp_path))
    for bad, says in (
        ('{"layuot": "npy"}', "no setting 'layuot'. Did you mean layout"),
        ("{", "not JSON"),
        ('{"layout": 3}', "layout"),
    ):
        note.write_text(bad)
        with pytest.raises(DatasetError, match=f"embedpipe-foreign.json: {says}"):
            EmbeddingDataset(str(tmp_path))
    note.write_text('{"layout": "nyp"}')
    with pytest.raises(DatasetError, match="no layout 'nyp'. Did you mean npy"):
        EmbeddingDataset(str(tmp_path))


def test_a_query_takes_the_model_that_the_user_names(tmp_path, tiny_model):
    generator = np.random.default_rng(0)
    np.save(tmp_path / "a.npy", generator.standard_normal((3, 16)).astype(np.float16))
    assert query_encoder(EmbeddingDataset(str(tmp_path)), tiny_model).card.dim == 16
    np.save(tmp_path / "a.npy", generator.standard_normal((3, 8)).astype(np.float16))
    with pytest.raises(RunMismatch, match="its rows have 8 values, those of .* 16"):
        query_encoder(EmbeddingDataset(str(tmp_path)), tiny_model)


# What does not fit is named before a row is handed out.


@pytest.fixture
def laion(tmp_path):
    arrays, captions = foreign.rows()
    foreign.clip_retrieval(tmp_path, arrays, captions)
    return tmp_path


def refused(root, says, how=None):
    with pytest.raises(DatasetError, match=says):
        EmbeddingDataset(str(root), how)


def test_a_missing_file_is_named(laion):
    (laion / "metadata" / "metadata_1.parquet").unlink()
    refused(laion, r"files do not pair: metadata has none of number 1 \(img_emb/img_emb_1\.npy has\)\. Fetch what")
    (laion / "text_emb" / "text_emb_2.npy").unlink()
    refused(laion, r"none of number 1 .* text has none of number 2 \(img_emb/img_emb_2\.npy has\)")


def test_files_are_paired_by_number_not_by_position(laion):
    for folder, suffix in (("img_emb", "npy"), ("text_emb", "npy"), ("metadata", "parquet")):
        (laion / folder / f"{folder}_1.{suffix}").rename(laion / folder / f"{folder}_10.{suffix}")
    dataset = EmbeddingDataset(str(laion))
    captions = dataset.column("caption").to_pylist()
    arrays, _ = foreign.rows()
    for row, caption in enumerate(captions):
        assert np.array_equal(dataset.image[row], arrays["image"][int(caption.split()[1])])
    assert captions[-1] == "caption 6", "10 comes after 2"


def test_other_row_counts_are_named(laion):
    rows = pq.read_table(laion / "metadata" / "metadata_1.parquet")
    pq.write_table(rows.slice(0, 2), laion / "metadata" / "metadata_1.parquet")
    refused(
        laion, r"img_emb_1\.npy has 3 rows but .*text_emb_1\.npy has 3 rows but metadata/metadata_1\.parquet has 2 rows"
    )


def test_a_torn_file_is_named(laion):
    file = laion / "text_emb" / "text_emb_2.npy"
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    refused(laion, rf"text_emb_2\.npy: {len(whole) - 7} bytes, but its header promises 5 rows in {len(whole)}")
    file.write_bytes(b"")
    refused(laion, r"text_emb_2\.npy: cannot be read")
    file.write_bytes(whole)
    (laion / "metadata" / "metadata_0.parquet").write_bytes(b"PAR1")
    refused(laion, r"metadata_0\.parquet: cannot be read")


def test_rows_of_two_models_are_named(laion):
    np.save(laion / "img_emb" / "img_emb_2.npy", np.zeros((5, 8), np.float16))
    refused(
        laion, r"img_emb_0\.npy holds rows of 6 float16, img_emb/img_emb_2\.npy rows of 8 float16: not of one model"
    )
    np.save(laion / "img_emb" / "img_emb_2.npy", np.zeros((5, 6), np.float32))
    refused(laion, r"rows of 6 float32: not of one model")


@pytest.mark.parametrize("array", [np.zeros(5, np.float16), np.zeros((5, 6), np.float64), np.zeros((5, 6), np.int8)])
def test_what_are_no_rows_of_numbers_is_named(laion, array):
    np.save(laion / "img_emb" / "img_emb_2.npy", array)
    refused(laion, r"img_emb_2\.npy: an array of shape .*, not rows of float16 or float32")


def test_two_files_of_one_number_are_named(laion):
    shutil.copy(laion / "img_emb" / "img_emb_1.npy", laion / "img_emb" / "img_emb_01.npy")
    refused(laion, r"img_emb_01\.npy and img_emb/img_emb_1\.npy have the same number")


def test_pairs_by_position_need_equal_counts(tmp_path):
    foreign.parquet_npy(tmp_path, *foreign.rows())
    (tmp_path / "meta" / "y.parquet").unlink()
    refused(tmp_path, r"3 \.npy files, but 2 \.parquet files")


def test_datacomp_files_need_partners(tmp_path):
    foreign.datacomp(tmp_path, *foreign.rows())
    (tmp_path / "3f3a.npz").unlink()
    refused(tmp_path, r"without a partner: 3f3a\.parquet\. Every NAME\.parquet needs a NAME\.npz")


def test_a_torn_npz_is_named(tmp_path):
    foreign.datacomp(tmp_path, *foreign.rows())
    file = tmp_path / "0f3a.npz"
    file.write_bytes(file.read_bytes()[:200])
    refused(tmp_path, r"0f3a\.npz: cannot be read")


def test_lists_of_other_lengths_and_nulls_are_named_when_they_are_read(tmp_path):
    for lists, says in (
        ([[1.0, 2.0], [1.0]], "rows of 1 to 2 numbers, not 2"),
        ([[1.0, 2.0], None], "1 rows are null"),
    ):
        pq.write_table(pa.table({"embedding": pa.array(lists, pa.list_(pa.float32()))}), tmp_path / "a.parquet")
        with pytest.raises(DatasetError, match=rf"a\.parquet: embedding: {says}"):
            EmbeddingDataset(str(tmp_path)).image[:]


def test_float64_lists_are_read_as_float32(tmp_path):
    values = np.random.default_rng(0).standard_normal((4, 3))
    pq.write_table(pa.table({"embedding": pa.array(list(values))}), tmp_path / "a.parquet")
    assert np.array_equal(EmbeddingDataset(str(tmp_path)).image[:], values.astype(np.float32))


def test_what_is_nobodys_says_so(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        EmbeddingDataset(str(tmp_path / "no"))
    refused(tmp_path, r"no embedpipe\.json in it, and no \.npy")
    pq.write_table(pa.table({"caption": ["a"]}), tmp_path / "a.parquet")
    refused(tmp_path, r"a\.parquet has no column of embeddings")


def test_ours_is_not_taken_for_others(encoded):
    refused(encoded.parent, rf"no embedpipe\.json in it, but in a folder of it\. Give {encoded}")
    (encoded / "embedpipe.json").unlink()
    refused(encoded, r"no embedpipe\.json in it")
    assert np.array_equal(
        EmbeddingDataset(str(encoded), Foreign("clip-retrieval")).image[:3],
        np.load(encoded / "img_emb" / "img_emb_00000.npy")[:3],
    )


@pytest.mark.parametrize("layout", ["clip-retrieval", "parquet", "hf", "datacomp"])
def test_an_export_of_ours_is_read_as_the_layout_that_it_is(encoded, tmp_path, layout):
    out = str(tmp_path / "out")
    export(str(encoded), out, ExportConfig(layout))
    data, ours = EmbeddingDataset(out), EmbeddingDataset(str(encoded))
    assert data.card == ours.card, "which the export records"
    assert np.array_equal(data.image[:], ours.image[:])
    assert data.column("caption").to_pylist() == ours.column("caption").to_pylist()


def test_an_aligned_export_is_refused_for_its_rows_of_zeros(encoded, tmp_path):
    out = str(tmp_path / "out")
    export(str(encoded), out, ExportConfig("aligned", index_width=5))
    with pytest.raises(InputError, match=r"to aligned, in whose arrays rows of zeros .* Give .*emb"):
        EmbeddingDataset(out)


def test_what_two_unknown_models_made_does_not_mix(tmp_path):
    for seed in (0, 1):
        foreign.npy(tmp_path / str(seed), *foreign.rows(seed))
    one, other = (EmbeddingDataset(str(tmp_path / name)).card.fingerprint() for name in ("0", "1"))
    moved = (tmp_path / "0").rename(tmp_path / "elsewhere")
    assert one != other
    assert EmbeddingDataset(str(moved)).card.fingerprint() == one


def test_many_threads_read_headers_at_once(tmp_path):
    """Python 3.11's literal_eval, with which numpy reads headers, is not safe there."""
    for number in range(300):
        np.save(tmp_path / f"{number:03d}.npy", np.full((2, 3), number, np.float16))
    for _ in range(5):
        assert len(EmbeddingDataset(str(tmp_path))) == 600
    dataset = EmbeddingDataset(str(tmp_path))
    with ThreadPoolExecutor(16) as pool:
        firsts = list(pool.map(lambda shard: float(dataset.array(shard, "image")[0, 0]), range(300)))
    assert firsts == list(range(300))
