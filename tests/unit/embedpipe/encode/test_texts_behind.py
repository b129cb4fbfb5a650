"""Captions are encoded between the images of the next shard, to the same bits as at once."""

import threading

import numpy as np
import pytest

from embedpipe.encode import EncoderConfig, load_encoder
from embedpipe.encode.base import EncodesInSteps
from embedpipe.encode.batching import BatchingConfig
from embedpipe.encode.pipeline import encode_shards
from embedpipe.execute import Task
from embedpipe.read import SampleRules, open_reader
from tests import shards

SHARDS, ROWS, IMAGES, CAPTIONS = 3, 24, 4, 3


class Desk:
    """Hands out tasks; if they must not overlap, the next one once the last is done."""

    def __init__(self, tasks, overlap):
        self.coming, self.overlap = iter(tasks), overlap
        self.idle, self.told = threading.Semaphore(1), []

    def next(self):
        if not self.overlap:
            assert self.idle.acquire(timeout=60), "the last shard waits for the next one"
        return next(self.coming, None)

    def tell(self, task, step):
        self.told.append((task.number, step))

    def finished(self):
        self.idle.release()


class Recording:
    """An encoder that notes in which order its batches come."""

    def __init__(self, encoder):
        self.encoder, self.order = encoder, []
        self.card, self.counts_cut_tokens = encoder.card, encoder.counts_cut_tokens

    def prepare(self, batch_size):
        return 0.0

    def images(self, pixels):
        self.order.append("image")
        return self.encoder.images(pixels)

    def begin_texts(self, captions, with_states):
        return Noted(self.encoder.begin_texts(captions, with_states), self.order)


class Noted:
    def __init__(self, run, order):
        self.run, self.order, self.result = run, order, run.result

    @property
    def left(self):
        return self.run.left

    def step(self):
        self.order.append("text")
        self.run.step()


@pytest.fixture(scope="module")
def encoder(tiny_model):
    return load_encoder(EncoderConfig(tiny_model, precision="fp32", text_batch_size=CAPTIONS))


def encoded(encoder, tmp_path, with_states, overlap=True):
    reader = open_reader(shards.write_shards(tmp_path, SHARDS, ROWS), SampleRules())
    tasks = [Task(number, it.name, it) for number, it in enumerate(reader.shards(()))]
    desk, made = Desk(tasks, overlap), []

    def finish(gathered):
        made.append(gathered)
        desk.finished()

    config = BatchingConfig(batch_size=IMAGES, text_tokens=with_states)
    encode_shards(desk, reader, encoder, config, finish)
    return made, desk


@pytest.mark.parametrize("with_states", [False, True])
def test_captions_take_turns_with_images_and_stay_what_they_are(with_states, encoder, tmp_path):
    assert isinstance(encoder, EncodesInSteps)
    recording = Recording(encoder)
    made, desk = encoded(recording, tmp_path, with_states)
    assert [gathered.task.number for gathered in made] == list(range(SHARDS))
    for gathered in made:
        captions = [row.sample.caption for row in gathered.rows]
        distinct = list(dict.fromkeys(captions))
        rows = [distinct.index(caption) for caption in captions]
        if with_states:
            states = encoder.text_states(distinct)
            assert np.array_equal(gathered.text_tokens.flat(), states.tokens.take(np.array(rows)).flat())
            expected = states.embeddings
        else:
            expected = encoder.texts(distinct)
        assert np.array_equal(gathered.text.rows, expected.rows[rows])
        assert np.array_equal(gathered.text.norms, expected.norms[rows])
        assert gathered.spent_s["model"] > 0
        assert gathered.spent_s["wait"] >= 0
    assert recording.order.index("text") >= ROWS // IMAGES
    last_image = len(recording.order) - 1 - recording.order[::-1].index("image")
    assert recording.order[:last_image].count("text") > 0, "the last images came after the first captions"
    # What is told of a shard in progress adds up to what it took.
    for gathered in made:
        told = sum(step.spent_s.get("model", 0) for number, step in desk.told if number == gathered.task.number)
        assert told == pytest.approx(gathered.spent_s["model"])


def test_a_shard_that_must_be_done_first_does_not_wait_for_images_of_the_next(encoder, tmp_path):
    made, _ = encoded(encoder, tmp_path, False, overlap=False)
    assert len(made) == SHARDS


def test_an_encoder_that_takes_all_captions_at_once_still_does(encoder, tmp_path):
    class AtOnce:
        card, counts_cut_tokens, prepare, images = (
            encoder.card,
            encoder.counts_cut_tokens,
            encoder.prepare,
            encoder.images,
        )
        texts = encoder.texts

    (plain, _), (stepped, _) = (encoded(it, tmp_path / name, False) for it, name in ((AtOnce(), "a"), (encoder, "b")))
    for one, other in zip(plain, stepped, strict=True):
        assert np.array_equal(one.text.rows, other.text.rows)


def test_what_a_tower_raises_ends_the_run(encoder, tmp_path):
    class Failing(Recording):
        def begin_texts(self, captions, with_states):
            raise ValueError("no such token")

    with pytest.raises(ValueError, match="no such token"):
        encoded(Failing(encoder), tmp_path, False)
