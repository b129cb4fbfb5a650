"""`embedpipe info`: what is in an output, for people and for machines."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest

from embedpipe.load import EmbeddingDataset
from tests import shards


def test_it_tells_counts_model_and_columns(embedpipe, encoded, tiny_model):
    shards.forget(encoded, 2)
    told = json.loads(embedpipe("info", encoded, "--json").stdout)
    assert (told["shards"], told["planned"], told["rows"], told["rejected"]) == (2, 3, 14, 0)
    assert told["encoder"]["model"] == tiny_model
    assert told["encoder"]["dim"] == 16
    assert {"key", "caption", "number", "label", "extra"} <= set(told["columns"])
    assert told["similarity"]["n"] == 14
    assert -1 <= told["similarity"]["p05"] <= told["similarity"]["p50"] <= told["similarity"]["p95"] <= 1
    people = embedpipe("info", encoded)
    assert people.exit_code == 0
    assert "2 of 3" in people.stdout


def test_damage_is_one_line(embedpipe, encoded, tmp_path):
    (encoded / "embedpipe.json").write_bytes(b"{")
    for place in (encoded, tmp_path / "no", tmp_path):
        result = embedpipe("info", place)
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1
        assert "internal error" not in result.stderr


def test_similarities_are_drawn_and_rejects_are_told_of_an_output_that_still_grows(embedpipe, encoded):
    shards.forget(encoded, 2)
    spread = json.loads(embedpipe("info", encoded, "--json").stdout)["similarity"]
    assert len(spread["bins"]) == 10
    assert sum(spread["bins"]) == 14
    assert spread["least"] <= spread["p05"] <= spread["p95"] <= spread["most"]
    shown = embedpipe("info", encoded).stdout
    bars = [line for line in shown.partition("how many rows have it")[2].splitlines() if " to " in line]
    assert [int(line.split()[-1]) for line in bars] == spread["bins"]
    assert max(line.count("█") for line in bars) == 40
    assert "2 of 3, unfinished" in shown
    shards.forget(encoded, 0, 1)
    nothing_yet = embedpipe("info", encoded)
    assert nothing_yet.exit_code == 0
    assert "0 of 3, unfinished" in nothing_yet.stdout


def test_rejects_are_told_by_class(embedpipe, tmp_path, encode_config):
    from embedpipe.encode.job import encode

    members = [*shards.samples(3), ("bad.jpg", b"x"), ("bad.txt", b"c"), ("mute.jpg", shards.jpeg())]
    encode(shards.write_tar(tmp_path / "a.tar", members), str(tmp_path / "emb"), encode_config())
    told = embedpipe("info", tmp_path / "emb")
    assert "image_undecodable" in told.stdout
    assert "caption_missing" in told.stdout
    assert json.loads(embedpipe("info", tmp_path / "emb", "--json").stdout)["rejects"] == {
        "caption_missing": 1,
        "image_undecodable": 1,
    }


HOSTILE = "<script>alert('x')</script> & \"quoted\" <img src=x onerror=y>"


class Page(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, data):
        super().__init__()
        self.tags, self.outside, self.said = [], [], []
        self.feed(data.decode())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        named = dict(attributes)
        self.outside += [
            v for k, v in named.items() if k in ("src", "href") and not v.startswith("data:image/jpeg;base64,")
        ]
        self.outside += [k for k in named if k.startswith("on")]

    def handle_data(self, data):
        self.said.append(data)


@pytest.fixture
def hostile(tmp_path, encode_config):
    """A data set whose captions, keys and fields are HTML."""
    from embedpipe.encode.job import encode

    members = shards.samples(3)
    for i in range(4):
        members += [(f"{i}<b>.jpg", shards.jpeg(i)), (f"{i}<b>.txt", HOSTILE.encode())]
    members += [("<i>.jpg", b"x"), ("<i>.txt", b"c")]
    encode(shards.write_tar(tmp_path / "in" / "<u>.tar", members), str(tmp_path / "emb"), encode_config())
    return tmp_path / "emb"


def test_the_page_has_everything_in_it_and_nothing_of_a_caption_acts(embedpipe, hostile, tmp_path):
    result = embedpipe("info", hostile, "--html", tmp_path / "page.html", "--samples", 4)
    assert result.exit_code == 0, result.stderr
    page = Page((tmp_path / "page.html").read_bytes())
    assert page.outside == []
    assert not {"script", "i", "b>", "link", "iframe"} & set(page.tags)
    assert page.tags.count("img") == 12
    assert page.tags.count("svg") == 4  # similarity, two norms, captions
    said = " ".join(page.said)
    assert HOSTILE in said
    assert "image_undecodable" in said
    assert "the bytes do not begin like an image" in said
    assert "<i>" in said
    for heading in ("lowest similarity", "highest similarity", "at random"):
        assert f"Samples: {heading}" in said
    told = json.loads(embedpipe("info", hostile, "--json").stdout)
    assert f"{told['similarity']['least']:.3f}" in said
    assert f"{told['similarity']['most']:.3f}" in said


def test_the_page_is_made_where_pictures_are_gone_or_moved(embedpipe, hostile, tmp_path):
    (tmp_path / "in").rename(tmp_path / "moved")
    page = tmp_path / "page.html"
    assert embedpipe("info", hostile, "--html", page).exit_code == 0
    assert "<img" not in page.read_text()
    assert "no picture" in page.read_text()
    assert embedpipe("info", hostile, "--html", page, "--images", tmp_path / "moved" / "<u>.tar").exit_code == 0
    assert "<img" in page.read_text()
    assert embedpipe("info", hostile, "--html", page, "--images", tmp_path / "no").exit_code == 1
    assert embedpipe("info", hostile, "--html", tmp_path / "no" / "deeper" / "page.html").exit_code == 0


def test_a_page_of_image_shards_shows_pictures_and_failures(embedpipe, tmp_path):
    shards.write_files(tmp_path / "photos", [*shards.samples(7), ("bad.jpg", b"x"), ("bad.txt", HOSTILE.encode())])
    options = ("--samples-per-shard", 4, "--processes", 1, "--resizer", "opencv")
    fetched = embedpipe("fetch", tmp_path / "photos", tmp_path / "shards", *options)
    assert fetched.exit_code == 0, fetched.stderr
    result = embedpipe("info", tmp_path / "shards", "--html", tmp_path / "page.html")
    assert result.exit_code == 0, result.stderr
    page = Page((tmp_path / "page.html").read_bytes())
    assert page.outside == []
    assert page.tags.count("img") == 7
    said = " ".join(page.said)
    assert shards.caption(0) in said
    assert "for example" in said


def test_norms_and_captions_are_told(embedpipe, encoded):
    told = json.loads(embedpipe("info", encoded, "--json").stdout)
    for modality in ("image", "text"):
        norm = told["stored_norms"][modality]
        assert norm["n"] == 21
        assert 0.999 < norm["least"] <= norm["most"] < 1.001
        column = EmbeddingDataset(str(encoded)).column(f"{modality}_norm").to_numpy()
        assert (told["norms"][modality]["least"], told["norms"][modality]["most"]) == (column.min(), column.max())
    lengths = [len(shards.caption(i)) for i in range(21)]
    assert (told["captions"]["least"], told["captions"]["most"]) == (min(lengths), max(lengths))
    shown = embedpipe("info", encoded).stdout
    median = np.median(EmbeddingDataset(str(encoded)).column("image_norm").to_numpy())
    (line,) = [line for line in shown.splitlines() if "image_norm" in line and "median" in line]
    assert f"median {median:.4g}" in line
    assert shown.count("stored norms") == 1
    assert "caption length" in shown


def test_a_large_data_set_is_looked_at_by_samples(tmp_path):
    from embedpipe.info import describe, spread
    from tests.embeddings import write_dataset

    rng = np.random.default_rng(0)
    folder = write_dataset(tmp_path / "emb", rng.normal(size=(70 * 40, 4)), rng.normal(size=(70 * 40, 4)), shards=70)
    found = describe(folder)
    assert found.stored_norms["image"].n == 64 * 40
    assert found.norms == {}
    assert found.similarity.n == 70 * 40
    assert spread(np.array([])) is None
    one = spread(np.full(5, 0.25))
    assert (one.bins, one.least, one.most) == ((5,), 0.25, 0.25)
