"""serve: what clip-retrieval's clients ask, as they ask it, and what they make of the answer."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import embedpipe
from tests import shards
from tests.embeddings import write_dataset
from tests.served import serving

ROOT = Path(__file__).resolve().parents[4]
PEER = ROOT / "benchmarks" / "peers" / "clip-client" / "bin" / "python"
# The package's own __init__ imports all of its dependencies; its client needs requests alone.
_ASK = """
import importlib.util, json, sys, types
package = types.ModuleType("clip_retrieval")
package.__path__ = list(importlib.util.find_spec("clip_retrieval").submodule_search_locations)
sys.modules["clip_retrieval"] = package
from clip_retrieval.clip_client import ClipClient, Modality
url, picture, embedding = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
images = ClipClient(url=url, indice_name="emb", num_images=5, deduplicate=False)
texts = ClipClient(url=url, indice_name="emb", num_images=3, modality=Modality.TEXT, aesthetic_weight=0.5)
print(json.dumps({
    "text": images.query(text="a red bicycle"),
    "image": images.query(image=picture),
    "embedding": images.query(embedding_input=embedding),
    "texts": texts.query(text="a dog"),
    "url": images.query(image="http://127.0.0.1:1/a.jpg"),
}))
"""


@pytest.fixture(scope="module")
def client(encoded_once, tmp_path_factory):
    with serving(encoded_once[1], selections=str(tmp_path_factory.mktemp("selections"))) as found:
        yield found


@pytest.fixture(scope="module")
def dataset(encoded_once):
    return embedpipe.EmbeddingDataset(encoded_once[1])


def as_client_sends(**asked):
    """The body that clip_client.py of 2.45.0 makes of its defaults."""
    body = {
        "text": None,
        "image": None,
        "image_url": None,
        "embedding_input": None,
        "deduplicate": True,
        "use_safety_model": True,
        "use_violence_detector": True,
        "indice_name": "emb",
        "use_mclip": False,
        "aesthetic_score": 9,
        "aesthetic_weight": 0.5,
        "modality": "image",
        "num_images": 40,
        "num_result_ids": 40,
        **asked,
    }
    return json.dumps(body).encode()


def knn(client, **asked):
    reply = client.post("/knn-service", as_client_sends(**asked))  # requests names no type for a text
    assert reply.status == 200, reply.body
    return reply.json()


def test_results_are_those_of_search_with_their_metadata(client, dataset):
    embedding = dataset.image[4].astype(float).tolist()
    found = knn(client, embedding_input=embedding, deduplicate=False, num_images=6, num_result_ids=9)
    hits = embedpipe.search(dataset, np.array(embedding, np.float32), k=9)
    assert [it["id"] for it in found] == [hit.row for hit in hits]
    assert [it["similarity"] for it in found] == pytest.approx([hit.score for hit in hits], abs=1e-3)
    assert [it.get("caption") for it in found] == [hit.caption for hit in hits[:6]] + [None] * 3
    assert set(found[0]) == {"id", "similarity", "url", "image_path", "caption", "image"}
    assert base64.b64decode(found[0]["image"])[:2] == b"\xff\xd8"


def test_a_picture_and_words_are_embedded(client, dataset):
    (best,) = knn(client, image=base64.b64encode(shards.jpeg(9)).decode(), num_images=1, num_result_ids=1)
    assert best["image_path"] == "00009"
    assert len(knn(client, text="a dog", modality="text", num_images=2, num_result_ids=2, deduplicate=False)) == 2


def test_results_alike_are_left_out_but_the_first(tmp_path):
    rng = np.random.default_rng(0)
    far = np.linalg.qr(rng.normal(size=(8, 8)))[0][:4]
    rows = np.repeat(far, 3, axis=0) + 0.01 * rng.normal(size=(12, 8))
    path = write_dataset(tmp_path / "emb", rows, rows, shards=2)
    query = (far * [[4], [3], [2], [1]]).sum(axis=0)
    with serving(path, no_model=True) as client:
        everything = knn(client, embedding_input=query.tolist(), deduplicate=False)
        different = knn(client, embedding_input=query.tolist())
    assert len(everything) == 12
    assert [it["id"] // 3 for it in different] == [0, 1, 2, 3]
    assert different[0] == everything[0]


def test_names_metadata_and_metrics(client, dataset):
    assert client.found("/indices-list") == ["emb"]
    found = client.post("/metadata", json.dumps({"ids": [3, 0], "indice_name": "emb"}).encode()).json()
    assert [it["id"] for it in found] == [3, 0]
    assert found[0]["metadata"]["caption"] == dataset.metadata[3]["caption"]
    assert client.post("/metadata", b'{"ids": [], "indice_name": "emb"}').json() == []
    assert client.post("/metadata", b'{"ids": [99], "indice_name": "emb"}').status == 400
    metrics = client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    values = dict(line.rsplit(" ", 1) for line in metrics.body.decode().splitlines() if not line.startswith("#"))
    assert float(values["full_knn_request_time_count"]) >= 1
    assert values['knn_index_time_bucket{le="+Inf"}'] == values["knn_index_time_count"]
    assert float(values['embedpipe_requests_total{route="indices_list",status="200"}']) >= 1


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ({"image_url": "http://127.0.0.1:1/a.jpg"}, 400, "opens no urls"),
        ({"text": "a", "use_mclip": True}, 400, "use_mclip"),
        ({"text": "a", "indice_name": "laion"}, 404, "laion"),
        ({"text": ""}, 400, "nothing to search for"),
        ({"text": "a", "num_images": 10**9}, 400, "num_images"),
    ],
)
def test_what_cannot_be_answered_is_said(client, asked, status, said):
    reply = client.post("/knn-service", as_client_sends(**asked))
    assert reply.status == status
    assert said in json.dumps(reply.json())


@pytest.mark.skipif(not PEER.exists(), reason="needs clip-retrieval's client: benchmarks/peers/setup.sh clip-client")
def test_the_real_client_runs_unchanged(client, dataset, tmp_path):
    (tmp_path / "a.jpg").write_bytes(shards.jpeg(9))
    embedding = json.dumps(dataset.image[4].astype(float).tolist())
    words = [PEER, "-c", _ASK, f"http://127.0.0.1:{client.port}/knn-service", tmp_path / "a.jpg", embedding]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    hits = embedpipe.search(dataset, "a red bicycle", k=5)
    assert [it["id"] for it in found["text"]] == [hit.row for hit in hits]
    assert found["image"][0]["image_path"] == "00009"
    assert found["embedding"][0]["id"] == 4
    assert found["texts"]
    assert "opens no urls" in found["url"]["error"]


def test_importing_the_server_loads_no_torch():
    code = "import sys, embedpipe.serve.app, embedpipe.serve.job, embedpipe.serve.server; print('torch' in sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True, cwd=ROOT
    )
    assert said.stdout.strip() == "False"
