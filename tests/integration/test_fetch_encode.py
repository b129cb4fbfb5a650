"""`fetch`, then `encode`, both killed and run again: every pair that was fetched has its embedding, under its key."""

import time

import pyarrow.parquet as pq
import pytest

from embedpipe import manifest
from embedpipe.load import EmbeddingDataset
from embedpipe.verify import verify
from tests import web
from tests.integration.test_fetch import table_of
from tests.shards import DEEP


@pytest.fixture(scope="module")
def site():
    with web.serving() as running:
        yield running


def killed_then_finished(start, finish, out, arguments, shards):
    """Run the command as a process, kill it once it has committed a shard, and finish what it began in this one."""
    run = start(*arguments)
    end = time.monotonic() + 600
    while run.poll() is None and len(manifest.committed_numbers(str(out))) < 1:
        assert time.monotonic() < end, "nothing was committed in time"
        time.sleep(0.01)
    run.kill()
    run.communicate()
    assert 1 <= len(manifest.committed_numbers(str(out))) <= shards
    run = finish(*arguments)
    assert run.exit_code == 0, run.stderr


@pytest.mark.slow
def test_rows_and_keys_agree_from_the_table_to_the_embeddings(site, tmp_path, tiny_model, embedpipe, embedpipe_process):
    lines = []
    for i in range(60):
        page = (
            f"/status/404?{i}" if i % 6 == 1 else f"/flaky/1/end{i}/{i}.jpg" if i % 6 == 2 else f"/paced/{i % 25}.jpg"
        )
        lines.append(f"{site.url(page)},caption {i},{i}\n")
    (tmp_path / "t.csv").write_text("url,caption,n\n" + "".join(lines))
    shards, emb = tmp_path / "shards", tmp_path / "emb"
    fetching = ["fetch", tmp_path / "t.csv", shards, "--samples-per-shard", 10, "--allow-host", "127.0.0.1"]
    fetching += ["--threads", 2, "--processes", 1, "--retries", 0]
    killed_then_finished(embedpipe_process, embedpipe, shards, fetching, 6)
    encoding = ["encode", shards, emb, "--model", tiny_model, "--gpus", 0, "--workers", 1, "--batch-size", 2]
    killed_then_finished(embedpipe_process, embedpipe, emb, encoding, 6)

    def agree():
        rows = table_of(shards).to_pylist()
        fetched = [row for row in rows if row["status"] == "success"]
        encoded = EmbeddingDataset(str(emb))
        assert len(encoded) == len(fetched)
        for name in ("key", "caption", "url", "sha256", "width", "height", "n"):
            assert encoded.column(name).to_pylist() == [row[name] for row in fetched]
        assert verify(str(shards), DEEP).whole
        assert verify(str(emb), DEEP).whole
        return len(fetched)

    before = agree()
    # Urls that repeat with another caption are pairs of their own; what is retried is encoded as new shards.
    assert any(row["duplicate_of"] for row in table_of(shards).to_pylist())
    for command in ([*fetching, "--retry-failed", "--only", "5xx"], encoding):
        run = embedpipe(*command)
        assert run.exit_code == 0, run.stderr
    assert agree() > before
    keys = [row["key"] for path in sorted(shards.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert len(set(keys)) == len(keys)
