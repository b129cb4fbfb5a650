"""Images and rows are joined by (source shard, key), whatever their order; what does not fit is counted."""

import contextlib
import itertools
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from embedpipe import files
from embedpipe.errors import DatasetError, InputError
from embedpipe.images.decode import decode
from embedpipe.load import EmbeddingDataset
from embedpipe.load.images.join import join_images
from embedpipe.load.images.loader import ImageLoader, ImageOptions
from embedpipe.load.images.order import StreamedOrder
from embedpipe.load.images.source import open_source
from embedpipe.read.webdataset import WebdatasetReader
from tests import shards as made

OPTIONS = ImageOptions(size=16, threads=2, window_rows=8)


def joined(source, emb, cache, drop=False):
    dataset = EmbeddingDataset(str(emb))
    return dataset, join_images(dataset, open_source(dataset, str(source)), str(cache), str(source), drop=drop)


def loader(dataset, join, batch_size=6, **settings):
    return ImageLoader(dataset, join, OPTIONS, batch_size, seed=3, **settings)


def pixels_of(row, dataset):
    """What must stand beside a row, from the sample that its key names: keys are the numbers of pictures."""
    key = dataset.metadata["key"][row]
    return decode(made.jpeg(int(key)), OPTIONS.preprocess).pixels.numpy()


def large(seed):
    """A picture of more bytes than the headers beside it."""
    return made.jpeg(seed, 160, 160)


def first(stream, count):
    found = [next(stream) for _ in range(count)]
    stream.close()
    return found


def shuffled(source, folder, seed):
    """The same shards with their samples in another order."""
    for path in sorted(Path(source).glob("*.tar")):
        number = int(path.stem)
        order = list(range(number * 7, number * 7 + 7))
        random.Random(seed).shuffle(order)
        made.write_tar(Path(folder) / path.name, [member for i in order for member in made.sample(i)])
    return str(folder)


def assert_right(dataset, batches):
    """Every image is the one of its row's key, and every embedding its row's."""
    assert batches
    for batch in batches:
        for pixels, row in zip(batch.pixels, batch.embeddings.rows, strict=True):
            assert np.array_equal(pixels, pixels_of(row, dataset))
        assert np.array_equal(batch.embeddings.image, dataset.image[batch.embeddings.rows].astype("float32"))


def test_unchanged_shards_are_joined_without_reading_them(encoded_once, tmp_path):
    source, emb = encoded_once
    dataset, join = joined(source, emb, tmp_path / "cache")
    assert join.counts.joined == join.counts.rows == 21
    assert not (tmp_path / "cache").exists()
    assert join.rows.tolist() == list(range(21))
    assert_right(dataset, first(loader(dataset, join).batches(), 7))


@pytest.mark.parametrize("seed", [1, 2])
def test_members_in_another_order_find_their_rows(encoded_once, tmp_path, seed):
    source, emb = encoded_once
    other = shuffled(source, tmp_path / "shards", seed)
    dataset, join = joined(other, emb, tmp_path / "cache")
    assert join.counts.joined == 21
    assert any(shard.rows.tolist() != sorted(shard.rows.tolist()) for shard in join.shards), "it was shuffled"
    assert_right(dataset, first(loader(dataset, join).batches(), 7))
    assert len(list((tmp_path / "cache").iterdir())) == 3
    again = joined(other, emb, tmp_path / "cache")[1]
    assert [shard.keys for shard in again.shards] == [shard.keys for shard in join.shards], "the cache says the same"


def test_shards_that_changed_their_names_are_not_joined_by_position(encoded_once, tmp_path):
    """00000.tar and 00001.tar swapped: every image is now under a source shard that never held its key."""
    source, emb = encoded_once
    for before, after in (("00000", "00001"), ("00001", "00000"), ("00002", "00002")):
        (tmp_path / f"{after}.tar").write_bytes((Path(source) / f"{before}.tar").read_bytes())
    with pytest.raises(DatasetError, match=r"of 21 rows 14 have no image in .*; 7 have their image"):
        joined(tmp_path, emb, tmp_path / "cache")
    dataset, join = joined(tmp_path, emb, tmp_path / "cache", drop=True)
    assert join.rows.tolist() == list(range(14, 21))
    assert (join.counts.image_missing, join.counts.image_unused) == (14, 14)
    assert_right(dataset, list(loader(dataset, join).all()))


def test_missing_changed_and_repeated_images_are_counted(encoded_once, tmp_path):
    source, emb = encoded_once
    folder = tmp_path / "shards"
    samples = [made.sample(i) for i in range(7)]
    samples[2] = made.sample(2, picture=made.jpeg(99))  # another picture under the same key
    del samples[4]
    samples += [made.sample(0), made.sample(70)]  # a key that came before, and one without a row
    made.write_tar(folder / "00000.tar", [member for sample in samples for member in sample])
    (folder / "00001.tar").write_bytes((Path(source) / "00001.tar").read_bytes())
    made.write_tar(folder / "00007.tar", made.sample(71))
    with pytest.raises(DatasetError) as caught:
        joined(folder, emb, tmp_path / "cache")
    said = str(caught.value)
    assert "8 have no image" in said
    assert "7 of them are of source shards that are not there" in said
    assert "1 have another image there than was encoded" in said
    assert "`drop_unjoined=True`" in said
    dataset, join = joined(folder, emb, tmp_path / "cache", drop=True)
    counts = join.counts
    assert (counts.joined, counts.image_missing, counts.shard_missing, counts.image_changed) == (12, 8, 7, 1)
    assert (counts.image_repeated, counts.image_unused, counts.shard_unused) == (1, 1, 1)
    assert counts.joined + counts.image_missing + counts.image_changed + counts.row_repeated == counts.rows
    assert_right(dataset, list(loader(dataset, join).all()))


def test_rows_that_share_a_key_belong_to_no_image(tmp_path):
    from tests.embeddings import write_dataset

    made.write_tar(tmp_path / "shards" / "00000.tar", made.samples(4))
    rng = np.random.default_rng(0)
    keys = ["00000", "00001", "00001", "00003"]
    emb = write_dataset(tmp_path / "emb", rng.normal(size=(4, 8)), rng.normal(size=(4, 8)), shards=1, key=keys)
    with pytest.raises(DatasetError, match="2 share their source shard and key with another row; 2 have their image"):
        joined(tmp_path / "shards", emb, tmp_path / "cache")
    _, join = joined(tmp_path / "shards", emb, tmp_path / "cache", drop=True)
    assert join.rows.tolist() == [0, 3]


def test_images_of_something_else_are_refused(encoded_once, tmp_path):
    made.write_tar(tmp_path / "shards" / "99999.tar", made.samples(3))
    with pytest.raises(InputError, match="not one of 21 rows has its image"):
        joined(tmp_path / "shards", encoded_once[1], tmp_path / "cache", drop=True)


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2)])
def test_places_are_the_rows_of_the_same_batches_without_their_images(encoded_once, tmp_path, rank, world):
    other = shuffled(encoded_once[0], tmp_path / "shards", seed=1)
    dataset, join = joined(other, encoded_once[1], tmp_path / "cache")
    loaded = loader(dataset, join.only(np.arange(1, 20)), rank=rank, world=world)
    everything = np.concatenate([batch.embeddings.rows for batch in loaded.all()])
    batches, places = first(loaded.batches(2), 8), first(loaded.places(2), 8)
    for batch, some in zip(batches, places, strict=True):
        assert everything[some].tolist() == batch.embeddings.rows.tolist()
        stored = loaded.embeddings(some)
        assert stored.rows.tolist() == batch.embeddings.rows.tolist()
        assert np.array_equal(stored.image, batch.embeddings.image)


def test_the_content_is_another_for_other_images_or_another_order(encoded_once, tmp_path):
    source, emb = encoded_once
    dataset, join = joined(source, emb, tmp_path / "cache")
    other = joined(shuffled(source, tmp_path / "shards", seed=1), emb, tmp_path / "cache")[1]
    contents = [loader(dataset, it).content() for it in (join, join.only(np.arange(20)), other)]
    assert len(set(contents)) == 3
    assert loader(dataset, join, batch_size=3).content() == contents[0]


def test_the_stream_goes_on_from_any_step_and_is_cut_over_ranks(encoded_once, tmp_path):
    source, emb = encoded_once
    dataset, join = joined(source, emb, tmp_path / "cache")
    whole = [batch.embeddings.rows for batch in first(loader(dataset, join).batches(), 12)]
    for step in (1, 5, 11):
        rows = first(loader(dataset, join).batches(step), 1)[0].embeddings.rows
        assert rows.tolist() == whole[step].tolist() == loader(dataset, join).rows(step).tolist()
    ranks = [[b.embeddings.rows for b in first(loader(dataset, join, rank=r, world=2).batches(2), 4)] for r in (0, 1)]
    together = [np.concatenate(pair).tolist() for pair in zip(*ranks, strict=True)]
    assert together == [rows.tolist() for rows in whole[2:6]]
    epochs = np.concatenate(whole)[:63].reshape(3, 21)
    assert all(sorted(epoch.tolist()) == list(range(21)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


def test_a_rank_reads_its_own_images_and_headers_alone(tmp_path, monkeypatch):
    """Of four ranks each reads less than half of what there is, and together they see every image once."""
    from tests.embeddings import write_dataset

    for shard in range(2):
        members = [m for i in range(30 * shard, 30 * shard + 30) for m in made.sample(i, f"{i:06d}", picture=large(i))]
        made.write_tar(tmp_path / "shards" / f"{shard:05d}.tar", members)
    rows = np.random.default_rng(0).normal(size=(60, 8))
    dataset, join = joined(tmp_path / "shards", write_dataset(tmp_path / "emb", rows, rows), tmp_path / "cache")
    everything = sum(path.stat().st_size for path in (tmp_path / "shards").iterdir())
    read = []

    @contextlib.contextmanager
    def counting(location, reading=files.reading):
        with reading(location) as raw:
            yield SimpleNamespace(seek=raw.seek, read=lambda size: (data := raw.read(size), read.append(len(data)))[0])

    monkeypatch.setattr(files, "reading", counting)
    seen = []
    for rank in range(4):
        read.clear()
        options = ImageOptions(size=16, threads=1, window_rows=10)
        windows = ImageLoader(dataset, join, options, 8, 3, rank=rank, world=4)._windows(0)  # not ahead of us
        images = [image for window in itertools.islice(windows, 6) for image in window]
        windows.close()
        own = sum(len(image.data) for image in images)
        assert own < sum(read) < everything / 2
        assert all(image.data == large(image.row) for image in images)
        seen += [image.row for image in images]
    assert sorted(seen) == list(range(60))


def test_what_one_process_has_read_of_changed_shards_the_others_do_not_read(encoded_once, tmp_path, monkeypatch):
    source, emb = encoded_once
    other = shuffled(source, tmp_path / "shards", 1)
    _, join = joined(other, emb, tmp_path / "cache")
    monkeypatch.setattr(WebdatasetReader, "read", lambda *_: pytest.fail("read again"))
    assert joined(other, emb, tmp_path / "cache")[1].rows.tolist() == join.rows.tolist()


def test_an_image_that_changes_under_the_training_is_named(encoded_once, tmp_path):
    source, emb = encoded_once
    folder = shuffled(source, tmp_path / "shards", 1)
    dataset, join = joined(folder, emb, tmp_path / "cache")
    made.write_tar(Path(folder) / "00001.tar", [m for i in range(7, 14) for m in made.sample(i, picture=made.jpeg(5))])
    with pytest.raises(DatasetError, match=r"00001\.tar: the image of 000\d\d is no longer there, or another one"):
        list(loader(dataset, join).all())


def test_every_window_is_a_mix_of_several_shards_and_every_epoch_holds_all():
    bounds = np.concatenate(([0], np.cumsum([5, 100, 40, 1, 60, 77]))).astype(np.int64)
    order = StreamedOrder(bounds, seed=1, window_rows=32, shards_at_once=3)
    seen, spread = [], []
    for window in order.windows(0):
        assert np.array_equal(window.places, np.sort(window.places))
        seen.append((window.positions, window.places))
        spread.append(len(np.unique(np.searchsorted(bounds, window.places, side="right"))))
        if sum(len(places) for _, places in seen) >= 2 * order.total:
            break
    positions = np.concatenate([it for it, _ in seen])
    stream = np.concatenate([it for _, it in seen])[np.argsort(positions)]
    assert sorted(positions.tolist()) == list(range(2 * order.total))
    for epoch in stream[: 2 * order.total].reshape(2, -1):
        assert sorted(epoch.tolist()) == list(range(order.total))
    assert np.mean(spread) > 1.5


def test_an_image_that_does_not_decode_is_named(tmp_path):
    from tests.embeddings import write_dataset

    samples = [made.sample(0), made.sample(1, picture=b"\xff\xd8\xff no picture"), made.sample(2)]
    made.write_tar(tmp_path / "shards" / "00000.tar", [member for sample in samples for member in sample])
    rng = np.random.default_rng(0)
    keys = ["00000", "00001", "00002"]
    emb = write_dataset(tmp_path / "emb", rng.normal(size=(3, 8)), rng.normal(size=(3, 8)), shards=1, key=keys)
    dataset, join = joined(tmp_path / "shards", emb, tmp_path / "cache")
    with pytest.raises(DatasetError, match=r"00000\.tar: the image of 00001 \(row 1 of .*\) does not decode"):
        list(loader(dataset, join).all())
