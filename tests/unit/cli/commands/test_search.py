"""`embedpipe index` and `embedpipe search`."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
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
        (("search", tmp_path / "no", "x"), "no such folder"),
        (("search", encoded, " "), "is empty"),
        (("search", encoded, "--image", tmp_path / "no.jpg"), "no such file"),
        (("search", encoded, "x", "--model", other_model), "another encoder"),
        (("search", encoded, "--key", "no"), "no row with the key 'no'"),
        (("search", encoded, "--queries", tmp_path / "no.txt"), "no such file"),
        (("search", encoded, "--embedding", tmp_path / "no.npy"), "no such file"),
        (("index", tmp_path), "no embedpipe.json"),
    ):
        result = embedpipe(*arguments)
        assert result.exit_code == 1, arguments
        assert said in result.stderr
        said_beside = [line for line in result.stderr.splitlines() if not line.startswith("note: no image index")]
        assert len(said_beside) == 1


def test_an_index_older_than_the_data_is_refused(embedpipe, indexed):
    shards.forget(indexed, 2)
    result = embedpipe("search", indexed, "x")
    assert result.exit_code == 1
    assert "the data set has changed since" in result.stderr


def test_without_an_index_the_answer_is_exact_and_a_note_says_so(embedpipe, encoded):
    result = embedpipe("search", encoded, "a cat", "--json")
    assert f"note: no image index, so every row is compared; `embedpipe index {encoded}`" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    exact = embedpipe("search", encoded, "a cat", "--json", "--exact")
    assert exact.stderr == ""
    assert json.loads(exact.stdout) == json.loads(result.stdout)
    embedpipe("index", encoded)
    assert [hit["key"] for hit in json.loads(embedpipe("search", encoded, "a cat", "--json").stdout)] == [
        hit["key"] for hit in json.loads(exact.stdout)
    ]


def test_a_row_and_an_embedding_find_themselves(embedpipe, encoded, tmp_path):
    found = json.loads(embedpipe("search", encoded, "--exact", "--key", "00004", "--json").stdout)
    assert (found[0]["key"], found[0]["row"]) == ("00004", 4)
    assert found[0]["score"] == pytest.approx(1, abs=1e-3)
    rows = np.load(encoded / "text_emb" / "text_emb_00001.npy")
    np.save(tmp_path / "q.npy", 3 * rows)
    arguments = ("search", encoded, "--exact", "--modality", "text", "--embedding", tmp_path / "q.npy")
    found = json.loads(embedpipe(*arguments, "--row", 2, "--json", "-k", 1).stdout)
    assert found[0]["row"] == 7 + 2
    several = embedpipe(*arguments)
    assert several.exit_code == 1
    assert "holds 7 rows. Choose one with --row" in several.stderr
    beyond = embedpipe(*arguments, "--row", 7)
    assert "no row 7 of 7. Rows count from 0" in beyond.stderr
    np.save(tmp_path / "q.npy", np.ones((1, 5), np.float32))
    assert "the data set's embeddings have 16 values" in embedpipe(*arguments).stderr


def test_many_queries_one_answer_each(embedpipe, encoded, tmp_path):
    embedpipe("index", encoded)
    texts = ["a cat", "a dog and a \u2603", "a cat"]
    (tmp_path / "q.txt").write_text("\n".join(texts), encoding="utf-8")
    lines = embedpipe("search", encoded, "--queries", tmp_path / "q.txt", "-k", 3, "--json").stdout.splitlines()
    answers = [json.loads(line) for line in lines]
    assert [(answer["query_index"], answer["query"]) for answer in answers] == list(enumerate(texts))
    assert answers[0]["hits"] == answers[2]["hits"]
    alone = json.loads(embedpipe("search", encoded, "a cat", "-k", 3, "--json").stdout)
    assert [hit["key"] for hit in answers[0]["hits"]] == [hit["key"] for hit in alone]
    for suffix in ("parquet", "jsonl"):
        result = embedpipe(
            "search", encoded, "--queries", tmp_path / "q.txt", "-k", 3, "--save", tmp_path / f"r.{suffix}"
        )
        assert result.exit_code == 0, result.stderr
        assert "9 hits" in result.stdout
    table = pq.read_table(tmp_path / "r.parquet").to_pylist()
    saved = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text(encoding="utf-8").splitlines()]
    flat = [{"query_index": a["query_index"], "query": a["query"], **hit} for a in saved for hit in a["hits"]]
    assert [{**row, "score": None} for row in table] == [
        {name: value for name, value in {**row, "score": None}.items() if name != "metadata"} for row in flat
    ]
    assert [{**hit, "score": None} for hit in answers[0]["hits"]] == [{**hit, "score": None} for hit in alone]
    assert set(alone[0]) == {"rank", "score", "row", "key", "caption", "src_shard", "url", "metadata"}
    assert {"width", "height", "similarity"} <= set(alone[0]["metadata"])
    assert saved == answers
    assert embedpipe("search", encoded, "--queries", tmp_path / "q.txt").stdout.count("a cat") >= 2


def test_embeddings_as_queries_need_no_model(embedpipe, encoded, tmp_path, monkeypatch):
    monkeypatch.setattr("embedpipe.index.query.query_encoder", None)
    rows = np.load(encoded / "img_emb" / "img_emb_00002.npy")
    np.save(tmp_path / "q.npy", rows)
    result = embedpipe("search", encoded, "--exact", "--queries", tmp_path / "q.npy", "-k", 1, "--json")
    assert [json.loads(line)["hits"][0]["row"] for line in result.stdout.splitlines()] == list(range(14, 21))


def test_results_of_one_query_are_saved_as_what_the_name_says(embedpipe, encoded, encoded_once, tmp_path):
    for name in ("out.png", "out.html", "out.parquet", "out.jsonl"):
        result = embedpipe("search", encoded, "--exact", "--key", "00003", "-k", 4, "--save", tmp_path / name)
        assert result.exit_code == 0, result.stderr
        assert str(tmp_path / name) in result.stdout
    assert len(pq.read_table(tmp_path / "out.parquet")) == 4
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == page.count("data:image/jpeg;base64,") == 4
    assert "like 00003" in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_caption_cannot_do_harm(embedpipe, encoded, tmp_path):
    hostile = '<script>alert(1)</script><img src=x onerror="alert(2)">&\u202e\x00'
    place = encoded / "metadata" / "metadata_00000.parquet"
    table = pq.read_table(place)
    at = table.schema.get_field_index("caption")
    pq.write_table(table.set_column(at, table.schema.field(at), [[hostile] * len(table)]), place)
    shards.record_anew(encoded, 0, place)
    for name in ("out.png", "out.html"):
        result = embedpipe("search", encoded, "--exact", "--key", "00003", "-k", 3, "--save", tmp_path / name)
        assert result.exit_code == 0, result.stderr
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "onerror=&quot;" in page
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give one of a text"),
        (("a cat", "--key", "x"), "give one of a text"),
        (("a cat", "--row", "1"), "--row is only of use with --embedding"),
        (("a cat", "--shard", "1"), "--shard is only of use with --key"),
        (("a cat", "--query-column", "x"), "--query-column is only of use with --queries"),
        (("a cat", "--save", "out.gif"), "results are saved as .png, .html, .parquet, .jsonl"),
        (("--queries", "q.txt", "--save", "out.png"), "results of many queries are saved as .parquet, .jsonl"),
        (("a cat", "-k", "0"), "0 is not in the range"),
    ],
)
def test_what_does_not_go_together_is_a_matter_of_usage(embedpipe, tmp_path, arguments, said):
    result = embedpipe("search", tmp_path, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_score_that_no_row_has_is_said_and_one_that_cannot_be_is_refused(embedpipe, encoded):
    none = embedpipe("search", encoded, "--exact", "a cat", "--min-score", 0.999)
    assert (none.exit_code, none.stdout) == (0, "")
    assert "no row has a cosine of 0.999 or more" in none.stderr
    assert embedpipe("search", encoded, "--exact", "a cat", "--min-score", 3).exit_code == 2


@pytest.mark.parametrize("to", ["hf", "parquet", "clip-retrieval", "datacomp"])
def test_an_export_is_searched_with_the_encoder_that_it_records(embedpipe, encoded_once, tmp_path, to):
    _, emb = encoded_once
    assert embedpipe("export", emb, tmp_path / "out", "--to", to).exit_code == 0
    asked = ("--json", "-k", "3", "--exact")
    found, expected = (embedpipe("search", place, "a red bicycle", *asked) for place in (tmp_path / "out", emb))
    assert found.exit_code == 0, found.stderr
    scores = [[(hit["key"], round(hit["score"], 3)) for hit in json.loads(it.stdout)] for it in (found, expected)]
    assert scores[0] == scores[1]


def test_a_side_that_was_not_encoded_names_the_other(embedpipe, encoded_once, encode_config, tmp_path):
    from embedpipe.encode.job import encode

    source, _ = encoded_once
    encode(source, str(tmp_path / "emb"), encode_config(stage={"images": False}))
    refused = embedpipe("search", tmp_path / "emb", "a red bicycle")
    assert refused.exit_code == 1
    assert "has no image embeddings. Search its texts: --modality text; or encode it again" in refused.stderr
    assert embedpipe("search", tmp_path / "emb", "a red bicycle", "--modality", "text").exit_code == 0
