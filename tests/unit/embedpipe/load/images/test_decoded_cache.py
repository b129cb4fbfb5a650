"""Pictures decoded once for training: the right rows, kept whole, made anew when they must be."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from embedpipe.clip_model.encoder_card import PreprocessSpec
from embedpipe.errors import EmptyInput, InputError
from embedpipe.images.decode import decode
from embedpipe.load.images import decoded_cache as module
from embedpipe.load.images.decoded_cache import PictureOptions, cached_rows, open_pictures, pictures_are_decoded
from tests import costly, shards

SPEC = PreprocessSpec((16, 16), (0.5,) * 3, (0.5,) * 3, "bicubic", "shortest", 0)
OPTIONS = PictureOptions(SPEC, split_column="label")


@pytest.fixture
def data(tmp_path):
    return shards.write_shards(tmp_path / "data", shards=2, per_shard=5)


@pytest.fixture
def cache(tmp_path):
    return str(tmp_path / "cache")


@pytest.fixture
def decoded(monkeypatch):
    """Counts the pictures that are decoded."""
    calls = []
    monkeypatch.setattr(module, "guarded_decode", lambda *args: calls.append(1) or decode(*args))
    return calls


def test_row_i_is_the_same_sample_everywhere(data, cache):
    found = open_pictures(data, cache, OPTIONS)
    assert found.pixels.shape == (10, 3, 16, 16)
    assert found.captions == tuple(shards.caption(i) for i in range(10))
    assert found.splits.tolist() == [f"l{i % 3}" for i in range(10)]
    for i in range(10):
        assert np.array_equal(found.pixels[i], decode(shards.jpeg(i), SPEC).pixels.numpy())
    assert found.rejects == {}


def test_costly_pictures_are_rejects(data, cache):
    bomb = costly.tiff_of_one_tile(20_000, 20_000)
    shards.write_tar(Path(data) / "9.tar", [("bomb.tif", bomb), ("bomb.txt", b"caption"), *shards.sample(90)])
    found = open_pictures(data, cache, replace(OPTIONS, max_pixels=1_000_000))
    assert len(found.pixels) == 11
    assert found.rejects == {"too_costly_memory": 1}


def test_they_are_decoded_once(data, cache, decoded):
    first = open_pictures(data, cache, OPTIONS)
    again = open_pictures(data, cache, OPTIONS)
    assert len(decoded) == 10
    assert np.array_equal(first.pixels, again.pixels)
    assert (first.captions, first.fingerprint) == (again.captions, again.fingerprint)


def test_a_hash_of_the_key_splits_where_no_column_does(data, cache):
    splits = open_pictures(data, cache, PictureOptions(SPEC, valid_share=0.5)).splits
    assert set(splits) == {"train", "valid"}


def test_the_fingerprint_is_of_bytes_and_options_not_of_times(data, cache, decoded):
    before = open_pictures(data, cache, OPTIONS).fingerprint
    tar = Path(data) / "00000.tar"
    content = tar.read_bytes()
    tar.unlink()
    tar.write_bytes(content)
    assert open_pictures(data, cache, OPTIONS).fingerprint == before
    assert len(decoded) == 20
    shards.write_tar(tar, shards.samples(5, first=50))
    assert open_pictures(data, cache, OPTIONS).fingerprint != before
    assert open_pictures(data, cache, OPTIONS).captions[0] == shards.caption(50)
    other = PictureOptions(SPEC, split_column="number")
    assert open_pictures(data, cache, other).splits[0] == "50"


@pytest.mark.parametrize("name", ["pixels.bin", "samples.parquet"])
def test_a_file_that_is_not_whole_is_made_again(data, cache, name):
    before = np.array(open_pictures(data, cache, OPTIONS).pixels)
    path = Path(cache) / name
    path.write_bytes(path.read_bytes()[:-1])
    assert np.array_equal(open_pictures(data, cache, OPTIONS).pixels, before)


def test_decoding_that_was_cut_off_leaves_nothing_to_be_taken_for_whole(data, cache, monkeypatch):
    open_pictures(data, cache, OPTIONS)
    shards.write_tar(Path(data) / "00001.tar", shards.samples(5, first=70))

    def fail(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "guarded_decode", fail)
        with pytest.raises(KeyboardInterrupt):
            open_pictures(data, cache, OPTIONS)
    assert not (Path(cache) / "pictures.json").exists()
    assert open_pictures(data, cache, OPTIONS).captions[5] == shards.caption(70)


def test_samples_that_do_not_pass_are_counted(tmp_path, cache):
    members = [*shards.samples(3), *shards.sample(3, picture=b"no picture"), *shards.sample(4)[:2]]
    data = shards.write_tar(tmp_path / "data" / "0.tar", members)
    found = open_pictures(data, cache, OPTIONS)
    assert len(found) == len(found.pixels) == 3
    assert found.rejects == {"caption_missing": 1, "image_undecodable": 1}
    assert open_pictures(data, cache, OPTIONS).rejects == found.rejects


def test_a_split_field_that_is_not_there_names_the_near_one(data, cache):
    with pytest.raises(InputError, match=r"sample 00000 has no metadata field 'lable'. Did you mean label"):
        open_pictures(data, cache, PictureOptions(SPEC, split_column="lable"))


def test_nothing_to_train_on_is_said(tmp_path, cache):
    data = shards.write_tar(tmp_path / "data" / "0.tar", shards.sample(0, picture=b"no picture"))
    with pytest.raises(EmptyInput, match="not one picture with a caption .image_undecodable 1"):
        open_pictures(data, cache, OPTIONS)


def test_a_marker_that_is_no_json_is_not_believed(data, cache, decoded):
    open_pictures(data, cache, OPTIONS)
    (Path(cache) / "pictures.json").write_text("{torn")
    open_pictures(data, cache, OPTIONS)
    assert len(decoded) == 20
    assert json.loads((Path(cache) / "pictures.json").read_text())["bytes"]["pixels.bin"] == 10 * 3 * 16 * 16


def test_rows_are_made_once_and_read_back(tmp_path):
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    location = str(tmp_path / "rows.npy")
    assert np.array_equal(cached_rows(location, iter([rows[:2], rows[2:]]), (5, 3), "float32"), rows)
    assert np.array_equal(np.load(location), rows)

    def never():
        raise AssertionError("made again")
        yield

    assert np.array_equal(cached_rows(location, never(), (5, 3), "float32"), rows)


def test_rows_that_could_not_be_made_leave_no_file(tmp_path):
    def half():
        yield np.zeros((2, 3), np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_rows(str(tmp_path / "rows.npy"), half(), (5, 3), "float32")
    assert list(tmp_path.iterdir()) == []


def test_pictures_without_captions_are_taken_where_none_are_needed(tmp_path, cache):
    folder = tmp_path / "photos"
    folder.mkdir()
    for place in range(3):
        (folder / f"{place}.png").write_bytes(shards.png(place))
    (folder / "1.txt").write_text("a caption")
    with_captions = PictureOptions(SPEC)
    assert len(open_pictures(str(folder), cache, with_captions)) == 1
    assert len(open_pictures(str(folder), cache, PictureOptions(SPEC, need_caption=False))) == 3
    assert "need_caption" not in with_captions.shaping()  # caches from before there was a choice stay good


def test_another_process_sees_when_they_are_decoded(data, cache):
    assert not pictures_are_decoded(data, cache, OPTIONS)
    open_pictures(data, cache, OPTIONS)
    assert pictures_are_decoded(data, cache, OPTIONS)
    assert not pictures_are_decoded(data, cache, PictureOptions(SPEC, split_column="label", max_pixels=5))
