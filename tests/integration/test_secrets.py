"""Signed urls and passwords are used by a run, and are in none of its files and messages."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, urlsplit

import pytest

from embedpipe import manifest
from tests import shards, stranger

SECRET = "S3CR3T"


@pytest.fixture
def signed():
    """A server that gives its one tar to signed urls only; makes such urls, each with another signature."""
    data = shards.tar_bytes(shards.samples(5))

    class Serve(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            self.answer(data)

        def answer(self, body=b""):
            asked = urlsplit(self.path)
            known = asked.path == "/data/00000.tar"
            allowed = SECRET in parse_qs(asked.query).get("X-Amz-Signature", [""])[0]
            self.send_response(200 if known and allowed else 403 if known else 404)
            self.send_header("Content-Length", str(len(data) if known and allowed else 0))
            self.send_header("ETag", '"e"')
            self.end_headers()
            if known and allowed:
                self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Serve)
    Thread(target=server.serve_forever, daemon=True).start()

    def url(anew):
        at = f"http://user:{SECRET}@127.0.0.1:{server.server_address[1]}/data/00000.tar"
        return f"{at}?X-Amz-Credential=AKIA{SECRET}/2026/s3&X-Amz-Date={anew}&X-Amz-Signature={SECRET}{anew}"

    yield url
    server.shutdown()
    server.server_close()


def files_with_the_secret(folder):
    found = []
    for path, _, names in os.walk(folder):
        found += [
            f"{path}/{name}" for name in names if SECRET.encode() in Path(path, name).read_bytes() or SECRET in name
        ]
    return found


def test_encode_of_a_signed_url(signed, tiny_model, embedpipe, tmp_path, monkeypatch):
    pytest.importorskip("aiohttp")
    monkeypatch.setenv("EMBEDPIPE_STATE", str(tmp_path / "state"))
    common = (tmp_path / "emb", "--model", tiny_model, "--gpus", "0", "--precision", "fp32")
    said = []
    for anew in range(2):
        done = embedpipe("encode", signed(anew), *common)
        assert done.exit_code == 0, done.output
        said.append(done.output)
    run = manifest.read_run(str(tmp_path / "emb"))
    assert [shard.name for shard in run.plan] == ["00000.tar?X-Amz-Credential=***&X-Amz-Date=***&X-Amz-Signature=***"]
    assert len(manifest.committed_numbers(str(tmp_path / "emb"))) == 1
    said.append(embedpipe("encode", signed(3), *common, "--dry-run").output)
    said.append(embedpipe("encode", signed(3), *common, "--json").output)
    said.append(embedpipe("info", tmp_path / "emb", "--html", tmp_path / "page.html").output)
    assert embedpipe("info", tmp_path / "emb", "--html", tmp_path / "given.html", "--images", signed(4)).exit_code == 0
    assert "data:image" in (tmp_path / "given.html").read_text()
    assert SECRET not in "".join(said)
    assert files_with_the_secret(tmp_path) == []


def test_errors_of_urls_that_cannot_be_read(embedpipe, tiny_model, tmp_path):
    for scheme in ("ftp", "http", "webhdfs", "sftp", "nosuch"):
        url = f"{scheme}://me:{SECRET}@127.0.0.1:1/x.tar?sig={SECRET}&token={SECRET}"
        for command in (
            ("encode", url, tmp_path / "emb", "--model", tiny_model, "--gpus", "0"),
            ("fetch", url, tmp_path / "shards"),
            ("info", url),
            ("search", url, "text"),
            ("merge", url, f"{url}2", tmp_path / "both"),
        ):
            done = embedpipe(*command)
            assert done.exit_code != 0, command
            assert SECRET not in done.output, command
            assert "internal error" not in done.stderr, (command, done.stderr)
    assert files_with_the_secret(tmp_path) == []


def test_what_another_program_left_in_a_card_is_not_passed_on(encoded, encoded_once, embedpipe, tmp_path):
    """Such as version 0.1, which stored urls as they were given."""
    source = f"ftp://me:{SECRET}@host/shards"
    emb = stranger.names(encoded, source=source)
    card = Path(emb, "embedpipe.json")
    assert SECRET not in card.read_text()
    document = json.loads(card.read_text())
    document["source"] = source
    del document["self_sha256"]
    card.write_text(json.dumps(document))
    assert manifest.read_run(emb).source == source
    said = embedpipe("merge", emb, encoded_once[1], tmp_path / "both").output
    said += embedpipe("filter", emb, tmp_path / "kept", "--min-similarity", "-1", "--materialise").output
    said += embedpipe("info", emb, "--html", tmp_path / "page.html").output
    said += embedpipe("info", tmp_path / "both", "--json").output
    assert SECRET not in said
    card.unlink()
    assert files_with_the_secret(tmp_path) == []


def test_rows_keep_their_urls_in_json_and_show_them_without_secrets(tiny_model, embedpipe, encode_config, tmp_path):
    import embedpipe as library

    url = f"https://u:{SECRET}@host/a.jpg?token={SECRET}"
    members = [("a.jpg", shards.jpeg()), ("a.json", json.dumps({"url": url}).encode()), ("a.txt", b"a cat")]
    shards.write_tar(tmp_path / "shards" / "0.tar", members)
    library.encode(str(tmp_path / "shards"), str(tmp_path / "emb"), encode_config())
    (hit,) = json.loads(embedpipe("search", tmp_path / "emb", "--key", "a", "--exact", "--json").stdout)
    assert hit["metadata"]["url"] == url
    assert SECRET not in embedpipe("search", tmp_path / "emb", "--key", "a", "--exact").output
