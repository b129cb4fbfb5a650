"""Data whose every text tries to act on the terminal: whatever a command prints of it does nothing there."""

import json
import re
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedpipe.visible import visible
from tests import shards, stranger
from tests.commands import run_to_its_end

# Clears the screen, writes the clipboard, C1's way of it, turns the line around, hides, begins a line of its own.
EVIL = (
    "\x1b[2J\x1b]52;c;ZXZpbA==\x07\x9b2J\x9d\u202egpj\u2066\u200b\u2028\u2029\x85\x08\x7f\rerror: forged [/red] :cat:"
)
IN_NAME = "\x1b[2J\x9b31m\u202e\u200b\x7f [bold]"
COLUMN = "col\x1b[31m\u202e"


def harmless(text):
    """Whether nothing in `text` but line feeds and tabs is hidden."""
    return visible(text, one_line=False) == text


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, encode_config):
    """(shards, data set), both with hostile texts: keys, captions, columns, names of shards and folders."""
    import embedpipe

    root = tmp_path_factory.mktemp("hostile") / f"folder {IN_NAME}"
    for shard in range(2):
        members = [
            (f"{shard}{i} {IN_NAME}.{kind}", data)
            for i in range(4)
            for kind, data in (
                ("jpg", shards.jpeg(10 * shard + i) if i else b"no picture"),
                ("txt", f"{i} {EVIL}".encode()),
                ("json", json.dumps({"url": f"http://host/{EVIL}", COLUMN: EVIL}).encode()),
            )
        ]
        shards.write_tar(root / f"{shard}{IN_NAME}.tar", members)
    embedpipe.encode(str(root), str(root / "emb"), encode_config())
    return root, root / "emb"


@pytest.fixture(params=["utf-8", "ascii"])
def run(request):
    """Runs a command; whatever it prints must be harmless, in that encoding."""

    def start(*arguments):
        done = run_to_its_end(*arguments, charset=request.param)
        assert isinstance(done.exception, SystemExit | None), done.exception
        for raw in (done.stdout_bytes, done.stderr_bytes):
            text = raw.decode(request.param)  # strictly
            assert harmless(text), [
                (hex(ord(it)), text[max(0, i - 40) : i]) for i, it in enumerate(text) if not harmless(it)
            ]
            assert not re.search(r"^error: forged", text, re.MULTILINE)
        assert "UnicodeEncodeError" not in done.stderr
        assert "internal error" not in done.stderr
        assert "MarkupError" not in done.stderr
        return done

    return start


def test_what_commands_print_of_it(hostile, run, tmp_path):
    source, emb = hostile
    assert "\\x1b[2J" in run("info", emb).stdout
    assert run("info", emb, "--html", tmp_path / "page.html").exit_code == 0
    assert harmless((tmp_path / "page.html").read_text())
    assert run("verify", emb).exit_code == 0
    assert run("index", emb, "--type", "flat").exit_code == 0
    key = f"01 {IN_NAME}"
    for saved in ("sheet.png", "sheet.html", "hits.jsonl"):
        done = run("search", emb, "--key", key, "--exact", "--save", tmp_path / saved)
        assert done.exit_code == 0, done.stderr
    assert "\\u202egpj" in run("search", emb, "--key", key, "--exact").stdout
    assert harmless((tmp_path / "sheet.html").read_text())
    assert run("dedup", emb, tmp_path / "dedup").exit_code == 0
    assert run("filter", emb, tmp_path / "filter", "--min-similarity", "-1").exit_code == 0
    for page in [*(tmp_path / "dedup").glob("*.html"), *(tmp_path / "filter").glob("*.html")]:
        assert harmless(page.read_text()), page
    run("filter", emb, tmp_path / "filter2", "--where", f'"{COLUMN}" = 1')
    run("filter", emb, tmp_path / "filter3", "--where", f"{EVIL} ==== 2")
    other = shutil.copytree(emb, tmp_path / f"other {IN_NAME}")
    assert run("merge", emb, other, tmp_path / "merged").exit_code == 0
    run("info", tmp_path / "merged")
    run("export", emb, tmp_path / "export", "--to", "parquet")
    run("encode", source, tmp_path / "again", "--model", f"no {EVIL}", "--gpus", "0")
    run("encode", source, emb, "--model", "ViT-B-32", "--pretrained", EVIL, "--gpus", "0", "--dry-run")
    run("models", f"no {EVIL}")
    run("doctor", "--json")


def test_json_is_exact(hostile, run):
    _, emb = hostile
    found = json.loads(run("search", emb, "--key", f"01 {IN_NAME}", "--exact", "--json").stdout)
    assert {hit["metadata"]["caption"] for hit in found} <= {f"{i} {EVIL}" for i in range(4)}
    assert all(hit["key"].endswith(IN_NAME) for hit in found)
    assert IN_NAME in json.loads(run("info", emb, "--json").stdout)["path"]


def test_errors_and_faults(hostile, run, tmp_path):
    _, emb = hostile
    for arguments in (
        ("info", f"no {EVIL}"),
        ("search", f"no {EVIL}", "text"),
        ("search", emb, "--key", EVIL, "--exact"),
        (EVIL,),
        ("info", emb, f"--{EVIL}"),
        ("train-prior", emb, tmp_path / "prior", "--set", f"{EVIL}=1"),
        ("generate", "text", "--decoder", f"no {EVIL}"),
        ("convert", f"no {EVIL}", tmp_path / "out"),
    ):
        assert run(*arguments).exit_code != 0, arguments


def test_a_card_and_a_damaged_output(hostile, run, encoded):
    emb = stranger.names(encoded, model=f"hf-hub:{EVIL}", source=f"/nowhere {EVIL}")
    done = run("search", emb, "text")
    assert done.exit_code == 1
    run("info", emb)
    run("info", emb, "--html", f"{emb}/page.html")
    (encoded / "img_emb" / f"more {IN_NAME}.npy").write_bytes(b"")
    next((encoded / "metadata").iterdir()).write_bytes(b"")
    assert run("verify", emb).exit_code == 1
    (encoded / "embedpipe.json").write_text(json.dumps({EVIL: 1}))
    assert run("info", emb).exit_code == 1


def test_a_url_table(run, tmp_path):
    urls = [f"http://{EVIL}/x.jpg", f"ftp://a/{EVIL}", EVIL, f"http://127.0.0.1:1/{EVIL}"]
    pq.write_table(pa.table({"url": urls, "caption": [EVIL] * 4, COLUMN: [EVIL] * 4}), tmp_path / "urls.parquet")
    done = run("fetch", tmp_path / "urls.parquet", tmp_path / "out", "--url-col", EVIL)
    assert done.exit_code != 0
    done = run("fetch", tmp_path / "urls.parquet", tmp_path / "out", "--retries", "0")
    assert "none of 4 images was fetched" in done.stderr
    run("info", tmp_path / "out")
    run("verify", tmp_path / "out")
    (tmp_path / "urls.csv").write_text(f"url,{COLUMN}\n" + "\n".join(urls), newline="")
    run("fetch", tmp_path / "urls.csv", tmp_path / "out2", "--retries", "0")


def test_tracebacks(embedpipe_process):
    process = embedpipe_process("info", f"no {EVIL}".replace("\x00", ""), "--debug")
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" in said
    assert harmless(said)
