"""A decoder in a repository of the hub: JSON at first, weights when pictures are made, and no code at all."""

import hashlib
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from tests import tiny_pipelines

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
COMMIT = "1" * 40


@pytest.fixture
def hub(tmp_path):
    """(url, paths of files that were asked for) of a hub with one repository, some/decoder, on loopback."""
    folder, asked = tmp_path / "repository", []
    tiny_pipelines.kandinsky(folder)
    (folder / "pipeline.py").write_text("raise SystemExit('code of the repository ran')\n")
    for name in ("diffusion_pytorch_model.bin", "diffusion_pytorch_model.fp16.safetensors"):
        (folder / "unet" / name).write_bytes(b"not to be fetched")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            if path.startswith("/api/models/some/decoder"):
                names = [it.relative_to(folder).as_posix() for it in folder.rglob("*") if it.is_file()]
                if "/tree/" in path:
                    sizes = {name: (folder / name).stat().st_size for name in names}
                    tree = [{"type": "file", "path": name, "size": size, "oid": name} for name, size in sizes.items()]
                    return self.reply(json.dumps(tree).encode())
                files = [{"rfilename": name} for name in names]
                return self.reply(json.dumps({"id": "some/decoder", "sha": COMMIT, "siblings": files}).encode())
            name = path.removeprefix(f"/some/decoder/resolve/{COMMIT}/")
            if not (folder / name).is_file():
                return self.send_error(404)
            if self.command == "GET":
                asked.append(name)
            return self.reply((folder / name).read_bytes())

        do_HEAD = do_GET

        def reply(self, data):
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_json_after_consent_and_weights_when_pictures_are_made(hub, tmp_path):
    url, asked = hub
    np.save(tmp_path / "raw.npy", 4 * np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32))
    words = ["generate", "--embedding", "raw.npy", "--guidance", "1", "--steps", "2", "--n", "1", "--device", "cpu",
             "--decoder", "diffusers:some/decoder"]  # fmt: skip
    environment = os.environ | {
        "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1",
        "EMBEDPIPE_STATE": str(tmp_path / "state"), "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip

    def run(*more):
        command = [sys.executable, "-m", "embedpipe_cli", *words, *more]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    refused = run()
    assert refused.returncode != 0
    assert "nothing is asked of the hub" in refused.stderr
    assert not asked
    planned = run("--trust-model", "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["decoder"]["family"] == "Kandinsky 2.2"
    assert asked
    assert all(name.endswith(".json") for name in asked)
    made = run()
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "out" / "001-00.png").exists()
    weights = {name for name in asked if not name.endswith(".json")}
    assert weights == {f"{it}/diffusion_pytorch_model.safetensors" for it in ("unet", "movq")}
