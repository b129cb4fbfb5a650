"""Images found by the place that fetch's table gives are those that reading the tars gives."""

import shutil
from pathlib import Path

import pytest

from embedpipe.fetch import FetchConfig, fetch
from embedpipe.load.images.fetched import FetchedImages
from embedpipe.load.images.parts import HeldShard, PartPlace, PartsReader, SourcePart
from embedpipe.read import open_reader
from embedpipe.read.grouping import SampleRules
from tests import shards

CONFIG = FetchConfig(samples_per_shard=4, image_size=32, processes=1, min_image_size=10, resizer="opencv")


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """A folder of two image shards, one sample of which failed."""
    root = tmp_path_factory.mktemp("fetched")
    (root / "photos").mkdir()
    for seed in range(7):
        (root / "photos" / f"{seed}.jpg").write_bytes(shards.jpeg(seed) if seed != 3 else b"<html>")
    fetch(str(root / "photos"), str(root / "out"), CONFIG)
    return str(root / "out")


def opened(folder):
    return open_reader(folder, SampleRules(need_caption=False), "auto")


def stored(reader):
    """{(shard, key): image} as reading the tars gives them."""
    return {
        (shard.name, sample.key): sample.image
        for shard in reader.shards(())
        for sample in shards.read(reader, shard)[0]
    }


def test_every_image_is_found_and_nothing_else(fetched):
    reader = opened(fetched)
    images, expected = FetchedImages(reader), stored(reader)
    assert len(expected) == 6
    assert {place: images.find(*place) for place in expected} == expected
    assert images.find("00000.tar", "nothing") is None
    assert images.find("00000.tar", "00000003") is None, "it failed"
    assert images.find("00009.tar", "00000000") is None
    assert images.find("../up.tar", "00000000") is None


def test_shards_of_merged_data_sets_are_found_under_their_names_there(fetched):
    reader = opened(fetched)
    place = PartPlace(SourcePart("a/", fetched, {}), reader, fetched)
    merged = PartsReader({f"a/{shard.name}": HeldShard(place, shard) for shard in reader.shards(())})
    images = FetchedImages(merged)
    for (shard, key), image in stored(reader).items():
        assert images.find(f"a/{shard}", key) == image
        assert images.find(shard, key) is None


def test_tars_of_others_and_tables_that_are_gone_are_not_known(fetched, tmp_path):
    plain = shards.write_shards(tmp_path / "plain", shards=1)
    assert FetchedImages(opened(plain)).find("00000.tar", "00000") is None
    lost = Path(shutil.copytree(fetched, tmp_path / "lost"))
    (shard, key), image = next(iter(stored(opened(str(lost))).items()))
    (lost / "00000.parquet").write_bytes(b"no parquet")
    assert FetchedImages(opened(str(lost))).find(shard, key) is None
    cut = Path(shutil.copytree(fetched, tmp_path / "cut"))
    (cut / "00000.tar").write_bytes((cut / "00000.tar").read_bytes()[:600])
    assert FetchedImages(opened(str(cut))).find(shard, key) is None
    assert image is not None
