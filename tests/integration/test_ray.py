"""Jobs on a cluster of two nodes, whole, losing a node, and losing the process that began them.

The contract: the same job gives the same bytes under inline, processes and ray.
"""

import contextlib
import json
import multiprocessing
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedpipe import manifest
from embedpipe.curate import DedupConfig, dedup
from embedpipe.curate.dedup import clusters as assign
from embedpipe.encode.job import encode
from embedpipe.execute import Cluster, Task
from embedpipe.execute.ray import RayExecutor
from embedpipe.execute.ray_cluster import joined_cluster
from embedpipe.fetch import FetchConfig, fetch
from embedpipe.index import IndexConfig, build_index
from embedpipe.progress import silent
from embedpipe.verify import VerifyConfig, verify
from tests import clusters, raycluster, shards, web
from tests.works import Doing

pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="a cluster on loopback is Linux's"),
]

SHARDS = 10


@pytest.fixture(scope="module")
def cluster():
    with raycluster.start(2) as running:
        yield running


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return shards.write_shards(tmp_path_factory.mktemp("ray") / "shards", SHARDS, 8)


@pytest.fixture(scope="module")
def alone(source, tmp_path_factory, encode_config):
    """What one process on this machine makes of it."""
    out = tmp_path_factory.mktemp("alone") / "emb"
    encode(source, str(out), encode_config())
    return shards.tree(out)


@pytest.fixture
def on(cluster, encode_config):
    return encode_config(executor="ray", workers=2, cluster=Cluster(cluster.address))


def executors(cluster):
    """Options that name each executor, with two workers where there can be more than one."""
    yield {"executor": "inline"}
    yield {"executor": "processes", "workers": 2}
    yield {"executor": "ray", "workers": 2, "cluster": Cluster(cluster.address)}


@contextlib.contextmanager
def losing_a_node(cluster, options):
    """A listener to a run with these options; on the cluster, a node is lost once a task is done, and then replaced."""
    if options["executor"] != "ray":
        yield silent
        return
    lost = threading.Event()

    def listen(step):
        if step.finished is not None and not lost.is_set():
            lost.set()
            cluster.kill_last()

    yield listen
    assert lost.is_set()
    cluster.add()


def test_every_executor_encodes_the_same_also_where_a_node_is_lost_and_finds_the_same_faults(
    source, alone, encode_config, cluster, tmp_path
):
    found = []
    for options in executors(cluster):
        out = tmp_path / options["executor"]
        with losing_a_node(cluster, options) as listen:
            report = encode(source, str(out), encode_config(**options), listen)
        assert (report.report.tasks, report.rows, report.failed_tasks) == (SHARDS, SHARDS * 8, ())
        assert shards.tree(out) == alone
        (out / "text_emb" / "text_emb_00003.npy").write_bytes(b"x" * 400)
        found.append(json.dumps([fault.what for fault in verify(str(out), VerifyConfig(True, **options)).faults]))
    assert len(set(found)) == 1
    assert "text_emb_00003" in found[0]


VECTORS = dict.fromkeys(range(10), 300)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """What one process makes an index of, in one part."""
    return build_index(clusters.write(tmp_path_factory.mktemp("indexed") / "emb", VECTORS), IndexConfig(kind="ivf"))


def index_command(root):
    return [sys.executable, "-m", "embedpipe_cli", "index", root, "--type", "ivf", "--workers", "2"]


def test_every_executor_builds_the_same_index(indexed, cluster, tmp_path):
    for options in executors(cluster):
        root = clusters.write(tmp_path / options["executor"], VECTORS)
        assert build_index(root, IndexConfig(kind="ivf", **options)) == indexed
    clusters.write(root, {**VECTORS, 10: 200})  # added to
    grown = build_index(root, IndexConfig(kind="ivf", **options))
    clusters.write(tmp_path / "inline", {**VECTORS, 10: 200})
    assert build_index(str(tmp_path / "inline"), IndexConfig(kind="ivf")) == grown


def test_an_index_whose_worker_is_killed_is_the_same(indexed, tmp_path):
    killed = []

    def listen(step):
        if step.finished is not None and not killed:
            killed.append(multiprocessing.active_children()[0])
            killed[0].kill()

    config = IndexConfig(kind="ivf", executor="processes", workers=2)
    assert build_index(clusters.write(tmp_path / "emb", VECTORS), config, listen) == indexed
    assert killed


def test_an_index_whose_driver_is_killed_goes_on_from_its_parts(indexed, tmp_path):
    root = clusters.write(tmp_path / "emb", VECTORS)
    driver = subprocess.Popen(index_command(root), stderr=subprocess.PIPE, text=True, start_new_session=True)
    building = Path(root, "index", "image.building")
    while not (done := list(building.glob("part-*.json"))):
        assert driver.poll() is None, driver.stderr.read()
        time.sleep(0.005)
    driver.kill()
    driver.communicate()
    written = {path: path.stat().st_mtime_ns for path in done}
    seen = []

    def listen(step):
        seen.extend(path.stat().st_mtime_ns == at for path, at in written.items() if path.exists())

    assert build_index(root, IndexConfig(kind="ivf"), listen) == indexed
    assert seen
    assert all(seen)


FOUND = (".dedup/nearest.npy", "kept.parquet", "dropped.parquet", "pairs.html")


@pytest.fixture
def many_clusters(monkeypatch):
    monkeypatch.setattr(assign, "_ONE_CLUSTER", 300)
    monkeypatch.setattr(assign, "_ROWS_PER_CLUSTER", 100)


def test_every_executor_finds_the_same_duplicates_also_where_a_node_is_lost(many_clusters, cluster, tmp_path):
    root, made = clusters.write(tmp_path / "emb", VECTORS), []
    for options in executors(cluster):
        out = tmp_path / options["executor"]
        config = DedupConfig(threshold=0.9, confirm="none", threads=1, **options)
        with losing_a_node(cluster, options) as listen:
            report = dedup(root, str(out), config, listen)
        made.append([(out / name).read_bytes() for name in FOUND])
    assert report.clusters > 1
    assert 0 < report.dropped < report.rows
    assert made[0] == made[1] == made[2]


@pytest.fixture(scope="module")
def urls(tmp_path_factory):
    """A table of 5 shards of 60: photos that take a tenth of a second, some that repeat, some that are not there."""
    with web.serving() as site:
        paths = [f"/paced/{i % 240}.jpg" if i % 7 else f"/status/404?{i}" for i in range(300)]
        table = pa.table({"url": [site.url(path) for path in paths], "caption": [f"caption {i}" for i in range(300)]})
        pq.write_table(table, place := tmp_path_factory.mktemp("urls") / "urls.parquet")
        yield str(place)


def test_what_is_fetched_on_a_cluster_that_loses_a_node_is_what_is_fetched_here(urls, cluster, tmp_path):
    """Shards wait for those before them, since urls repeat and duplicates are dropped."""
    told = {"samples_per_shard": 60, "allow_hosts": ("127.0.0.1",), "processes": 2, "threads": 8}
    told["drop_duplicates"] = True
    here = fetch(urls, str(tmp_path / "here"), FetchConfig(**told))
    killed, rows = threading.Event(), []

    def listen(step):
        rows.append(step.rows)
        if sum(rows) > 30 and not killed.is_set():
            killed.set()
            cluster.kill_last()

    config = FetchConfig(**told, executor="ray", cluster=Cluster(cluster.address))
    there = fetch(urls, str(tmp_path / "there"), config, listen)
    cluster.add()
    assert killed.is_set()
    assert (there.succeeded, there.failed, there.shards_now) == (here.succeeded, here.failed, 5)
    assert sum(rows) == 300
    trees = [shards.tree(tmp_path / name) for name in ("here", "there")]
    data = [{name: value for name, value in tree.items() if not name.startswith((".", "reports"))} for tree in trees]
    assert data[0] == data[1]
    assert len(data[0]) > 15
    assert not list((tmp_path / "there" / ".fetch").glob("parts/*"))


def test_both_nodes_have_a_worker(cluster, tmp_path):
    """Each has one core, so two workers are one on each."""
    tasks = [Task(number, str(number), "slow") for number in range(60)]
    outcome = RayExecutor(2, Cluster(cluster.address)).run(Doing(str(tmp_path)), tasks, silent)
    assert outcome.report.tasks == 60
    assert {path.name.split("-")[1] for path in tmp_path.glob("worker-*")} == {"0", "1"}


def command(source, out, model, address):
    return [
        *(sys.executable, "-m", "embedpipe_cli", "encode", source, str(out), "--model", model, "--gpus", "0"),
        *("--workers", "2", "--threads", "1", "--batch-size", "8", "--precision", "fp32"),
        *("--executor", "ray", "--address", address),
    ]


def test_a_driver_that_is_killed_is_run_again_for_what_is_left(source, alone, on, tiny_model, cluster, tmp_path):
    out = tmp_path / "emb"
    driver = subprocess.Popen(
        command(source, out, tiny_model, cluster.address), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while len(done := manifest.committed_numbers(str(out))) < 2:
        assert driver.poll() is None, driver.stderr.read()
        time.sleep(0.02)
    driver.kill()
    driver.communicate()
    written = {number: (out / "manifest" / f"{number:05d}.json").stat().st_mtime_ns for number in done}
    # Workers end with their driver: they may commit what they have in hand until the cluster has noticed.
    with joined_cluster(on.cluster, 1):
        import ray

        while ray.available_resources().get("CPU") != 2.0:
            time.sleep(0.2)
    done = manifest.committed_numbers(str(out))
    assert len(done) < SHARDS
    report = encode(source, str(out), on)
    assert (report.already, report.report.tasks) == (len(done), SHARDS - len(done))
    assert shards.tree(out) == alone
    assert all((out / "manifest" / f"{n:05d}.json").stat().st_mtime_ns == at for n, at in written.items())
