"""filter keeps the rows that meet all conditions, tells what each would drop, refuses what it does not understand."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedpipe.curate import DedupConfig, FilterConfig, dedup, filter, plan_filter
from embedpipe.encode.job import encode
from embedpipe.errors import DatasetError, InputError, OutputBusy, OutputUnwritable, RunMismatch
from embedpipe.load import EmbeddingDataset
from embedpipe.lock import exclusive
from embedpipe.subset import UID, read_subset, write_subset
from tests import embeddings, shards

ROWS = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    similarity = rng.normal(0.3, 0.1, ROWS).round(3)
    similarity[7] = np.nan
    return embeddings.write_dataset(
        tmp_path_factory.mktemp("filter") / "emb", rng.normal(size=(ROWS, 6)), rng.normal(size=(ROWS, 6)), 3,
        columns={"label": [f"l{i % 3}" for i in range(ROWS)], "uid": [f"{i:032x}" for i in range(ROWS)]},
        similarity=similarity,
    )  # fmt: skip


def kept(out):
    return pq.read_table(f"{out}/kept.parquet")["row"].to_pylist()


@settings(max_examples=25)
@given(
    least=st.none() | st.floats(-1, 1),
    label=st.none() | st.sampled_from(["l0", "l1", "none"]),
    top=st.none() | st.floats(0.01, 1),
    named=st.none() | st.sets(st.integers(0, ROWS - 1)),
    left_out=st.none() | st.sets(st.integers(0, ROWS - 1)),
)
def test_conditions_are_what_a_loop_over_the_rows_says(data, tmp_path_factory, least, label, top, named, left_out):
    folder = tmp_path_factory.mktemp("keys")
    dataset = EmbeddingDataset(data)
    rows = dataset.rows(range(ROWS), ("similarity", "label"))
    files = []
    for name, chosen in (("named", named), ("left", left_out)):
        write_subset(dataset, str(folder / name), np.array(sorted(chosen or ()), np.int64))
        (folder / name).rename(folder / f"{name}.parquet")
        files.append((str(folder / f"{name}.parquet"),) if chosen is not None else ())
    options = {"min_similarity": least, "where": (f"label = '{label}'",) if label else (), "top": top}
    if (least, label, top, named, left_out) == (None,) * 5:
        return
    config = FilterConfig(**options, keys=files[0], not_keys=files[1])
    ranked = sorted(
        (i for i in range(ROWS) if not np.isnan(rows[i]["similarity"])), key=lambda i: -rows[i]["similarity"]
    )
    best = set(ranked[: round((top or 0) * ROWS)])
    tests = [
        *([lambda i: rows[i]["similarity"] >= np.float32(least)] if least is not None else []),
        *([lambda i: rows[i]["label"] == label] if label else []),
        *([lambda i: i in best] if top is not None else []),
        *([lambda i: i in named] if named is not None else []),
        *([lambda i: i not in left_out] if left_out is not None else []),
    ]
    expected = [i for i in range(ROWS) if all(test(i) for test in tests)]
    report = plan_filter(data, config)
    assert (report.rows, report.kept, report.dropped) == (ROWS, len(expected), ROWS - len(expected))
    out = str(folder / "out")
    assert filter(data, out, config) == report
    assert kept(out) == expected
    drops = sorted(sum(not test(i) for i in range(ROWS)) for test in tests)
    assert sorted(entry.drops for entry in report.conditions) == drops


def test_what_it_leaves_in_its_output(data, tmp_path):
    out = tmp_path / "out"
    report = filter(data, str(out), FilterConfig(min_similarity=0.3, where=("label = 'l1'", "caption_words = 2")))
    assert {path.name for path in out.iterdir()} == {
        ".lock",
        "kept.parquet",
        "subset.npy",
        "examples.html",
        "report.json",
    }
    told = json.loads((out / "report.json").read_text())
    assert told["kept"] == report.kept == len(kept(out))
    assert told["conditions"][0]["condition"] == "label = 'l1'"
    (similar,) = (entry for entry in report.conditions if entry.condition == "similarity >= 0.3")
    assert similar.unknown == 1
    assert np.array_equal(read_subset(EmbeddingDataset(data), str(out)), kept(out))
    uids = np.load(out / "subset.npy")
    assert (uids.dtype, uids["f1"].tolist()) == (UID, kept(out))
    page = (out / "examples.html").read_text()
    assert page.count("<h2>") == 3
    assert "no picture" in page


def test_derived_columns(data, tmp_path, encode_config):
    config = FilterConfig(where=("caption_length = 9", "aspect_ratio is null", "caption_words = 2"))
    assert plan_filter(data, config).kept == 10
    source = shards.write_shards(tmp_path / "in", 1, 4)  # 48 × 40
    encode(source, str(tmp_path / "emb"), encode_config())
    assert plan_filter(str(tmp_path / "emb"), FilterConfig(where=("aspect_ratio = 1.2 and width = 48",))).kept == 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"where": ("widht > 3",)}, "no column 'widht'. Did you mean width"),
        ({"where": ("width >",)}, "something is missing"),
        ({"where": ("score > 3",)}, "no column 'score'"),
        ({"top": 0.5, "by": "lable"}, "`by='lable'`: no such column. Did you mean label"),
        ({"top": 0.5, "by": "label"}, "`by='label'`: is string, not a number"),
        ({"top": 0.5, "by": "score"}, "`by='score'` needs a head"),
        ({"keys": ("nowhere.parquet",)}, "nowhere.parquet: no such file"),
    ],
)
def test_what_is_not_understood_is_said_before_anything_is_written(data, tmp_path, config, message):
    with pytest.raises(InputError, match=message):
        filter(data, str(tmp_path / "out"), FilterConfig(**config))
    assert not (tmp_path / "out" / "report.json").exists()
    assert not (tmp_path / "out" / "kept.parquet").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "nothing to filter by"),
        ({"top": 0}, "must be above 0"),
        ({"top": 1.5}, "at most 1"),
        ({"min_score": 3}, "`min_score` needs a head"),
        ({"min_similarity": 0.1, "head_model": "x"}, "`head_model` needs `head`"),
    ],
)
def test_contradictions(config, message):
    with pytest.raises(InputError, match=message):
        FilterConfig(**config)


def test_keys_that_are_not_there(data, tmp_path):
    pq.write_table(pa.table({"key": ["000003", "elsewhere"]}), tmp_path / "keys.parquet")
    keys = (str(tmp_path / "keys.parquet"),)
    with pytest.raises(InputError, match="1 of 2 keys are not in .*elsewhere.*`allow_missing=True`"):
        plan_filter(data, FilterConfig(keys=keys))
    report = plan_filter(data, FilterConfig(keys=keys, allow_missing=True))
    assert (report.kept, report.conditions[0].missing) == (1, 1)


def test_bad_input_and_bad_places(data, encoded, tmp_path):
    config = FilterConfig(min_similarity=-1)
    with pytest.raises(InputError, match="nowhere"):
        filter(str(tmp_path / "nowhere"), str(tmp_path / "out"), config)
    with exclusive(str(tmp_path / "busy")), pytest.raises(OutputBusy):
        filter(data, str(tmp_path / "busy"), config)
    with pytest.raises(RunMismatch, match="is the data set itself"):
        filter(data, data, config)
    with pytest.raises(RunMismatch, match="holds embedpipe/embeddings already"):
        filter(data, str(encoded), config)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputUnwritable):
        filter(data, str(tmp_path / "file"), config)
    (tmp_path / "emb" / "metadata" / "metadata_00001.parquet").write_bytes(b"torn")
    with pytest.raises(DatasetError, match="metadata_00001.parquet: 4 bytes, but its manifest says .*verify"):
        filter(str(encoded), str(tmp_path / "out"), config)


def test_threads_make_no_difference(data, tmp_path):
    for threads in (1, 3):
        filter(data, str(tmp_path / str(threads)), FilterConfig(top=0.4, threads=threads))
    assert kept(tmp_path / "1") == kept(tmp_path / "3")


def test_a_folder_of_dedup_says_what_it_would_leave_out(tmp_path):
    """Its kept.parquet was taken for the rows to leave out, which are those that stay."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(12, 8))
    image[6:] = image[:6]
    place = embeddings.write_dataset(tmp_path / "emb", image, image)
    dedup(place, str(tmp_path / "dedup"), DedupConfig(pairs=0))
    folder = str(tmp_path / "dedup")
    for job in (plan_filter, lambda path, config: filter(path, str(tmp_path / "out"), config)):
        with pytest.raises(InputError, match=r"Name .*kept.parquet to leave out what it kept, or .*dropped.parquet"):
            job(place, FilterConfig(not_keys=(folder,)))
    left = plan_filter(place, FilterConfig(not_keys=(f"{folder}/dropped.parquet",)))
    assert (left.kept, left.dropped) == (6, 6)
    assert plan_filter(place, FilterConfig(keys=(folder,))).kept == 6
    assert plan_filter(place, FilterConfig(not_keys=(f"{folder}/kept.parquet",))).kept == 6
