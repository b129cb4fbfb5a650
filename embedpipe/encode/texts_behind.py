"""Captions are encoded one shard behind the images, so that neither has to wait for the other.

The captions of a shard are tokenised on a thread once they are all known. Their batches, which are the same as if they
were encoded at once, take turns with the image batches of the next shard, and fill the time in which there are none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np

from ..execute import TaskContext
from ..progress import Progress
from .base import EmbeddedTexts, Encoder, EncodesInSteps, TextRun, TextStates
from .shard_buffer import ShardBuffer

# Waiting for the tokenizer ends as soon as there is a batch of images.
_LOOK_EVERY_S = 0.02


class TextsBehind:
    """Encodes the captions of one shard after another; each goes to `finish` when its own are encoded.

    spent_s: all seconds in which the calling thread was here.
    """

    def __init__(
        self, encoder: Encoder, with_states: bool, desk: TaskContext, finish: Callable[[ShardBuffer], None]
    ) -> None:
        self._encoder = encoder
        self._with_states = with_states
        self._desk = desk
        self._finish = finish
        self._tokeniser = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        self._current: _Captions | None = None
        self.spent_s = 0.0

    def __enter__(self) -> TextsBehind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, at: TracebackType | None
    ) -> None:
        self._tokeniser.shutdown(wait=True, cancel_futures=True)

    def take(self, gathered: ShardBuffer) -> None:
        """Begin with the captions of a shard whose images are encoded, after those of the last one."""
        self.drain()
        begun = time.perf_counter()
        self._current = _Captions(gathered, self._encoder, self._with_states, self._tokeniser)
        self._spend(begun)

    def keep_pace(self, images: int) -> None:
        """After a batch of so many images: encode about as many captions, if they are tokenised."""
        current, begun = self._current, time.perf_counter()
        if current is None or not current.is_tokenised(0):
            return
        enough = current.left - images
        while current.left > max(enough, 0):
            current.step()
        self._spend(begun)
        self._settle(current)

    def look(self) -> bool:
        """While there are no images: encode one batch. Returns whether there may be more to do."""
        current, begun = self._current, time.perf_counter()
        if current is None:
            return False
        if current.is_tokenised(_LOOK_EVERY_S):
            current.step()
            self._spend(begun)
            self._settle(current)
        return True

    def drain(self) -> None:
        """Encode all that is left."""
        while self.look():
            pass

    def _spend(self, begun: float) -> None:
        took_s = time.perf_counter() - begun
        self.spent_s += took_s
        if self._current is not None:
            self._current.gathered.spent_s["model"] += took_s

    def _settle(self, current: _Captions) -> None:
        if current.left:
            return
        begun = time.perf_counter()
        current.collect()
        self._spend(begun)
        self._current, gathered = None, current.gathered
        spent_s = {"model": gathered.spent_s["model"] - current.model_s_before, "wait": gathered.spent_s["wait"]}
        self._desk.tell(gathered.task, Progress(spent_s=spent_s))
        self._finish(gathered)


class _Captions:
    """The captions of a shard on their way; each distinct one is encoded once."""

    def __init__(
        self, gathered: ShardBuffer, encoder: Encoder, with_states: bool, tokeniser: ThreadPoolExecutor
    ) -> None:
        self.gathered = gathered
        self.model_s_before = gathered.spent_s["model"]
        captions = [row.sample.caption or "" for row in gathered.rows]
        place = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        self._rows = np.array([place[caption] for caption in captions], np.int64)
        self._encoder = encoder
        self._begun: Future[TextRun] | None = None
        if place:
            self._begun = tokeniser.submit(_begin, encoder, list(place), with_states)

    def is_tokenised(self, wait_s: float) -> bool:
        """Whether `step` can encode; waits that long for it."""
        if self._begun is None or self._begun.done():
            return True
        try:
            self._begun.exception(wait_s)
        except TimeoutError:
            return False
        return True

    @property
    def left(self) -> int:
        """Distinct captions that are not encoded yet."""
        return self._begun.result().left if self._begun is not None else 0

    def step(self) -> None:
        """Encode one batch."""
        if self._begun is not None:
            self._begun.result().step()

    def collect(self) -> None:
        """Give the shard its embeddings and token states."""
        if self._begun is None:
            none = np.zeros(0, np.int32) if self._encoder.counts_cut_tokens else None
            dim = self._encoder.card.dim
            self.gathered.text = EmbeddedTexts(np.zeros((0, dim), np.float32), np.zeros(0, np.float32), none)
            return
        made = self._begun.result().result()
        if isinstance(made, TextStates):
            self.gathered.text = made.embeddings.take(self._rows)
            self.gathered.text_tokens = made.tokens.take(self._rows)
        else:
            self.gathered.text = made.take(self._rows)


def _begin(encoder: Encoder, captions: list[str], with_states: bool) -> TextRun:
    if isinstance(encoder, EncodesInSteps):
        return encoder.begin_texts(captions, with_states)
    return _AtOnce(encoder, captions, with_states)


class _AtOnce:
    """The captions of an encoder that takes them all at once."""

    def __init__(self, encoder: Encoder, captions: list[str], with_states: bool) -> None:
        self._encoder = encoder
        self._captions = captions
        self._with_states = with_states
        self._made: EmbeddedTexts | TextStates | None = None

    @property
    def left(self) -> int:
        """See `TextRun.left`."""
        return len(self._captions) if self._made is None else 0

    def step(self) -> None:
        """See `TextRun.step`."""
        embed = self._encoder.text_states if self._with_states else self._encoder.texts
        self._made = embed(self._captions)

    def result(self) -> EmbeddedTexts | TextStates:
        """See `TextRun.result`."""
        if self._made is None:
            self.step()
        assert self._made is not None
        return self._made
