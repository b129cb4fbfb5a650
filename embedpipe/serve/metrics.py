"""Counts and times of what was asked, in the text format of Prometheus, under clip-retrieval's names."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

TIMES = {
    "full_knn_request_time": "Time spent processing a request of nearest rows",
    "text_clip_inference_time": "Time spent embedding a text, waiting for others included",
    "image_clip_inference_time": "Time spent decoding and embedding a picture",
    "knn_index_time": "Time spent looking for nearest rows",
    "metadata_get_time": "Time spent reading metadata of results",
    "dedup_time": "Time spent leaving out near-duplicates among results",
}
_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Histograms of seconds, and requests by route and status."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets = {name: [0] * (len(_BOUNDS_S) + 1) for name in TIMES}
        self._sums = dict.fromkeys(TIMES, 0.0)
        self._requests: dict[tuple[str, int], int] = {}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to a histogram."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - begun
            place = next((i for i, bound in enumerate(_BOUNDS_S) if took <= bound), len(_BOUNDS_S))
            with self._lock:
                self._buckets[name][place] += 1
                self._sums[name] += took

    def count(self, route: str, status: int) -> None:
        """Count a request that was answered. route: of a fixed set, no address that a client chose."""
        with self._lock:
            self._requests[route, status] = self._requests.get((route, status), 0) + 1

    def text(self) -> str:
        """The page that Prometheus reads."""
        with self._lock:
            lines = [line for name in TIMES for line in self._histogram(name)]
            lines += ["# HELP embedpipe_requests_total Requests answered", "# TYPE embedpipe_requests_total counter"]
            for (route, status), count in sorted(self._requests.items()):
                lines.append(f'embedpipe_requests_total{{route="{route}",status="{status}"}} {count}')
        return "\n".join(lines) + "\n"

    def _histogram(self, name: str) -> Iterator[str]:
        yield f"# HELP {name} {TIMES[name]}"
        yield f"# TYPE {name} histogram"
        below = 0
        for bound, count in zip((*map(str, _BOUNDS_S), "+Inf"), self._buckets[name], strict=True):
            below += count
            yield f'{name}_bucket{{le="{bound}"}} {below}'
        yield f"{name}_count {below}"
        yield f"{name}_sum {self._sums[name]:.6f}"
