"""Does decoding hide behind the model, and would a device with a much faster model be fed?

End to end is the whole encode job but for loading the model: planning, reading, decoding, towers, writing, committing.
Against it, on the same cores in the same rounds: the model alone (the very calls that the job made, made again with
the pixels and captions it had made ready) and decoding alone (the same reader and decoder on as many threads, pixels
thrown away). Then the same with an encoder that answers at once.

    python -m benchmarks.encode_overlap
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import shutil
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from embedpipe.encode import EncoderConfig, job, load_encoder
from embedpipe.encode.base import Embedded, EmbeddedTexts
from embedpipe.encode.batching import BatchingConfig
from embedpipe.encode.job import EncodeConfig
from embedpipe.encode.pipeline import encode_shards
from embedpipe.execute import Task, TaskContext, WorkerLoop, open_executor
from embedpipe.images.decode import DecodedImage, decode
from embedpipe.progress import TaskReport, silent
from embedpipe.read import SampleRules, open_reader

from . import embeddings, measure, photos, report


class RecordingEncoder:
    """An encoder that remembers what it was asked, so that the same can be asked again."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        self.calls: list[tuple[str, Any]] = []

    @property
    def card(self) -> Any:
        """The encoder's own."""
        return self.encoder.card

    def prepare(self, batch_size: int) -> float:
        """Nothing is compiled."""
        return 0.0

    def images(self, pixels: torch.Tensor) -> Any:
        """Encode, and keep the pixels."""
        self.calls.append(("images", pixels.clone()))
        return self.encoder.images(pixels)

    @property
    def counts_cut_tokens(self) -> bool:
        """Whether the encoder does."""
        return self.encoder.counts_cut_tokens

    def texts(self, captions: Sequence[str]) -> EmbeddedTexts:
        """Encode, and keep the captions."""
        self.calls.append(("texts", list(captions)))
        return self.encoder.texts(captions)

    def again(self) -> None:
        """Ask the encoder all of it once more."""
        for name, argument in self.calls:
            getattr(self.encoder, name)(argument)


@dataclass(frozen=True, slots=True)
class Ready:
    """Embeddings that need not be waited for."""

    made: Embedded

    def wait(self) -> Embedded:
        """Them."""
        return self.made


class FreeEncoder:
    """An encoder that costs nothing: the same row for everything."""

    counts_cut_tokens = True

    def __init__(self, card: Any) -> None:
        self.card = card
        self._row = np.full((1, card.dim), card.dim**-0.5, np.float32)

    def prepare(self, batch_size: int) -> float:
        """Nothing is compiled."""
        return 0.0

    def images(self, pixels: torch.Tensor) -> Ready:
        """The row, as often as there are images."""
        rows = np.broadcast_to(self._row, (len(pixels), self.card.dim))
        return Ready(Embedded(rows, np.ones(len(pixels), np.float32)))

    def texts(self, captions: Sequence[str]) -> EmbeddedTexts:
        """The row, as often as there are captions."""
        rows = np.broadcast_to(self._row, (len(captions), self.card.dim))
        return EmbeddedTexts(rows, np.ones(len(captions), np.float32), np.zeros(len(captions), np.int32))


@dataclass(frozen=True, slots=True)
class Unwritten:
    """Work for an executor: shards are encoded and forgotten."""

    reader: Any
    encoder: Any
    config: BatchingConfig

    def start(self, worker: int) -> WorkerLoop:
        """See `Work`."""

        def work(desk: TaskContext) -> None:
            encode_shards(
                desk, self.reader, self.encoder, self.config, lambda made: desk.done(made.task, TaskReport(tasks=1))
            )

        return work


@dataclass(slots=True)
class Bench:
    """The data and settings that every measurement shares; each method returns seconds."""

    data: Path
    out: Path
    config: EncodeConfig
    threads: int
    reader: Any = field(init=False)

    def __post_init__(self) -> None:
        self.reader = open_reader(str(self.data), SampleRules())

    def end_to_end(self, encoder: Any) -> float:
        """The encode job with an encoder that is loaded already, into an empty folder."""
        shutil.rmtree(self.out, ignore_errors=True)
        with mock.patch.object(job, "load_encoder", return_value=encoder):
            begun = time.perf_counter()
            job.encode(str(self.data), str(self.out), self.config)
            return time.perf_counter() - begun

    def stage(self, encoder: Any) -> float:
        """Shards through the worker's pipeline, nothing written."""
        torch.set_num_threads(self.threads)
        tasks = [Task(number, shard.name, shard) for number, shard in enumerate(self.reader.shards(()))]
        begun = time.perf_counter()
        open_executor("inline", 1).run(Unwritten(self.reader, encoder, self.config.stage), tasks, silent)
        return time.perf_counter() - begun

    def model_only(self, recorded: RecordingEncoder) -> float:
        """The calls of a recorded run."""
        torch.set_num_threads(self.threads)
        begun = time.perf_counter()
        recorded.again()
        return time.perf_counter() - begun

    def decode_only(self, card: Any) -> float:
        """Read and decode everything, keep nothing."""
        begun = time.perf_counter()
        waiting: deque = deque()
        with ThreadPoolExecutor(self.config.stage.decode_threads) as pool:
            for shard in self.reader.shards(()):
                for sample in self.reader.read(shard, hashlib.sha256()):
                    waiting.append(pool.submit(_decoded, sample.image, card, self.config.stage.max_pixels))
                    if len(waiting) > 2 * self.config.stage.samples_at_once:
                        waiting.popleft().result()
            for last in waiting:
                last.result()
        return time.perf_counter() - begun


def _decoded(image: bytes, card: Any, max_pixels: int) -> None:
    if not isinstance(decode(image, card.preprocess, card.rules, max_pixels, card.decode), DecodedImage):
        raise RuntimeError("a photo of the benchmark does not decode")


def measure_overlap(bench: Bench, encoder: Any, rounds: int) -> str:
    """End to end against its parts."""
    recorded = RecordingEncoder(encoder)
    bench.end_to_end(recorded)  # also warms the page cache, the allocator and the model
    bench.model_only(recorded)
    times = [
        (bench.end_to_end(encoder), bench.model_only(recorded), bench.decode_only(encoder.card)) for _ in range(rounds)
    ]
    rows = [
        (name, measure.spread([row[column] for row in times]))
        for column, name in enumerate(("end to end, s", "model alone, s", "decoding alone, s"))
    ]
    rows.append(("end to end / the longer of the two", measure.spread([e / max(m, d) for e, m, d in times], 3)))
    rows.append(("end to end / their sum", measure.spread([e / (m + d) for e, m, d in times], 3)))
    return report.table(("", f"median (smallest–largest) of {rounds}"), rows)


def measure_feeding(bench: Bench, encoder: Any, n: int, rounds: int) -> str:
    """Samples per second with an encoder that costs nothing, as a share of decoding alone."""
    free = FreeEncoder(encoder.card)
    bench.end_to_end(free)
    times = [(bench.decode_only(free.card), bench.stage(free), bench.end_to_end(free)) for _ in range(rounds)]
    names = ("decoding alone", "worker's pipeline, model free", "whole job, model free")
    rows = [
        (name, measure.spread([n / row[i] for row in times], 0), measure.spread([row[0] / row[i] for row in times], 3))
        for i, name in enumerate(names)
    ]
    return report.table(("", "samples/s", f"share of decoding alone, {rounds} rounds"), rows)


def main() -> None:
    """Measure both and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000, help="photos")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--free-rounds", type=int, default=7, help="rounds with the encoder that costs nothing")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--model", default="ViT-B-32", help="an open_clip name (random weights), or a folder")
    parser.add_argument("--precision", help="as in `embedpipe encode`; its default if not given")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="for data, weights and outputs")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    options = parser.parse_args()
    started = report.start("benchmarks.encode_overlap", cores := measure.use_cores(options.cores))
    work = options.work.resolve()
    data = photos.make(work / f"photos-{options.n}", photos.PhotoSet(options.n, options.shards))
    named = {} if options.precision is None else {"precision": options.precision}
    weights = "" if Path(options.model).is_dir() else str(embeddings.random_weights(options.model, work))
    config = EncodeConfig(
        EncoderConfig(options.model, weights, **named),
        BatchingConfig(decode_threads=len(cores)),
        gpus=0,
        executor="inline",
        threads_per_worker=len(cores),
    )
    encoder = load_encoder(config.encoder)
    bench = Bench(data, work / "out" / "overlap", config, len(cores))
    card = encoder.card
    facts = itertools.chain(
        [
            ("encoder", f"{options.model}, precision {card.precision}, decode {card.decode}"),
            ("batch size, decode threads", f"{config.stage.samples_at_once}, {config.stage.decode_threads}"),
        ],
        photos.describe(data).items(),
    )
    report.write(
        "encode_overlap",
        f"{options.model}, image and text, {options.n:,} photos",
        [
            f"## Decoding behind the model\n\n{measure_overlap(bench, encoder, options.rounds)}\n\nModel and decoding "
            "share the same cores here, so their sum is what could be reached at best if both used them fully.",
            f"## A model that costs nothing\n\n{measure_feeding(bench, encoder, options.n, options.free_rounds)}\n\n"
            "Tokenising is free here, too.",
            "## Data\n\n" + report.table(("", "smallest · 5 % · median · 95 % · largest"), list(facts)),
        ],
        started,
        not_measured=[
            "CUDA, where the model would leave the cores to decoding.",
            "Loading the model, and more than one worker.",
            "A cold disk: the photos were in the page cache.",
        ],
        folder=options.results,
    )


if __name__ == "__main__":
    main()
