"""The model behind a search by words or pictures: loaded once, when it is first needed, and asked for many at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..index.query_model import embed_picture, embed_texts

if TYPE_CHECKING:
    from ..encode import Encoder


class SharedEncoder:
    """An encoder that many threads use. load: None to refuse everything that needs one."""

    def __init__(self, load: Callable[[], Encoder] | None) -> None:
        self._load = load
        self._encoder: Encoder | None = None
        self._working = threading.Lock()
        self._queued = threading.Lock()
        self._waiting: list[tuple[str, Future[np.ndarray]]] = []

    @property
    def usable(self) -> bool:
        """Whether texts and images can be embedded."""
        return self._load is not None

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._encoder is not None

    def text(self, text: str) -> np.ndarray:
        """float32 [dim] of a text. Texts that wait while others are embedded go through the model together."""
        if not text.strip():
            raise InputError("the text to search for is empty", "Write some words")
        mine: Future[np.ndarray] = Future()
        with self._queued:
            self._waiting.append((text, mine))
        with self._working:  # whoever comes next embeds all that wait by then
            if not mine.done():
                with self._queued:
                    batch, self._waiting = self._waiting, []
                self._embed(batch)
        return mine.result()

    def image(self, data: bytes) -> np.ndarray:
        """float32 [dim] of an image file. Raises InputError if it cannot be decoded."""
        with self._working:
            return embed_picture(self._loaded(), data, "the picture")

    def _embed(self, batch: list[tuple[str, Future[np.ndarray]]]) -> None:
        try:
            texts = [text for text, _ in batch]
            rows = np.concatenate([some.rows for _, some in embed_texts(self._loaded(), texts)])
        except Exception as problem:  # is everybody's who waits for it
            for _, future in batch:
                future.set_exception(problem)
            return
        for (_, future), row in zip(batch, rows, strict=True):
            future.set_result(row)

    def _loaded(self) -> Encoder:
        if self._load is None:
            raise InputError(
                "this server has no model: it finds by key, by row and by embedding",
                "Serve without `no_model` to search with words and pictures",
            )
        if self._encoder is None:
            self._encoder = self._load()
        return self._encoder
