"""`encode` of tables of local paths: resumed, grown, verified, and searched with their pictures."""

import csv
import shutil

import pytest

from embedpipe.encode.job import encode, plan_encode
from embedpipe.errors import OptionError, RunMismatch
from embedpipe.load import EmbeddingDataset
from embedpipe.load.images.source import source_images
from embedpipe.verify import verify
from tests import shards
from tests.bodies import photo


@pytest.fixture
def work(tmp_path, monkeypatch):
    """photos/N.jpg and tables/captions.csv, which names them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "tables").mkdir()
    for number in range(5):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(photo(number))
    write(tmp_path, range(5))
    return tmp_path


def write(work, numbers):
    with (work / "tables" / "captions.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerows([["file", "caption", "price"], *([f"../photos/{n}.jpg", f"no, {n}", "1.10"] for n in numbers)])


def test_it_is_encoded_resumed_grown_and_verified(work, encode_config):
    config = encode_config(local_root="photos", samples_per_shard=2)
    report = encode("tables/captions.csv", "emb", config)
    made = EmbeddingDataset("emb")
    assert (report.rows, report.rejected, report.planned) == (5, 0, 3)
    assert made.keys() == list("01234")
    assert made.column("caption").to_pylist() == [f"no, {n}" for n in range(5)]
    assert made.column("price").to_pylist() == ["1.10"] * 5
    assert verify("emb", shards.DEEP).whole
    found = source_images(made, [("captions.csv:2-3", "3")])
    assert found == {("captions.csv:2-3", "3"): photo(3)}

    again = encode("tables/captions.csv", "emb", config)
    assert (again.already, again.report.tasks) == (3, 0)
    (work / "photos" / "5.jpg").write_bytes(photo(5))
    write(work, range(6))
    assert plan_encode("tables/captions.csv", "emb", config)[1] == [3]
    assert encode("tables/captions.csv", "emb", config).rows == 6
    assert verify("emb", shards.DEEP).whole


def test_another_root_or_a_changed_row_is_no_resumption_but_a_moved_tree_is(work, encode_config):
    encode("tables/captions.csv", "emb", encode_config(local_root="photos"))
    with pytest.raises(RunMismatch, match="local_root"):
        encode("tables/captions.csv", "emb", encode_config(local_root="."))
    shutil.copytree(work / "photos", work / "moved" / "photos")
    shutil.copytree(work / "tables", work / "moved" / "tables")
    moved = encode("moved/tables/captions.csv", "emb", encode_config(local_root=str(work / "moved" / "photos")))
    assert (moved.already, moved.report.tasks) == (1, 0)
    write(work, [1, 0, 2, 3, 4])
    with pytest.raises(RunMismatch, match=r"captions\.csv:0-4 changed"):
        encode("tables/captions.csv", "emb", encode_config(local_root="photos"))


def test_a_data_set_of_others_opens_no_path_outside_its_own_folder(work, encode_config, monkeypatch, tmp_path):
    """What somebody else's card says of the root is not what this user said."""
    table = work / "emb" / "tables" / "captions.csv"
    table.parent.mkdir(parents=True)
    secret = work / "photos" / "0.jpg"
    shutil.copy(secret, table.parent / "inside.jpg")
    table.write_text(f"file,caption\n{secret},a\ninside.jpg,b\n")
    encode(str(table), "emb", encode_config(local_root="/"))
    made = EmbeddingDataset("emb")
    wanted = list(zip(made.column("src_shard").to_pylist(), made.column("key").to_pylist(), strict=True))
    assert len(source_images(made, wanted)) == 2
    monkeypatch.setenv("EMBEDPIPE_STATE", str(tmp_path / "another user"))
    found = source_images(EmbeddingDataset("emb"), wanted)
    assert [key.rpartition("/")[2] for _, key in found] == ["inside"]


def test_options_of_local_paths_need_the_root(work, encode_config):
    for option in ({"file_column": "file"}, {"quoting": "none"}, {"encoding": "cp1252"}):
        with pytest.raises(OptionError, match=rf"`{next(iter(option))}` is for a table of local paths.*`local_root"):
            plan_encode("tables/captions.csv", "emb", encode_config(**option))


def test_the_command(work, embedpipe, tiny_model):
    asked = ("encode", "tables/captions.csv", "emb", "--model", tiny_model, "--gpus", "0")
    refused = embedpipe(*asked)
    assert refused.exit_code == 1
    assert "--local-root DIR" in refused.stderr
    done = embedpipe(*asked, "--local-root", "photos", "--file-col", "file")
    assert done.exit_code == 0, done.stderr
    assert "emb: 5 rows in 1 shard" in done.stdout
