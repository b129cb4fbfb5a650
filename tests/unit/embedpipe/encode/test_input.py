"""encode over every reader: both sides or one, and shards that cannot be read beside others that can."""

from pathlib import Path

import numpy as np
import pytest

from embedpipe.encode.job import encode
from embedpipe.errors import EmptyInput, InputError
from embedpipe.load import EmbeddingDataset
from embedpipe.read import READERS
from embedpipe.verify import verify
from tests import shards

COUNT = 5


def write(kind, folder, image=True, caption=True):
    """The same samples for each reader, without what is not wanted."""
    members = [
        (name, data)
        for name, data in shards.samples(COUNT)
        if (image or not name.endswith(".jpg")) and (caption or not name.endswith(".txt"))
    ]
    absent = {name: None for name, there in (("image", image), ("caption", caption)) if not there}
    if kind == "webdataset":
        shards.write_tar(Path(folder) / "0.tar", members)
    elif kind == "paths":
        return shards.write_path_table(Path(folder) / "0.jsonl", COUNT, image=image, caption_there=caption)
    elif kind == "folder":
        shards.write_files(folder, members)
    else:
        shards.write_table(Path(folder) / "0.parquet", shards.table(COUNT, **absent))
    return str(folder)


def config(make, kind, source, **options):
    """A table of local paths is read only where the user says so."""
    return make(local_root=str(Path(source).parent) if kind == "paths" else None, **options)


@pytest.fixture(scope="module")
def expected(tmp_path_factory, encode_config):
    """What both sides together give."""
    root = tmp_path_factory.mktemp("expected")
    encode(write("webdataset", root / "in"), str(root / "emb"), encode_config())
    return EmbeddingDataset(str(root / "emb"))


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("side", ["both", "image", "text"])
def test_each_side_alone_needs_nothing_of_the_other(kind, side, tmp_path, encode_config, expected):
    images, texts = side != "text", side != "image"
    source = write(kind, tmp_path / "in", images, texts)
    out = str(tmp_path / "emb")
    report = encode(source, out, config(encode_config, kind, source, stage={"images": images, "texts": texts}))
    made = EmbeddingDataset(out)
    assert (report.rows, report.rejected) == (COUNT, 0)
    assert made.keys() == expected.keys()
    for array, truth, there in ((made.image, expected.image, images), (made.text, expected.text, texts)):
        assert (array is not None) == there
        assert not there or np.abs(array.read() - truth.read()).max() < 1e-3
    for name, there in (("sha256", images), ("width", images), ("caption", texts), ("number", True), ("label", True)):
        assert made.column(name).to_pylist() == (expected.column(name).to_pylist() if there else [None] * COUNT), name
    assert verify(out, shards.DEEP).whole


@pytest.mark.parametrize("kind", READERS)
def test_a_side_that_is_not_there_but_asked_for_is_told(kind, tmp_path, encode_config):
    for side, missing in ((False, "image"), (True, "caption")):
        source = write(kind, tmp_path / missing, side, not side)
        with pytest.raises(InputError) as caught:
            encode(source, str(tmp_path / "emb"), config(encode_config, kind, source))
        assert missing in str(caught.value)
        assert f"`{'texts' if side else 'images'}=False`" in str(caught.value)
    assert not (tmp_path / "emb" / "embedpipe.json").exists()


def test_a_folder_without_captions_says_what_it_looked_for(tmp_path, encode_config):
    shards.write_files(tmp_path / "in", [("a.md", b"x")])
    with pytest.raises(EmptyInput, match=r"no captions in it.*txt"):
        encode(str(tmp_path / "in"), str(tmp_path / "emb"), encode_config(stage={"images": False}))


def test_a_table_that_cannot_be_read_is_set_aside_and_encoded_once_it_is_repaired(tmp_path, encode_config):
    for i in range(3):
        shards.write_table(tmp_path / "in" / f"{i}.parquet", shards.table(2, 2 * i))
    whole = (tmp_path / "in" / "0.parquet").read_bytes()
    (tmp_path / "in" / "0.parquet").write_bytes(whole[:-100])
    out = str(tmp_path / "emb")
    report = encode(str(tmp_path / "in"), out, encode_config())
    (aside,) = report.failed_tasks
    assert aside.task.name == "0.parquet"
    assert "0.parquet: cannot be read as parquet" in aside.reason
    assert report.rows == 4
    assert verify(out, shards.DEEP).whole
    (tmp_path / "in" / "0.parquet").write_bytes(whole)
    report = encode(str(tmp_path / "in"), out, encode_config())
    assert (report.already, report.rows, report.failed_tasks) == (2, 6, ())
    assert EmbeddingDataset(out).keys() == [f"{i:05d}" for i in range(6)]


def test_when_no_table_can_be_read_the_first_says_why(tmp_path, encode_config):
    for i in range(2):
        shards.write_table(tmp_path / "in" / f"{i}.parquet", shards.table(2, caption=None, text=["a", "b"]))
    with pytest.raises(InputError, match=r"0\.parquet: no column 'caption'.*it has key, image, number, label, text"):
        encode(str(tmp_path / "in"), str(tmp_path / "emb"), encode_config())
    report = encode(str(tmp_path / "in"), str(tmp_path / "emb"), encode_config(caption_key="text"))
    assert report.rows == 4
