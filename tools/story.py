"""What an installed embedpipe must do: every command from the outside, on small real data, quietly."""

import json
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# What a user should never see on a terminal, whatever the libraries say.
_NOISE = re.compile(r"Warning\b|Traceback \(most|internal error|deprecat", re.IGNORECASE)
_IMPORTS = """
import importlib, pkgutil
for room in ("embedpipe", "dalle2_core", "embedpipe_cli"):
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(package.__path__, f"{room}."):
        if not module.name.endswith(("__main__", "fetch.worker")):
            importlib.import_module(module.name)
import embedpipe_cli.main
print(*embedpipe_cli.main.COMMANDS)
"""


class Failed(Exception):
    """Something is not as it has to be."""


@dataclass(frozen=True)
class Step:
    """A command, the exit code it must end with, files it must leave, and what its JSON must be."""

    command: tuple[str, ...]
    files: tuple[str, ...] = ()
    code: int = 0
    holds: Callable[[Any], bool] | None = None
    says: str = ""


@dataclass(frozen=True)
class Installed:
    """An environment, and the folder that its commands run in."""

    python: Path
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *command: str, code: int = 0, quiet: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run a program of the environment. Raises Failed for another exit code, and where it is noisy."""
        call = [str(self.python.parent / command[0]), *command[1:]]
        done = subprocess.run(
            call, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False, timeout=1800
        )
        said = f"`{' '.join(command)[:300]}`"
        if done.returncode != code:
            raise Failed(
                f"{said} ended with {done.returncode}, not {code}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
            )
        noise = [line for line in (done.stdout + done.stderr).splitlines() if _NOISE.search(line)]
        if quiet and noise:
            raise Failed(f"{said} is not quiet: {noise[:5]}")
        return done

    def check(self, step: Step) -> None:
        """Run a command of embedpipe. Raises Failed if anything about it is not as the step says."""
        done = self.run("embedpipe", *step.command, code=step.code)
        said = f"`embedpipe {' '.join(step.command)}`"
        for name in step.files:
            path = self.folder / name
            if not path.exists() or (path.is_file() and not path.stat().st_size):
                raise Failed(f"{said} left no {name}")
        if step.says and step.says not in done.stderr:
            raise Failed(f"{said} does not say {step.says!r}: {done.stderr[-500:]}")
        if step.holds is not None and not step.holds(json.loads(done.stdout)):
            raise Failed(f"{said} answers {done.stdout[:1000]}")

    def serve(self) -> None:
        """Serve what the demo made, ask for its page and a row, and interrupt it. Raises Failed."""
        call = [str(self.python.parent / "embedpipe"), "serve", "demo/emb", "--port", "0"]
        with subprocess.Popen(call, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, text=True) as server:
            try:
                said = server.stdout.readline() if server.stdout is not None else ""
                found = re.search(r"http://\S+/", said)
                if found is None:
                    raise Failed(f"`embedpipe serve` says {said!r}")
                for path in ("", "page/main.js", "api/datasets/emb/rows/0"):
                    with urllib.request.urlopen(found[0] + path, timeout=60) as answer:
                        if not answer.read():
                            raise Failed(f"{found[0]}{path} is empty")
            finally:
                server.send_signal(signal.SIGINT)
                server.communicate(timeout=60)
        if server.returncode:
            raise Failed(f"`embedpipe serve` ended with {server.returncode}")


_DEMO = Step(
    ("demo", "demo", "--limit", "60"),
    files=(
        "demo/emb/embedpipe.json",
        "demo/search.png",
        "demo/prior/run.json",
        "demo/prior/curves.png",
        "demo/beside.png",
        "demo/decoder/config.json",
        "demo/generated.png",
    ),
)
_ALONE = (
    Step(("info", "demo/emb", "--json"), holds=lambda told: told["rows"] == 120 and told["shards"] == 1),
    Step(("info", "demo/shards", "--html", "shards.html"), files=("shards.html",)),
    Step(("verify", "demo/emb", "--deep", "--json"), holds=lambda told: told["whole"]),
    Step(("verify", "demo/shards", "--deep", "--json"), holds=lambda told: told["whole"]),
    Step(("search", "demo/emb", "a red heart", "-k", "3", "--json"), holds=lambda found: len(found) == 3),
    Step(("search", "demo/emb", "--key", "00000005", "-k", "1", "--exact", "--json"),
         holds=lambda found: len(found) == 1 and 0 < found[0]["score"] < 1.001),
    Step(("train-prior", "demo/emb", "another-prior", "--set", "train.batch_size=32", "--dry-run")),
    Step(("train-prior", "demo/emb", "ridge", "--prior", "ridge"), files=("ridge/run.json",)),
    Step(("train-clip", "demo/shards", "another-clip", "--set", "train.batch_size=32", "--dry-run")),
    Step(("evaluate", "demo/prior", "demo/emb", "--json"), holds=bool),
    Step(("sample-prior", "demo/emb", "predicted", "--prior", "demo/prior", "--steps", "4", "--gpus", "0"),
         files=("predicted/embedpipe.json",)),
    Step(("export", "demo/emb", "as-parquet", "--to", "parquet"), files=("as-parquet",)),
    Step(("export", "demo/emb", "as-hf", "--to", "hf"), files=("as-hf/README.md",)),
    Step(("export", "demo/emb", "as-datacomp", "--to", "datacomp", "--model-name", "l14"), files=("as-datacomp",)),
    Step(("export", "demo/emb", "as-lance", "--to", "lance"), code=1, says="embedpipe[lance]"),
    Step(("dedup", "demo/emb", "dedup", "--materialise"), files=("dedup/kept.parquet", "dedup/pairs.html")),
    Step(("filter", "demo/emb", "filtered", "--min-similarity", "0.1"), files=("filtered/kept.parquet",)),
    Step(("generate", "a red heart", "--prior", "demo/prior", "--decoder", "demo/decoder", "--steps", "4", "--n", "1",
          "-o", "heart.png"), files=("heart.png", "heart.json")),
    Step(("models", "ViT-B-32")),
    Step(("doctor", "--json"), holds=lambda told: "img2dataset" not in told["missing"]),
    Step(("convert", "demo/urls.csv", "converted"), code=1, says="not a whole file of torch.save"),
    Step(("encode", "demo/shards", "again", "--model", "nowhere"), code=1, says="nowhere"),
)  # fmt: skip
_AFTER = (
    Step(("export", "demo/emb", "kept", "--images", "--keys", "dedup/kept.parquet"), files=("kept/embedpipe.json",)),
    Step(("merge", "demo/emb", "dedup", "merged"), files=("merged/embedpipe.json",)),
)


def tell(python: Path, folder: Path, stage: Callable[[str], AbstractContextManager[None]]) -> None:
    """Run everything in `folder`, which is made anew. Raises Failed."""
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    folder.mkdir()
    of_others = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONWARNINGS")
    environment = {name: value for name, value in os.environ.items() if name not in of_others}
    environment["PATH"] = f"{python.parent}{os.pathsep}{environment.get('PATH', '')}"
    environment |= {
        "EMBEDPIPE_CACHE": str(folder / "cache"),
        "EMBEDPIPE_STATE": str(folder / "state"),
        "COLUMNS": "200",
    }
    installed = Installed(python, folder, environment)
    with stage("import every module, ask every command for its help"):
        commands = installed.run("python", "-c", _IMPORTS).stdout.split()
        installed.run("embedpipe", "--help")
        for command in commands:
            installed.check(Step((command, "--help")))
    with stage("embedpipe demo --limit 60"):
        installed.check(_DEMO)
    with stage(f"{len(_ALONE) + len(_AFTER)} commands on what the demo made"), ThreadPoolExecutor(2) as pool:
        for steps in (_ALONE, _AFTER):
            for _ in pool.map(installed.check, steps):
                pass
    with stage("embedpipe serve"):
        installed.serve()
