"""serve: every question of the API, asked of a real server, against what the library says when called directly."""

import base64
import io
import json
import threading

import numpy as np
import pytest
from PIL import Image

import embedpipe
from embedpipe.errors import OptionError
from embedpipe.info import info
from embedpipe.serve.config import ServeConfig
from embedpipe.serve.endpoints import ENDPOINTS
from embedpipe.serve.query_encoder import SharedEncoder
from embedpipe.serve.service import names_for
from embedpipe.subset import read_subset
from tests import shards
from tests.embeddings import write_dataset
from tests.served import serving

HOSTILE = {
    3: "<script>alert(1)</script> & <img src=x onerror=alert(2)>",
    4: "مرحبا بالعالم \u202e 👩‍👩‍👧 日本語",
    5: "x" * 100_000,
}


@pytest.fixture(scope="module")
def client(encoded_once, tmp_path_factory):
    with serving(encoded_once[1], selections=str(tmp_path_factory.mktemp("selections"))) as found:
        yield found


@pytest.fixture(scope="module")
def dataset(encoded_once):
    return embedpipe.EmbeddingDataset(encoded_once[1])


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """A client of a data set without pictures or a model, with all kinds of values; and the data set."""
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(2, 60, 16))
    captions = [HOSTILE.get(row, f"caption {row}") for row in range(60)]
    columns = {
        "said": captions,
        "class": [("cat", "dog", None, "it's")[row % 4] for row in range(60)],
        "size": ("int64", [None if row % 7 == 0 else row * 10 for row in range(60)]),
        "ratio": ("double", [float("nan") if row == 1 else row / 60 for row in range(60)]),
        "sharp": ("bool", [row % 2 == 0 for row in range(60)]),
    }
    root = tmp_path_factory.mktemp("made-up")
    path = write_dataset(root / "my data%2F", image, text, shards=3, columns=columns)
    with serving(path, no_model=True, selections=str(root / "saved")) as found:
        yield found, embedpipe.EmbeddingDataset(path)


def rows_of(page):
    return [card["row"] for card in page["rows"]]


def test_data_sets_say_what_can_be_asked(client, dataset):
    (one,) = client.found("/api/datasets")
    assert (one["name"], one["rows"], one["dim"]) == ("emb", len(dataset), dataset.card.dim)
    assert [it["name"] for it in one["modalities"] if it["searchable"]] == ["image", "text"]
    assert one["encoder"]["usable"]
    assert one["pictures"]
    kinds = {it["name"]: it["kind"] for it in one["columns"]}
    assert (kinds["similarity"], kinds["label"], kinds["caption_length"]) == ("number", "category", "number")


def test_a_text_finds_what_search_finds(client, dataset):
    hits = embedpipe.search(dataset, "a red bicycle", k=8)
    page = client.found("/api/datasets/emb/search", {"terms": [{"text": "a red bicycle"}], "limit": 8})
    assert rows_of(page) == [hit.row for hit in hits]
    assert [card["score"] for card in page["rows"]] == pytest.approx([hit.score for hit in hits], abs=1e-4)
    assert page["more"]
    assert client.found("/api/datasets")[0]["encoder"]["loaded"]


def test_a_picture_finds_itself_whole_or_as_a_data_url(client, dataset):
    picture = base64.b64encode(shards.jpeg(9)).decode()
    for text in (picture, f"data:image/jpeg;base64,{picture}"):
        page = client.found("/api/datasets/emb/search", {"terms": [{"image": text}], "limit": 1})
        assert dataset.metadata[page["rows"][0]["row"]]["key"] == "00009"
        assert page["rows"][0]["score"] > 0.999


def test_a_mix_is_the_weighted_sum_of_unit_embeddings(made_up):
    client, dataset = made_up
    rows = dataset.image[[4, 9]].astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    total = rows[0] - 0.5 * rows[1]
    scores = dataset.image.read() @ (total / np.linalg.norm(total))
    terms = [{"key": "000004", "shard": "00000.tar"}, {"row": 9, "weight": -0.5}]
    page = client.found("/api/datasets/my-data-2F/search", {"terms": terms, "limit": 60})
    assert rows_of(page) == np.argsort(-scores, kind="stable").tolist()
    assert not page["more"]


@pytest.mark.parametrize("side", ["image", "text"])
def test_pages_join_without_gaps_and_stop_at_the_least_score(made_up, side):
    client, dataset = made_up
    query = getattr(dataset, side)[7].astype(np.float64)
    scores = getattr(dataset, side).read() @ (query / np.linalg.norm(query))
    expected = [row for row in np.argsort(-scores, kind="stable").tolist() if scores[row] >= 0]
    found, offset = [], 0
    while True:
        body = {
            "terms": [{"embedding": query.tolist()}],
            "modality": side,
            "min_score": 0,
            "offset": offset,
            "limit": 7,
        }
        page = client.found("/api/datasets/my-data-2F/search", body)
        found += rows_of(page)
        offset += 7
        if not page["more"]:
            break
    assert found == expected


def test_a_search_within_a_cut_is_the_search_less_the_rest(made_up):
    client, _ = made_up
    terms = [{"row": 0}]
    everything = rows_of(client.found("/api/datasets/my-data-2F/search", {"terms": terms, "limit": 60}))
    body = {"terms": terms, "limit": 60, "cut": {"where": "class = 'dog' and size > 100"}}
    assert rows_of(client.found("/api/datasets/my-data-2F/search", body)) == [
        row for row in everything if row % 4 == 1 and row % 7 and row * 10 > 100
    ]


def test_a_search_within_a_wide_cut_goes_through_the_index(made_up, monkeypatch):
    monkeypatch.setattr("embedpipe.serve.served.FEW_ROWS", 2)
    monkeypatch.setattr("embedpipe.serve.served._FIRST_DEPTH", 3)
    client, dataset = made_up
    scores = dataset.image.read() @ (dataset.image[5].astype(np.float32) / np.linalg.norm(dataset.image[5]))
    expected = [row for row in np.argsort(-scores, kind="stable").tolist() if row >= 40]
    body = {"terms": [{"row": 5}], "cut": {"where": "src_index >= 0 and \"size\" >= 400 or src_shard = '00002.tar'"}}
    assert rows_of(client.found("/api/datasets/my-data-2F/search", {**body, "limit": 20})) == expected


def test_rows_are_paged_in_the_order_of_a_column(made_up):
    client, _ = made_up
    body = {"cut": {"where": "class = 'cat'"}, "sort": "size", "descending": True, "limit": 4}
    first = client.found("/api/datasets/my-data-2F/rows", body)
    second = client.found("/api/datasets/my-data-2F/rows", {**body, "offset": 4, "limit": 200})
    cats = list(range(0, 60, 4))
    known = sorted((row for row in cats if row % 7), reverse=True)
    assert rows_of(first) + rows_of(second) == known + [row for row in cats if row % 7 == 0]
    assert (first["more"], second["more"], first["total"]) == (True, False, 15)


def test_a_cut_says_what_it_keeps_and_drops(made_up):
    client, dataset = made_up
    where = "size >= 300"
    body = {"cut": {"where": where}, "columns": ["size", "class", "sharp", "ratio"], "bins": 5}
    found = client.found("/api/datasets/my-data-2F/cut", body)
    plan = embedpipe.plan_filter(dataset.path, embedpipe.FilterConfig(where=(where,)))
    assert (found["kept"], found["dropped"], found["unknown"]) == (plan.kept, plan.dropped, plan.conditions[0].unknown)
    size, kind, sharp, ratio = found["columns"]
    values = np.array([row * 10 for row in range(60) if row % 7])
    assert size["all"] == np.histogram(values, 5)[0].tolist()
    assert size["kept"] == np.histogram(values[values >= 300], 5, (values.min(), values.max()))[0].tolist()
    assert (size["least"], size["most"], size["missing"]) == (10, 590, 9)
    kept = [row for row in range(60) if row % 7 and row >= 30]
    assert {it["value"]: (it["all"], it["kept"]) for it in kind["values"]} == {
        name: (15, sum(row % 4 == place for row in kept)) for place, name in ((0, "cat"), (1, "dog"), (3, "it's"))
    }
    assert (kind["distinct"], kind["missing"]) == (3, 15)
    assert {it["value"] for it in sharp["values"]} == {True, False}
    assert ratio["missing"] == 1


def test_a_row_is_shown_whole_with_its_place(made_up):
    client, _ = made_up
    for row, caption in HOSTILE.items():
        found = client.found(f"/api/datasets/my-data-2F/rows/{row}")
        assert found["metadata"]["said"] == caption
        assert found["place"]["image_shard"] == "00000.tar"
        assert found["place"]["row_in_shard"] == row
    assert client.found("/api/datasets/my-data-2F/rows/1")["metadata"]["ratio"] is None, "JSON has no NaN"


def test_cards_hold_the_head_of_a_long_caption(tmp_path):
    rng = np.random.default_rng(1)
    image, text = rng.normal(size=(2, 3, 8))
    path = write_dataset(tmp_path / "emb", image, text, shards=1, columns={"caption": ["x" * 100_000, "y", None]})
    with serving(path, no_model=True) as client:
        cards = client.found("/api/datasets/emb/rows", {})["rows"]
    assert [(card["caption"], card["cut"]) for card in cards] == [("x" * 300, True), ("y", False), (None, False)]


def test_neighbours_are_the_nearest_without_the_row_itself(client, dataset):
    hits = embedpipe.search(dataset, embedpipe.Query(key="00009"), k=6)
    (row,) = dataset.find(["00009"])
    found = client.found(f"/api/datasets/emb/rows/{row}/neighbours?limit=5")
    assert rows_of(found) == [hit.row for hit in hits if hit.row != row][:5]


def test_pictures_are_small_jpegs_of_the_right_row(client, dataset):
    pictures = [client.get(f"/api/datasets/emb/rows/{row}/picture?side=128") for row in (0, 9, 20)]
    for row, reply in zip((0, 9, 20), pictures, strict=True):
        assert (reply.status, reply.headers["content-type"]) == (200, "image/jpeg")
        shown = np.asarray(Image.open(io.BytesIO(reply.body)), np.float32)
        stored = np.asarray(shards.pixels(int(dataset.metadata[row]["key"])), np.float32)
        assert shown.shape == stored.shape
        assert np.abs(shown - stored).mean() < 12


def test_pictures_asked_for_at_once_are_each_their_own(client):
    found = {}

    def ask(row):
        found[row] = client.get(f"/api/datasets/emb/rows/{row}/picture?side=256").body

    threads = [threading.Thread(target=ask, args=(row,)) for row in range(21)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found.values())) == 21
    assert all(client.get(f"/api/datasets/emb/rows/{row}/picture?side=256").body == it for row, it in found.items())


def test_where_there_are_no_pictures_it_says_so(made_up):
    client, _ = made_up
    assert client.found("/api/datasets")[0]["pictures"] is False
    assert client.get("/api/datasets/my-data-2F/rows/0/picture").status == 404


def test_a_selection_is_what_filter_takes(client, dataset, tmp_path):
    made = client.found("/api/datasets/emb/selections", {"name": "my cats", "rows": [5, 2, 2, 19]})
    assert (made["rows"], made["made_by"]) == (3, "serve")
    assert read_subset(dataset, made["path"]).tolist() == [2, 5, 19]
    report = embedpipe.filter(dataset.path, str(tmp_path / "out"), embedpipe.FilterConfig(keys=(made["path"],)))
    assert report.kept == 3
    assert client.found("/api/datasets/emb/selections/my%20cats")["rows"] == [2, 5, 19]
    listed = client.found("/api/datasets/emb/selections")["selections"]
    assert [(it["name"], it["rows"]) for it in listed if it["name"] == "my cats"] == [("my cats", 3)]
    assert "embedpipe serve" in info(made["path"]).said
    page = client.found("/api/datasets/emb/rows", {"cut": {"selection": "my cats", "where": "number > 2"}})
    assert rows_of(page) == [5, 19]


def test_a_selection_of_a_cut_holds_all_its_rows_and_is_replaced_only_when_asked(client):
    body = {"name": "wide", "cut": {"where": "label = 'l1'"}}
    assert client.found("/api/datasets/emb/selections", body)["rows"] == 7
    again = client.post("/api/datasets/emb/selections", {"name": "wide", "rows": [1]})
    assert again.status == 409
    assert "already" in again.json()["error"]
    assert client.found("/api/datasets/emb/selections", {"name": "wide", "rows": [1], "replace": True})["rows"] == 1
    assert client.found("/api/datasets/emb/selections/wide")["rows"] == [1]


@pytest.mark.parametrize("name", ["..", "../up", "a/b", ".hidden", "", "a\0b", "x" * 100, "con\n", "a.", "/etc/x"])
def test_a_selection_with_such_a_name_is_refused(client, name):
    reply = client.post("/api/datasets/emb/selections", {"name": name, "rows": [0]})
    assert reply.status == 400, reply.body


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("search", {"terms": []}, "terms"),
        ("search", {"terms": [{}]}, "give one of"),
        ("search", {"terms": [{"text": "a", "row": 1}]}, "give one of"),
        ("search", {"terms": [{"text": " "}]}, "empty"),
        ("search", {"terms": [{"row": 99}]}, "no row 99"),
        ("search", {"terms": [{"key": "nothing"}]}, "nothing"),
        ("search", {"terms": [{"image": "%%%"}]}, "base64"),
        ("search", {"terms": [{"image": base64.b64encode(b"no picture").decode()}]}, "picture"),
        ("search", {"terms": [{"embedding": [1.0, 2.0]}]}, "2 values"),
        ("search", {"terms": [{"row": 1}, {"row": 1, "weight": -1}]}, "cancel"),
        ("search", {"terms": [{"row": 1}], "limit": 10_000}, "limit"),
        ("search", {"terms": [{"row": 1}], "surprise": 1}, "surprise"),
        ("search", {"terms": [{"row": 1}], "cut": {"where": "wdth > 1"}}, "width"),
        ("search", {"terms": [{"row": 1}], "cut": {"where": "number > "}}, "missing"),
        ("search", {"terms": [{"row": 1}], "cut": {"where": "(" * 3000}}, "deep"),
        ("rows", {"cut": {"selection": "none such"}}, "no selection"),
        ("rows", {"sort": "label"}, "number"),
        ("cut", {"columns": ["nope"]}, "nope"),
        ("selections", {"name": "a"}, "rows or cut"),
        ("selections", {"name": "a", "rows": []}, "without rows"),
        ("selections", {"name": "a", "rows": [21]}, "no row 21"),
        ("selections", {"name": "a", "rows": [-1]}, "no row -1"),
    ],
)
def test_what_is_wrong_is_said(client, path, body, said):
    reply = client.post(f"/api/datasets/emb/{path}", body)
    assert reply.status == 400, reply.body
    assert said in json.dumps(reply.json())


def test_without_a_model_words_are_refused_and_keys_are_not(made_up):
    client, _ = made_up
    reply = client.post("/api/datasets/my-data-2F/search", {"terms": [{"text": "a cat"}]})
    assert reply.status == 400
    assert "no model" in reply.json()["error"]


def test_several_data_sets_are_served_side_by_side(encoded_once, made_up, tmp_path):
    _, other = made_up
    with serving(encoded_once[1], other.path, no_model=True, selections=str(tmp_path)) as client:
        assert [it["name"] for it in client.found("/api/datasets")] == ["emb", "my-data-2F"]
        client.found("/api/datasets/my-data-2F/selections", {"name": "a", "rows": [50]})
        assert client.found("/api/datasets/emb/selections")["selections"] == []
    assert names_for(["a/emb", "b/emb/", "s3://x/emb"]) == ["emb", "emb-2", "emb-3"]


def test_a_selection_of_another_data_set_of_that_name_is_left_alone(made_up, tmp_path):
    _, other = made_up
    rng = np.random.default_rng(2)
    path = write_dataset(tmp_path / "my data%2F", *rng.normal(size=(2, 60, 16)), shards=3)
    base, saved = "/api/datasets/my-data-2F", str(tmp_path / "saved")
    with serving(other.path, no_model=True, selections=saved) as client:
        made = client.found(f"{base}/selections", {"name": "a", "rows": [1]})
    with serving(path, no_model=True, selections=saved) as client:
        assert client.found(f"{base}/selections")["selections"] == []
        assert client.post(f"{base}/rows", {"cut": {"selection": "a"}}).status == 400
        reply = client.post(f"{base}/selections", {"name": "a", "rows": [2], "replace": True})
        assert reply.status == 409
        assert "another data set" in reply.json()["error"]
    assert read_subset(other, made["path"]).tolist() == [1]


def test_texts_that_wait_go_through_the_model_together(tiny_encoder):
    batches, begun, go_on = [], threading.Event(), threading.Event()

    class Recording:
        card = tiny_encoder.card

        def texts(self, texts):
            batches.append(list(texts))
            begun.set()
            assert go_on.wait(60)
            return tiny_encoder.texts(texts)

    shared, found = SharedEncoder(Recording), {}

    def ask(text):
        found[text] = shared.text(text)

    threads = [threading.Thread(target=ask, args=(f"text {n}",)) for n in range(6)]
    threads[0].start()
    assert begun.wait(60)
    for thread in threads[1:]:
        thread.start()
    while len(shared._waiting) < 5:
        threading.Event().wait(0.01)
    go_on.set()
    for thread in threads:
        thread.join()
    assert [len(batch) for batch in batches] == [1, 5]
    alone = tiny_encoder.texts(list(found)).rows
    assert np.allclose(np.stack(list(found.values())), alone, atol=1e-5)


def test_the_document_describes_every_address_and_refers_to_what_is_there(client):
    document = client.found("/openapi.json")
    described = {(method.upper(), path) for path, of in document["paths"].items() for method in of}
    assert described == {(it.method, it.path) for it in ENDPOINTS}
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split('"$ref": "#/')[1:]}:
        place = document
        for name in reference.split("/"):
            place = place[name]
    names = [operation["operationId"] for of in document["paths"].values() for operation in of.values()]
    assert len(set(names)) == len(names) == len(ENDPOINTS)


def test_the_page_is_served_with_all_that_it_names(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for name in ("style.css", "main.js"):
        assert f"/page/{name}".encode() in page.body
    scripts, left = set(), {"main.js"}
    while left:
        name = left.pop()
        scripts.add(name)
        reply = client.get(f"/page/{name}")
        assert reply.headers["content-type"].startswith("text/javascript")
        assert b"innerHTML" not in reply.body
        assert b"http://" not in reply.body.replace(b"http://www.w3.org/2000/svg", b"")
        left |= {part.split('"')[0] for part in reply.body.decode().split('from "./')[1:]} - scripts
    assert scripts == {"main.js", "api.js", "dom.js", "grid.js", "cut.js", "inspector.js"}
    assert b"://" not in page.body
    assert b"://" not in client.get("/page/style.css").body


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"token": "short"}, "16"),
        ({"token": "ä" * 20}, "ASCII"),
        ({"host": "0.0.0.0"}, "token"),
        ({"host": "0.0.0.0", "token": "t" * 20}, "allow_origin"),
        ({"host": "gpu7", "allow_origin": ("http://gpu7:8000",)}, "token"),
        ({"allow_origin": ("gpu7:8000",)}, "no origin"),
        ({"allow_origin": ("http://gpu7:8000/",)}, "no origin"),
        ({"allow_origin": ("*",)}, "no origin"),
        ({"allow_origin": ("http://*:80",)}, "no origin"),
        ({"allow_origin": ("http://me@gpu7",)}, "no origin"),
        ({"no_model": True, "model": "x"}, "no_model"),
    ],
)
def test_settings_that_would_open_more_than_meant_are_refused(options, said):
    with pytest.raises(OptionError, match=said):
        ServeConfig(**options)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1", "[::1]"])
def test_loopback_needs_no_token(host):
    assert ServeConfig(host=host).token is None
