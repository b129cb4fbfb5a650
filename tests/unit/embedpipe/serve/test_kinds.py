"""serve: data sets of all kinds: parquet, of other tools, with one side only, merged, and cuts without rows."""

import numpy as np
import pytest

import embedpipe
from embedpipe.errors import DatasetError
from tests import foreign
from tests.embeddings import write_dataset
from tests.served import serving


@pytest.fixture
def sides():
    return np.random.default_rng(3).normal(size=(2, 30, 8))


def asked_of(client, name, rows):
    """The questions that the page asks of any data set."""
    (one,) = client.found("/api/datasets")
    assert (one["name"], one["rows"]) == (name, rows)
    numbers = [it["name"] for it in one["columns"] if it["kind"] != "other"]
    base = f"/api/datasets/{name}"
    found = client.found(f"{base}/cut", {"columns": numbers[:32]})
    assert found["kept"] == rows
    assert len(client.found(f"{base}/rows", {})["rows"]) == min(60, rows)
    assert client.found(f"{base}/rows/{rows - 1}")["row"] == rows - 1
    assert client.found(f"{base}/selections", {"name": "all", "cut": {}})["rows"] == rows
    return {side["name"]: side["searchable"] for side in one["modalities"]}


def nearest(client, name, side, row):
    page = client.found(f"/api/datasets/{name}/search", {"terms": [{"row": row}], "modality": side, "limit": 1})
    return page["rows"][0]["row"]


def test_a_cut_without_rows_is_an_answer(sides, tmp_path):
    path = write_dataset(tmp_path / "emb", *sides)
    with serving(path, no_model=True, selections=str(tmp_path / "saved")) as client:
        asked_of(client, "emb", 30)
        body = {"cut": {"where": "similarity > 2"}}
        assert client.found("/api/datasets/emb/search", {**body, "terms": [{"row": 1}]})["rows"] == []
        assert client.found("/api/datasets/emb/rows", {**body, "sort": "similarity"})["total"] == 0
        cut = client.found("/api/datasets/emb/cut", {**body, "columns": ["similarity", "src_shard"]})
        assert (cut["kept"], sum(cut["columns"][0]["kept"])) == (0, 0)
        refused = client.post("/api/datasets/emb/selections", {"name": "none", **body})
        assert (refused.status, "without rows" in refused.json()["error"]) == (400, True)
        where = " or ".join(["similarity > 0"] * 200)
        assert client.found("/api/datasets/emb/rows", {"cut": {"where": where}})["rows"]


def test_an_index_is_used_and_finds_the_same(sides, tmp_path):
    path = write_dataset(tmp_path / "emb", *sides)
    embedpipe.index(path)
    with serving(path, no_model=True, selections=str(tmp_path / "saved")) as client:
        (one,) = client.found("/api/datasets")
        assert {it["name"]: bool(it["index"]) for it in one["modalities"]} == {"image": True, "text": False}
        assert [nearest(client, "emb", side, row) for side in ("image", "text") for row in (0, 29)] == [0, 29, 0, 29]


def test_parquet_is_served(sides, tmp_path):
    path = write_dataset(tmp_path / "emb", *sides, format="parquet")
    with serving(path, no_model=True, selections=str(tmp_path / "saved")) as client:
        assert asked_of(client, "emb", 30) == {"image": True, "text": True}
        assert nearest(client, "emb", "text", 17) == 17


@pytest.mark.parametrize("layout", [foreign.clip_retrieval, foreign.npy, foreign.parquet], ids=lambda it: it.__name__)
def test_what_other_tools_wrote_is_served_without_their_model(layout, tmp_path):
    arrays, captions = foreign.rows()
    layout(tmp_path / "theirs", arrays, captions)
    with serving(tmp_path / "theirs", selections=str(tmp_path / "saved")) as client:
        assert asked_of(client, "theirs", len(captions))["image"]
        assert client.found("/api/datasets")[0]["encoder"]["usable"] is False
        assert nearest(client, "theirs", "image", 1) == 1


def test_a_side_that_is_not_there_cannot_be_searched(tmp_path):
    foreign.npy(tmp_path / "theirs", *foreign.rows())
    with serving(tmp_path / "theirs", no_model=True) as client:
        sides = client.found("/api/datasets")[0]["modalities"]
        assert [(it["name"], it["searchable"]) for it in sides] == [("image", True), ("text", False)]
        reply = client.post("/api/datasets/theirs/search", {"terms": [{"row": 0}], "modality": "text"})
        assert (reply.status, "text" in reply.json()["error"]) == (400, True)


def test_a_data_set_without_rows_is_refused(sides, tmp_path):
    path = write_dataset(tmp_path / "emb", sides[0][:0], sides[1][:0], shards=1)
    with pytest.raises(DatasetError, match="no rows"), serving(path, no_model=True):
        pass
