"""Exports: the contract of every layout (whole or not at all, resumable, nothing mixed), and what each promises."""

import dataclasses
import errno
import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

import embedpipe
from embedpipe import files, manifest
from embedpipe.encode.job import encode
from embedpipe.errors import (
    DatasetError,
    DiskFull,
    EmptyInput,
    InputError,
    MissingExtra,
    OutputBusy,
    OutputUnwritable,
    RunMismatch,
)
from embedpipe.export import EXPORTS, ExportConfig, journal
from embedpipe.export.datacomp import short_name
from embedpipe.export.dataset_card import yaml_quoted
from embedpipe.export.hf import parse_shares
from embedpipe.export.job import plan_export
from embedpipe.load import EmbeddingDataset
from embedpipe.load.split import splits
from embedpipe.lock import exclusive
from embedpipe.uid import uid
from tests import embeddings, outside, shards


def data_set(folder, count=30, parts=4, **more):
    rng = np.random.default_rng(0)
    return embeddings.write_dataset(folder, rng.normal(size=(count, 8)), rng.normal(size=(count, 8)), parts, **more)


@pytest.fixture(scope="module")
def emb(tmp_path_factory):
    return data_set(tmp_path_factory.mktemp("data") / "emb")


def config(to, **options):
    return ExportConfig(to, **({"index_width": 6} if to == "aligned" else {}), **options)


def contents(out, to):
    """All files and their bytes; of Lance, which names files at random, what it reads back."""
    tree = shards.tree(out, without=(".embedpipe/.lock",))
    if to != "lance":
        return {name: data for name, data in tree.items() if "/manifest/" not in name}
    return outside.lance(out)


@pytest.mark.parametrize("to", EXPORTS)
def test_run_again_it_does_nothing_and_changes_nothing(tmp_path, emb, to):
    out = str(tmp_path / "out")
    first = embedpipe.export(emb, out, config(to))
    before = {path: path.stat().st_mtime_ns for path in Path(out).rglob("*") if ".embedpipe" not in str(path)}
    again = embedpipe.export(emb, out, config(to))
    assert (first.already, again.already, again.parts, again.rows) == (0, 4, 4, 30)
    assert {p: p.stat().st_mtime_ns for p in Path(out).rglob("*") if ".embedpipe" not in str(p)} == before


@pytest.mark.parametrize("to", EXPORTS)
def test_stopped_at_any_file_and_run_again_it_is_the_same(tmp_path, emb, to, monkeypatch):
    undisturbed = str(tmp_path / "whole")
    embedpipe.export(emb, undisturbed, config(to))
    wanted = contents(undisturbed, to)
    out = str(tmp_path / "out")
    writing, stops, runs = files.writing, iter(range(2, 99)), 0
    budget = [1]

    def failing(location):
        budget[0] -= 1
        if budget[0] < 0:
            raise KeyboardInterrupt
        return writing(location)

    while True:
        with monkeypatch.context() as patched:
            patched.setattr(files, "writing", failing)
            try:
                embedpipe.export(emb, out, config(to))
                break
            except KeyboardInterrupt:
                runs, budget[0] = runs + 1, next(stops)
    assert runs >= 2
    assert contents(out, to) == wanted


@pytest.mark.parametrize("to", EXPORTS)
def test_a_file_that_vanished_or_was_cut_is_written_again_and_leftovers_go(tmp_path, emb, to):
    out = tmp_path / "out"
    embedpipe.export(emb, str(out), config(to))
    wanted = contents(str(out), to)
    entries = list(journal.committed_parts(str(out)).values())
    gone, cut = (out / entries[i].files[0].path for i in (1, 2))
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    if to != "lance":  # which has its own names for what is not whole
        (cut.parent / f"{cut.name}.tmp-1-abc").write_bytes(b"left by a killed run")
    assert plan_export(emb, str(out), config(to)).to_write == 2
    assert embedpipe.export(emb, str(out), config(to)).already == 2
    assert contents(str(out), to) == wanted


@pytest.mark.parametrize("to", EXPORTS)
def test_an_output_of_other_options_rows_or_data_is_refused(tmp_path, emb, to):
    out = str(tmp_path / "out")
    embedpipe.export(emb, out, config(to))
    with pytest.raises(RunMismatch, match="dtype was .*float16.*now .*float32.*Give another output folder"):
        embedpipe.export(emb, out, config(to, dtype="float32"))
    (tmp_path / "keys.txt").write_text("000003\n000011\n")
    with pytest.raises(RunMismatch, match=r"other rows, or another state .*00000.tar differs"):
        embedpipe.export(emb, out, config(to, keys=str(tmp_path / "keys.txt")))
    with pytest.raises(RunMismatch, match="other rows, or another state"):
        embedpipe.export(data_set(tmp_path / "more", count=31, parts=5), out, config(to))
    with pytest.raises(RunMismatch, match="another encoder: weights_sha256"):
        embedpipe.export(data_set(tmp_path / "other", weights="1" * 64), out, config(to))


@pytest.mark.parametrize("to", EXPORTS)
def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, emb, to):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(RunMismatch, match=r"photos: holds something else \(cat.jpg\). Give a new or empty"):
        embedpipe.export(emb, str(tmp_path / "photos"), config(to))
    with pytest.raises(RunMismatch, match="holds something else"):
        embedpipe.export(emb, emb, config(to))
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.jpg"]
    with exclusive(str(tmp_path / "busy" / ".embedpipe")), pytest.raises(OutputBusy):
        embedpipe.export(emb, str(tmp_path / "busy"), config(to))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((OutputUnwritable, RunMismatch), match=r"file: .*Give a"):
        embedpipe.export(emb, str(tmp_path / "file"), config(to))


@pytest.mark.parametrize("to", EXPORTS)
def test_a_torn_missing_or_nonfinite_array_is_named(tmp_path, to):
    place = tmp_path / "emb"
    emb = data_set(place)
    array = place / "img_emb" / "img_emb_00001.npy"
    whole = array.read_bytes()
    array.write_bytes(whole[:-3])
    with pytest.raises(DatasetError, match=r"img_emb_00001.npy: \d+ bytes, but its manifest says.*embedpipe verify"):
        embedpipe.export(emb, str(tmp_path / "out"), config(to))
    array.unlink()
    with pytest.raises(DatasetError, match=r"img_emb_00001.npy.*embedpipe verify"):
        embedpipe.export(emb, str(tmp_path / "out"), config(to))
    array.write_bytes(whole)
    metadata = place / "metadata" / "metadata_00002.parquet"
    table = metadata.read_bytes()
    metadata.write_bytes(table[:200])
    with pytest.raises(
        DatasetError, match=r"metadata_00002.parquet: 200 bytes, but its manifest says.*embedpipe verify"
    ):
        embedpipe.export(emb, str(tmp_path / "out"), config(to))
    metadata.write_bytes(table)
    rows = np.load(place / "text_emb" / "text_emb_00003.npy")
    rows[3, 4] = np.nan
    np.save(place / "text_emb" / "text_emb_00003.npy", rows)
    shards.record_anew(place, 3, place / "text_emb" / "text_emb_00003.npy")
    with pytest.raises(DatasetError, match=r"00003.tar, row 3 \(key 000026\): its text embedding .*not finite.*`keys`"):
        embedpipe.export(emb, str(tmp_path / "again"), config(to))
    assert len(journal.committed_parts(str(tmp_path / "again"))) == 3


@pytest.mark.parametrize("to", EXPORTS)
@pytest.mark.parametrize(("number", "error"), [(errno.EROFS, OutputUnwritable), (errno.ENOSPC, DiskFull)])
def test_a_disk_that_cannot_be_written_is_told_with_a_remedy(tmp_path, emb, to, number, error, monkeypatch):
    def refuse(*_, **__):
        raise OSError(number, "no", "somewhere")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(error, match=r"out.*\. (Give another output folder|What is committed is whole)"):
        embedpipe.export(emb, str(tmp_path / "out"), config(to))


def test_lance_tells_what_the_system_says(tmp_path, emb, monkeypatch):
    from embedpipe.export.lance import _telling

    with pytest.raises(DiskFull, match=r"embeddings.lance: no space"), _telling("out"):
        raise OSError("LanceError(IO): No space left on device (os error 28), rust/lance-io/src/object_store.rs")
    with pytest.raises(OutputUnwritable, match="Permission denied.*Give another"), _telling("out"):
        raise OSError("LanceError(IO): something (os error 13)")
    monkeypatch.setitem(__import__("sys").modules, "lance", None)
    with pytest.raises(MissingExtra, match=r"pylance. pip install 'embedpipe\[lance\]'"):
        embedpipe.export(emb, str(tmp_path / "out"), config("lance"))
    assert not (tmp_path / "out").exists()


def test_what_means_nothing_is_refused_with_what_would(tmp_path, emb):
    out = str(tmp_path / "out")
    with pytest.raises(InputError, match="no layout 'datacom' to export to. Did you mean datacomp"):
        embedpipe.export(emb, out, ExportConfig("datacom"))
    with pytest.raises(InputError, match="`splits` means nothing to `to='lance'`. It is for hf"):
        embedpipe.export(emb, out, ExportConfig("lance", splits="valid=0.1"))
    with pytest.raises(InputError, match="`text_tokens` means nothing to `to='aligned'`. It is for hf and parquet"):
        embedpipe.export(emb, out, ExportConfig("aligned", text_tokens=True))
    with pytest.raises(DatasetError, match="no text tokens"):
        embedpipe.export(emb, out, ExportConfig("parquet", text_tokens=True))
    with pytest.raises(InputError, match="`model_name='a b'`"):
        embedpipe.export(emb, out, ExportConfig("datacomp", model_name="a b"))
    (tmp_path / "none.txt").write_text("")
    with pytest.raises(EmptyInput, match="no rows to export.*`keys`"):
        embedpipe.export(emb, out, ExportConfig("hf", keys=str(tmp_path / "none.txt")))
    (tmp_path / "strange.txt").write_text("no-such-key\n")
    with pytest.raises(InputError, match="no-such-key"):
        embedpipe.export(emb, out, ExportConfig("hf", keys=str(tmp_path / "strange.txt")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", [name for name in EXPORTS if name != "lance"])
def test_object_stores_get_the_same_files(tmp_path, emb, to):
    remote = f"memory://export-{to}"
    embedpipe.export(emb, remote, config(to))
    embedpipe.export(emb, str(tmp_path / "out"), config(to))
    for name, data in contents(str(tmp_path / "out"), to).items():
        if ".embedpipe" not in name:
            assert files.read_bytes(f"{remote}/{name}") == data
    assert embedpipe.export(emb, remote, config(to)).already == 4


@pytest.mark.parametrize("to", ["hf", "parquet", "lance", "datacomp"])
def test_no_column_is_lost_to_one_of_the_layout(tmp_path, to):
    own = {"image_embedding": [f"i{i}" for i in range(30)], "text": [f"t{i}" for i in range(30)]}
    emb = data_set(tmp_path / "emb", columns=own)
    embedpipe.export(emb, str(tmp_path / "out"), config(to))
    if to == "lance":
        import lance

        table = lance.dataset(f"{tmp_path}/out/embeddings.lance").to_table()
    else:
        table = pq.read_table(sorted((tmp_path / "out").rglob("*.parquet"))[0])
    name = {"datacomp": "text_"}.get(to, "image_embedding_")
    assert table[name].to_pylist()[:3] == [f"{name[0]}{i}" for i in range(3)]
    assert len(set(table.column_names)) == len(table.column_names)


# What each layout promises.


def test_splits_hold_every_row_once_and_agree_with_valid_share(tmp_path, emb):
    import datasets

    out = str(tmp_path / "out")
    embedpipe.export(emb, out, ExportConfig("hf", splits="valid=0.2, test=0.1"))
    found = datasets.load_dataset(out, cache_dir=str(tmp_path / "cache"))
    keys = {name: split["key"][:] for name, split in found.items()}
    assert sorted(itertools.chain(*keys.values())) == [f"{i:06d}" for i in range(30)]
    dataset = EmbeddingDataset(emb)
    held_out = np.array(dataset.keys())[splits(dataset, None, 0.2) == "valid"]
    assert keys["valid"] == held_out.tolist()
    for name, split in found.items():
        numbers = [path.name for path in (tmp_path / "out" / "data").iterdir() if path.name.startswith(name)]
        assert sorted(numbers) == [f"{name}-{i:05d}-of-{len(numbers):05d}.parquet" for i in range(len(numbers))]
        assert all(
            f"caption {int(key)}" == caption for key, caption in zip(split["key"], split["caption"], strict=True)
        )


def test_an_export_of_an_earlier_version_goes_on_by_its_rule(tmp_path, emb):
    out = tmp_path / "out"
    embedpipe.export(emb, str(out), ExportConfig("hf", splits="valid=0.2"))
    run = manifest.read_run(str(out / ".embedpipe"))
    options = {name: value for name, value in run.options.items() if name != "split_by"}
    manifest.write_run(str(out / ".embedpipe"), dataclasses.replace(run, options=options))
    plan = plan_export(emb, str(out), ExportConfig("hf", splits="valid=0.2"))
    assert (plan.to_write, "split_by" in plan.options) == (0, False)
    assert embedpipe.export(emb, str(out), ExportConfig("hf", splits="valid=0.2")).already == plan.parts


def test_the_dataset_card_is_valid_says_the_truth_and_is_not_written_over(tmp_path, emb):
    import datasets

    out = tmp_path / "out"
    embedpipe.export(emb, str(out), ExportConfig("hf", splits="test=0.3"))
    text = (out / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "unknown"
    assert front["size_categories"] == ["n<1K"]
    info = front["dataset_info"]
    counts = {split["name"]: split["num_examples"] for split in info["splits"]}
    assert sum(counts.values()) == 30
    found = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in found.items()} == counts
    features = found["train"].features
    assert (features["image_embedding"].length, features["image_embedding"].feature.dtype) == (8, "float16")
    assert [entry["name"] for entry in info["features"]] == list(features)
    assert "made-up random" in text
    (out / "README.md").write_text("mine now")
    embedpipe.export(emb, str(out), ExportConfig("hf", splits="test=0.3"))
    assert (out / "README.md").read_text() == "mine now"


def test_the_card_of_a_local_model_does_not_tell_its_path(tmp_path, encoded_once):
    embedpipe.export(encoded_once[1], str(tmp_path / "out"), ExportConfig("hf"))
    text = (tmp_path / "out" / "README.md").read_text()
    assert EmbeddingDataset(encoded_once[1]).card.model not in text
    assert "| model | tiny |" in text


@pytest.mark.parametrize(
    "name", ["plain", 'q"uote', "tab\there", "line\nbreak", "ü 😀", "\x7f\x85\x00", "a: b #c", "-"]
)
def test_any_column_name_survives_yaml(name):
    assert yaml.safe_load(f"- name: {yaml_quoted(name)}") == [{"name": name}]


@pytest.mark.parametrize("text", ["valid", "valid=0", "valid=1", "train=0.5", "a b=0.1", "a=0.6,b=0.5", "a=0.1,a=0.1"])
def test_splits_that_cannot_be_are_refused(text):
    with pytest.raises(InputError, match="`splits"):
        parse_shares(text)


def test_a_split_without_rows_is_told_before_anything_is_written(tmp_path, emb):
    with pytest.raises(InputError, match="split test: not one of 30 rows"):
        embedpipe.export(emb, str(tmp_path / "out"), ExportConfig("hf", splits="test=0.0001"))
    assert not (tmp_path / "out").exists()


def test_text_tokens_come_along(tmp_path, encode_config):
    import datasets

    source = shards.write_shards(tmp_path / "in", 2, 4)
    encode(source, str(tmp_path / "emb"), encode_config(stage={"text_tokens": True}))
    dataset = EmbeddingDataset(str(tmp_path / "emb"))
    for to in ("hf", "parquet"):
        embedpipe.export(str(tmp_path / "emb"), str(tmp_path / to), ExportConfig(to, text_tokens=True))
    found = datasets.load_dataset(str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"))["train"]
    table = pd.read_parquet(tmp_path / "parquet")
    for row in range(8):
        assert np.array_equal(np.array(found[row]["text_tokens"], np.float16), dataset.text_tokens[row])
        assert np.array_equal(np.stack(table["text_tokens"][row]), dataset.text_tokens[row])


@pytest.mark.parametrize(
    ("model", "short"),
    [
        ("ViT-B-32", "b32"),
        ("ViT-L-14", "l14"),
        ("ViT-B-32-quickgelu", "b32"),
        ("ViT-bigG-14", "bigg14"),
        ("coca_ViT-L-14", "coca_vit_l_14"),
        ("hf-hub:org/My CLIP", "my_clip"),
        ("/home/me/run 3/", "run_3"),
        ("///", "clip"),
    ],
)
def test_models_are_called_as_datacomp_calls_them(model, short):
    assert short_name(model) == short


def test_datacomp_rows_have_its_columns_and_uids_of_32_digits(tmp_path):
    mine = "0123456789abcdef" * 2
    columns = {"uid": [mine, "not a uid", *[None] * 28], "original_width": ["640"] * 30}
    emb = data_set(tmp_path / "emb", columns=columns, similarity=np.linspace(0, 1, 30))
    embedpipe.export(emb, str(tmp_path / "out"), ExportConfig("datacomp", model_name="l14"))
    table = pd.read_parquet(tmp_path / "out" / "00000000.parquet")
    assert table.columns[:6].tolist() == [
        "uid",
        "url",
        "text",
        "original_width",
        "original_height",
        "clip_l14_similarity_score",
    ]
    assert table["uid"][0] == mine
    assert table["uid"][1] == uid("00000.tar#000001", "caption 1")
    assert table["uid"].map(lambda text: int(text, 16) < 2**128 and len(text) == 32).all()
    assert "sha256" not in table.columns
    assert np.load(tmp_path / "out" / "00000000.npz")["l14_img"].dtype == np.float16
    assert table["uid"].is_unique  # rows without a url are told apart by where they come from


def test_clip_retrieval_numbers_files_as_it_does_itself(tmp_path):
    emb = data_set(tmp_path / "emb", count=24, parts=12)
    embedpipe.export(emb, str(tmp_path / "out"), ExportConfig("clip-retrieval"))
    for folder, suffix in (("img_emb", "npy"), ("text_emb", "npy"), ("metadata", "parquet")):
        names = sorted(path.name for path in (tmp_path / "out" / folder).iterdir())
        assert names == [f"{folder}_{i:02d}.{suffix}" for i in range(12)]


def aligned_input(folder, encode_config, bad=(2, 6)):
    """Tars as img2dataset writes them, some samples of which do not decode: the encoded data set."""
    for tar, count in (("00000", 5), ("00002", 7)):
        members = []
        for i in range(count):
            key = f"{tar}{i:04d}"
            members += shards.sample(int(tar) * 100 + i, key, picture=b"no picture" if i in bad else None)
        shards.write_tar(folder / "in" / f"{tar}.tar", members)
    shards.write_tar(folder / "in" / "00003.tar", shards.sample(0, "000030000", picture=b"no"))
    encode(str(folder / "in"), str(folder / "emb"), encode_config())
    return str(folder / "emb")


def test_aligned_rows_are_the_samples_places_and_gaps_are_zero(tmp_path, encode_config):
    emb = aligned_input(tmp_path, encode_config)
    report = embedpipe.export(emb, str(tmp_path / "out"), ExportConfig("aligned"))
    assert "index_width=4" in report.opened_by
    dataset = EmbeddingDataset(emb)
    rows = dict(zip(dataset.keys(), dataset.image[:], strict=True))
    assert sorted(path.name for path in (tmp_path / "out" / "img_emb").iterdir()) == [
        "img_emb_00000.npy",
        "img_emb_00002.npy",
    ]
    for tar, count in (("00000", 5), ("00002", 7)):
        found = np.load(tmp_path / "out" / "img_emb" / f"img_emb_{tar}.npy")
        assert len(found) == count  # the last sample of the second tar is a gap, and the loader asks for it
        for i in range(count):
            wanted = rows.get(f"{tar}{i:04d}", np.zeros(16, np.float16))
            assert np.array_equal(found[i], wanted), (tar, i)


@pytest.mark.parametrize(
    ("tars", "width", "told"),
    [
        ({"1.tar": [f"1{i:03d}" for i in range(12)]}, 1, "keys 1000 and 1010 end in the same 1 digits.*larger"),
        ({"1.tar": ["1199999"]}, None, "200,000 rows for 1 samples, by the last 6 digits"),
        ({"1.tar": ["cat"]}, None, "cannot tell which digits of the key 'cat'.*`index_width`"),
        ({"1.tar": ["cat"]}, 4, "key 'cat' does not end in 4 digits"),
        ({"photos.tar": ["00000"]}, 5, "input shard photos.tar: .*numbered tars"),
        ({"0.tar": ["00000"], "00.tar": ["00000"]}, 5, "0.tar and 00.tar have the same number"),
    ],
)
def test_aligned_refuses_what_the_loader_would_misread(tmp_path, encode_config, tars, width, told):
    for name, keys in tars.items():
        members = [member for i, key in enumerate(keys) for member in shards.sample(i, key)]
        shards.write_tar(tmp_path / "in" / name, members)
    encode(str(tmp_path / "in"), str(tmp_path / "emb"), encode_config())
    with pytest.raises(InputError, match=told):
        embedpipe.export(str(tmp_path / "emb"), str(tmp_path / "out"), ExportConfig("aligned", index_width=width))


def test_aligned_refuses_an_embedding_that_would_pass_for_a_gap(tmp_path, encode_config):
    emb = aligned_input(tmp_path, encode_config)
    zeros = np.load(f"{emb}/img_emb/img_emb_00000.npy")
    zeros[1] = 0
    np.save(f"{emb}/img_emb/img_emb_00000.npy", zeros)
    shards.record_anew(emb, 0, f"{emb}/img_emb/img_emb_00000.npy")
    with pytest.raises(DatasetError, match="image embedding of key 000000001 is all zeros"):
        embedpipe.export(emb, str(tmp_path / "out"), ExportConfig("aligned"))


def test_the_run_card_says_what_was_exported(tmp_path, emb):
    embedpipe.export(emb, str(tmp_path / "out"), ExportConfig("aligned", index_width=6))
    card = json.loads((tmp_path / "out" / ".embedpipe" / "embedpipe.json").read_text())
    assert (card["format"], card["source"]) == ("embedpipe/export", emb)
    assert card["options"] == {"to": "aligned", "dtype": "float16", "text_tokens": False, "index_width": 6}
