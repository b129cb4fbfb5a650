"""fetch → encode → index → search, again and again while things fail: is anything lost, doubled or shifted?

Every round fetches new urls of a server on loopback, one in twenty of which fails once or for good (503s, resets,
connections cut half-way, damaged and truncated files), into a small disk that is full for a while in one round of ten.
The commands are real processes; one in twenty is killed (SIGKILL) at a random moment and run again. A byte of a
committed shard is changed in one round of ten, found by `verify --deep` and mended. Then every image must be stored
once under its own url and caption and be encoded once; sixteen of each round are embedded again, must give their row's
embedding, and find themselves first in the index. Memory of each command is
compared between the first and the last third of the rounds.

    python -m benchmarks.soak --minutes 60
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageChops, ImageStat

from embedpipe.encode import Encoder
from embedpipe.index import embed_image, query_encoder
from embedpipe.load import EmbeddingDataset
from tests import bodies, tiny_clip, web

from . import measure, report

URLS = 200
_LONGEST_S = 600
_TRIES = 12
# Of twenty urls one: what the server does with it. The first four give the picture in the end.
_FAULTS = {
    "503 twice, then the picture": ("/later/503/1/2/soak{round}x{row}/{row}.jpg", True),
    "500 twice, then the picture": ("/flaky/2/soak{round}x{row}/{row}.jpg", True),
    "reset": ("/reset?{round}.{row}", False),
    "cut off half-way": ("/cut/{row}.jpg?{round}", False),
    "promises more than it sends": ("/short/{row}.jpg?{round}", False),
    "truncated file": ("/truncated/{row}.jpg?{round}", False),
    "damaged file": ("/garbage.jpg?{round}.{row}", False),
    "503 for ever": ("/status/503?{round}.{row}", False),
}

_FETCH = (
    "--allow-host",
    "127.0.0.1",
    "--samples-per-shard",
    25,
    "--resize-mode",
    "no",
    "--format",
    "png",
    "--threads",
    4,
)


@dataclass(slots=True)
class Log:
    """What happened so far. peaks: MiB of the largest process, by command, in order. wrong: what must not be."""

    rounds: int = 0
    kills: Counter = field(default_factory=Counter)
    events: Counter = field(default_factory=Counter)
    images: int = 0
    rejected: int = 0
    peaks: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    wrong: list[str] = field(default_factory=list)


class Soak:
    """One soak: the server, the disk, and the dice."""

    def __init__(self, site: web.Site, disk: Path, model: str, seed: int, log: Log) -> None:
        self.site, self.disk, self.model, self.log = site, disk, model, log
        self.dice = random.Random(seed)
        self.encoder: Encoder | None = None  # loaded when the first data set says which

    def once(self) -> None:
        """A round: new urls in, an index out, everything compared, everything removed."""
        number = self.log.rounds
        work = self.disk / f"round-{number}"
        work.mkdir()
        wanted, gone = self.write_urls(work / "urls.csv", number)
        shards, emb = work / "shards", work / "emb"
        with self.disk_full_for_a_while(number % 10 == 4):
            self.run("fetch", work / "urls.csv", shards, *_FETCH, "--retries", 0)
        self.run("fetch", work / "urls.csv", shards, *_FETCH, "--retries", 2, "--retry-failed")
        if number % 10 == 7:
            self.damage(shards)
        with self.disk_full_for_a_while(number % 10 == 9):
            self.run("encode", shards, emb, "--model", self.model, "--gpus", 0, "--threads", 2)
        self.run("index", emb)
        self.compare(number, shards, emb, wanted, gone)
        shutil.rmtree(work)
        self.log.rounds += 1

    def write_urls(self, path: Path, number: int) -> tuple[dict[str, int], set[str]]:
        """The table: url → number of its picture, for those that can be had; and the urls that cannot."""
        wanted, gone, rows = {}, set(), []
        for row in range(number * URLS, (number + 1) * URLS):
            page, there = f"/kept/{row}.jpg", True
            if self.dice.random() < 0.05:
                kind = self.dice.choice(sorted(_FAULTS))
                pattern, there = _FAULTS[kind]
                page = pattern.format(round=number, row=row)
                self.log.events[kind] += 1
            url = self.site.url(page)
            rows.append((url, f"caption {row}"))
            if there:
                wanted[url] = row
            else:
                gone.add(url)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("url", "caption"), *rows])
        return wanted, gone

    def run(self, command: str, *words: object) -> measure.Measured:
        """A command until it ends well: killed at times, and run again as often as the disk is full."""
        call = [sys.executable, "-m", "embedpipe_cli", command, *map(str, words)]
        for _ in range(_TRIES):
            if self.dice.random() < 0.05 and self.killed(command, call):
                continue
            done = measure.run(call, self.disk.parent / "logs" / command, timeout_s=_LONGEST_S)
            self.log.peaks[command].append(done.largest_mib)
            if done.exit_code == 0:
                return done
            if "space" in done.stderr or "full" in done.stderr:
                self.log.events["disk full, said in one line"] += 1
                if done.stderr.strip().count("\n") > 3:
                    self.log.wrong.append(f"{command}: a full disk took {done.stderr[-500:]!r} to say")
                time.sleep(1)
                continue
            self.log.wrong.append(f"{command} ended with {done.exit_code}: {done.stderr[-600:]}")
            return done
        raise SystemExit(f"{command} did not come to its end in {_TRIES} tries")

    def killed(self, command: str, call: list[str]) -> bool:
        """Start it and kill it, with all that it started, at a random moment; whether it was still running."""
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(call, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
        try:
            process.wait(self.dice.uniform(0.3, 12))
        except subprocess.TimeoutExpired:
            whole = self.dice.random() < 0.5  # else the command alone: what it started has to notice
            (os.killpg if whole else os.kill)(process.pid, signal.SIGKILL)
            process.wait()
            self.log.kills[command] += 1
            return True
        return False

    @contextlib.contextmanager
    def disk_full_for_a_while(self, wanted: bool) -> Iterator[None]:
        """Inside, a file takes all the room, for some seconds."""
        filler = self.disk / "filler"
        if not wanted or not os.path.ismount(self.disk):
            yield
            return
        room = shutil.disk_usage(self.disk).free
        with contextlib.suppress(OSError), filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(0, room - 300_000))
        self.log.events["disks filled"] += 1
        timer = threading.Timer(self.dice.uniform(4, 20), lambda: filler.unlink(missing_ok=True))
        timer.start()
        try:
            yield
        finally:
            timer.join()

    def damage(self, shards: Path) -> None:
        """Change a byte of a committed tar; `verify --deep` must find it, and a repaired fetch be whole again."""
        tar = self.dice.choice(sorted(shards.glob("*.tar")))
        with tar.open("r+b") as file:
            file.seek(self.dice.randrange(600, tar.stat().st_size - 2000))
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 0x55]))
        self.log.events["bytes changed on the disk"] += 1
        call = [sys.executable, "-m", "embedpipe_cli", "verify", str(shards), "--deep", "--repair"]
        found = measure.run(call, self.disk.parent / "logs" / "verify", timeout_s=_LONGEST_S)
        if tar.name.removesuffix(".tar") not in found.stdout + found.stderr:
            self.log.wrong.append(f"verify --deep did not find the byte changed in {tar.name}")
        urls = shards.parent / "urls.csv"
        self.run("fetch", urls, shards, *_FETCH, "--retries", 2)

    def compare(self, number: int, shards: Path, emb: Path, wanted: dict[str, int], gone: set[str]) -> None:
        """Each picture once, under its own url and caption, in shards, embeddings and index."""
        wrong = self.log.wrong
        rows = [row for path in sorted(shards.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
        good = [row for row in rows if row["status"] == "success"]
        found = Counter(row["url"] for row in good)
        lost = {url for url in wanted if not found[url]}
        if lost or any(times > 1 for times in found.values()) or found.keys() & gone:
            doubled = [url for url, times in found.items() if times > 1]
            wrong.append(f"round {number}: lost {sorted(lost)[:3]}, doubled {doubled[:3]}")
        pictures = {}
        for path in sorted(shards.glob("*.tar")):
            with tarfile.open(path) as tar:
                pictures |= {m.name: tar.extractfile(m).read() for m in tar if m.name.endswith(".png")}
        for row in good:
            own = wanted.get(row["url"], -1)
            if row["caption"] != f"caption {own}" or not _same(pictures.get(f"{row['key']}.png"), own):
                wrong.append(f"round {number}: {row['url']} has another's picture or caption")
        data = EmbeddingDataset(str(emb))
        told = Counter(str(row["url"]) for row in data.rows(range(len(data)), ("url",)))
        if told != found:
            wrong.append(f"round {number}: {len(data)} embeddings of {len(good)} images")
        sample = self.dice.sample(range(len(data)), min(16, len(data)))
        if moved := self.rows_of_others(data, sample, pictures):
            wrong.append(f"round {number}: the embeddings of rows {moved} are not of their pictures")
        np.save(emb.parent / "queries.npy", np.asarray(data.image[sample], np.float32))
        done = self.run("search", emb, "--queries", emb.parent / "queries.npy", "-k", 1, "--json")
        hits = [json.loads(line) for line in done.stdout.splitlines()]
        if _first_rows(hits) != sample and not self._equal_pictures(data, _first_rows(hits), sample):
            wrong.append(f"round {number}: pictures do not find themselves: {_first_rows(hits)} for {sample}")
        self.log.images += len(good)
        self.log.rejected += len(rows) - len(good)

    def rows_of_others(self, data: EmbeddingDataset, sample: list[int], pictures: dict[str, bytes]) -> list[int]:
        """Those of the rows whose embedding is not what their own picture gives when it is embedded again."""
        self.encoder = self.encoder or query_encoder(data, self.model)
        found = []
        for row, said in zip(sample, data.rows(sample, ("key",)), strict=True):
            picture = self.disk.parent / "again.png"
            picture.write_bytes(pictures[f"{said['key']}.png"])
            again = embed_image(self.encoder, str(picture))
            if not np.allclose(again, np.asarray(data.image[row], np.float32), atol=2e-3):
                found.append(row)
        return found

    @staticmethod
    def _equal_pictures(data: EmbeddingDataset, found: list[int], sample: list[int]) -> bool:
        """Whether what was found has the same embedding: pictures may look alike to so small a model."""
        return len(found) == len(sample) and bool(
            np.allclose(
                np.asarray(data.image[found], np.float32), np.asarray(data.image[sample], np.float32), atol=2e-2
            )
        )


def _first_rows(answers: list[dict[str, object]]) -> list[int]:
    return [int(one["hits"][0]["row"]) if one.get("hits") else -1 for one in answers]  # type: ignore[index, call-overload]


def _same(stored: bytes | None, number: int) -> bool:
    """Whether a stored picture is that of the server's number, decoded."""
    if stored is None or number < 0:
        return False
    with Image.open(io.BytesIO(stored)) as one, Image.open(io.BytesIO(bodies.photo(number))) as other:
        difference = ImageChops.difference(one.convert("RGB"), other.convert("RGB"))
        return one.size == other.size and max(ImageStat.Stat(difference).mean) < 2


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of 300 MB where that is allowed; else a folder, which is never full."""
    place.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", str(place)], capture_output=True, check=False
    )
    try:
        yield place
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(place)], check=False)


def _growth(values: list[float]) -> str:
    third = max(1, len(values) // 3)
    first, last = statistics.median(values[:third]), statistics.median(values[-third:])
    return f"{first:.0f} → {last:.0f} MiB ({last / first - 1:+.1%})"


def main() -> None:
    """Soak, and write what happened; exit code 1 if anything was lost, doubled or shifted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/soak"), help="emptied first")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    options = parser.parse_args()
    started = report.start("benchmarks.soak", sorted(os.sched_getaffinity(0)))
    work = options.work.resolve()
    shutil.rmtree(work, ignore_errors=True)
    model = tiny_clip.write(work / "model")
    log, until = Log(), time.monotonic() + 60 * options.minutes
    with web.serving() as site, small_disk(work / "disk") as disk:
        soak = Soak(site, disk, str(model), options.seed, log)
        while time.monotonic() < until and len(log.wrong) < 20:
            soak.once()
            print(f"round {log.rounds}: {log.images} images, {log.kills.total()} kills, {log.wrong}", flush=True)
    report.write(
        "soak",
        f"{log.rounds} rounds, {log.images:,} images, {len(log.wrong)} faults",
        [
            report.table(("what failed", "times"), [*((k, v) for k, v in sorted(log.events.items())),
                                                   *((f"SIGKILL to {k}", v) for k, v in sorted(log.kills.items()))]),
            report.table(("command", "peak memory, first → last third of the rounds"),
                         [(name, _growth(values)) for name, values in sorted(log.peaks.items())]),
            f"{options.minutes:g} minutes of rounds of {URLS} urls; {log.rejected:,} urls were rejects. Every image "
            "was compared with the server's, its url and its caption with the row's; 16 images of each round were "
            "embedded again, gave the embedding of their row, and looked for themselves in the index.",
            *log.wrong,
        ],
        started,
        not_measured=["Power failures.", "Object stores."],
        folder=options.results,
    )  # fmt: skip
    if log.wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
