"""Encode worker: loads the encoder once, then encodes and commits one shard after another."""

from __future__ import annotations

import dataclasses
import socket
import time
from collections import Counter
from collections.abc import Mapping

from .. import manifest
from ..errors import OutputUnwritable
from ..execute import TaskContext, WorkerLoop, see_only, torch_threads
from ..manifest import RunCard, ShardManifest
from ..progress import CutCaptions, TaskReport
from ..read import Reader
from ..store import open_format
from ..taken_down import read_taken_down
from ..types import SourceShard
from . import load_encoder
from .base import Encoder, EncoderConfig
from .batching import BatchingConfig
from .pipeline import encode_shards
from .shard_buffer import ShardBuffer


class EncodeWork:
    """Picklable factory of encode workers. devices: one per worker. threads: compute threads per worker."""

    def __init__(
        self,
        reader: Reader,
        encoder: EncoderConfig,
        stage: BatchingConfig,
        out: str,
        run: RunCard,
        devices: tuple[str, ...],
        threads: int,
    ) -> None:
        assert run.encoder is not None
        self._reader = reader
        self._encoder = encoder
        self._stage = dataclasses.replace(stage, decode_threads=stage.decode_threads or threads)
        self._format = str(run.options["format"])
        self._out = out
        self._card = run.encoder
        self._columns: Mapping[str, str] = run.columns
        self._digits = run.shard_digits
        self._devices = devices
        self._threads = threads
        self._taken = read_taken_down(out)
        self._loaded: Encoder | None = None
        self._in_own_process = False

    def adopt(self, encoder: Encoder) -> None:
        """Use an already loaded encoder: a single worker runs in this process."""
        self._loaded = encoder

    def __getstate__(self) -> dict[str, object]:
        # For a worker in another process, which loads its own.
        return {**self.__dict__, "_loaded": None, "_in_own_process": True}

    def start(self, worker: int) -> WorkerLoop:
        """Load the encoder on this worker's device; refuses one that differs from the run's."""
        device = see_only(self._devices[worker]) if self._in_own_process else self._devices[worker]
        if not manifest.is_begun(self._out):
            raise OutputUnwritable(
                f"{self._out}: {socket.gethostname()} does not see the output that the run began",
                "Give a folder that all machines share at the same place, or an object store",
            )
        with torch_threads(self._threads):
            encoder = self._loaded or load_encoder(self._encoder, device)
        manifest.refuse_difference(self._out, self._card.facts(), encoder.card.facts(), "encoder")

        def work(desk: TaskContext) -> None:
            def finish(gathered: ShardBuffer) -> None:
                desk.done(gathered.task, self._commit(gathered))

            # Beside a GPU, torch's own threads only get in the way of those that decode.
            with torch_threads(1 if device.startswith("cuda") else self._threads):
                encode_shards(desk, self._reader, encoder, self._stage, finish)

        return work

    def _commit(self, gathered: ShardBuffer) -> TaskReport:
        """Write the results of an input shard, its manifest last."""
        source: SourceShard = gathered.task.payload
        begun = time.perf_counter()
        shard = gathered.shard(self._card.dtype, self._columns, self._taken)
        written = open_format(self._format).write(self._out, shard, source.name, self._columns, self._digits)
        spent = {**gathered.spent_s, "write": time.perf_counter() - begun}
        cut = CutCaptions.of(shard.tokens_cut)
        rejects = Counter(reject.error_class for reject in shard.rejects)
        entry = ShardManifest(
            number=shard.number,
            source=source,
            source_sha256=gathered.sha256,
            rows_in=gathered.rows_in,
            rows_out=len(shard),
            rows_rejected=len(shard.rejects),
            rows_dropped=gathered.rows_in - len(shard) - len(shard.rejects),
            rejects=dict(sorted(rejects.items())),
            files=written,
            dim=self._card.dim,
            dtype=self._card.dtype,
            fingerprint=self._card.fingerprint(),
            tokens=shard.text_tokens.total if shard.text_tokens is not None else None,
            token_width=shard.text_tokens.width if shard.text_tokens is not None else None,
            captions_cut=cut.captions if shard.tokens_cut is not None else None,
            tokens_cut=cut.tokens if shard.tokens_cut is not None else None,
            accounts=gathered.accounts,
            timing_s={name: round(seconds, 3) for name, seconds in spent.items()},
        )
        manifest.commit(self._out, entry, self._digits)
        return TaskReport(
            1, len(shard), len(shard.rejects), entry.rejects, entry.bytes(), spent, cut=cut, accounts=gathered.accounts
        )
