"""`embedpipe index` and `embedpipe search`."""

import io
import json

import pytest
from PIL import Image

from tests import shards


@pytest.fixture
def indexed(embedpipe, encoded):
    assert embedpipe("index", encoded).exit_code == 0
    return encoded


def test_a_text_finds_rows_and_a_sheet_shows_them(embedpipe, indexed, tmp_path):
    result = embedpipe("search", indexed, "a cat and a dog", "-k", 3, "--json", "--save", tmp_path / "out.png")
    assert result.exit_code == 0, result.stderr
    hits = json.loads(result.stdout)
    assert [hit["rank"] for hit in hits] == [1, 2, 3]
    assert hits[0]["score"] >= hits[1]["score"] >= hits[2]["score"]
    assert all(hit["caption"] == shards.caption(int(hit["key"])) for hit in hits)
    assert Image.open(io.BytesIO((tmp_path / "out.png").read_bytes())).size[0] > 300
    assert result.stderr == ""


def test_a_picture_finds_itself(embedpipe, indexed, tmp_path):
    (tmp_path / "q.jpg").write_bytes(shards.jpeg(11))
    hits = json.loads(embedpipe("search", indexed, "--image", tmp_path / "q.jpg", "--json").stdout)
    assert hits[0]["key"] == "00011"
    assert hits[0]["score"] > 0.999
    assert len(hits) == 10
    table = embedpipe("search", indexed, "--image", tmp_path / "q.jpg", "-k", 1)
    assert "00011" in table.stdout


def test_mistakes_are_one_line(embedpipe, encoded, other_model, tmp_path):
    for arguments, said in (
        (("search", encoded, "x"), "no image index"),
        (("search", tmp_path / "no", "x"), "no such folder"),
        (("search", encoded, " "), "is empty"),
        (("search", encoded, "--image", tmp_path / "no.jpg"), "No such file"),
        (("search", encoded, "x", "--model", other_model), "another encoder"),
        (("index", tmp_path), "no embedpipe.json"),
    ):
        result = embedpipe(*arguments)
        assert result.exit_code == 1, arguments
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_an_index_older_than_the_data_is_refused(embedpipe, indexed):
    (indexed / "manifest" / "00002.json").unlink()
    result = embedpipe("search", indexed, "x")
    assert result.exit_code == 1
    assert "the data set has changed since" in result.stderr
