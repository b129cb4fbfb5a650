"""Whatever happens to the files of an output: verify --deep finds it, and nobody is handed a row that is another's.

What reading finds by itself is stated in docs/checking.md and held here: all but changed bytes inside the numbers of an
.npy, between its first and its last 64 KiB. Such a byte changes the row it lies in and no other.
"""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from embedpipe.errors import EmbedpipeError
from embedpipe.info import describe
from embedpipe.load import EmbeddingDataset
from embedpipe.verify import VerifyConfig, verify
from tests import shards
from tests.damage import damage, files_of
from tests.embeddings import write_dataset

ROWS, DIM, WIDTH = 3000, 72, 40
FEW, MANY = 20, 250
# Damages that a reader of .npy cannot see without reading everything; "zero" hits up to 5 neighbouring rows.
INSIDE = {"flip": 1, "flips": 16, "zero": 9}


@pytest.fixture(scope="module", params=["npy", "parquet"])
def whole(request, tmp_path_factory):
    """(folder, what every row is): two shards of a size, so that files in each other's place would fit."""
    rng = np.random.default_rng(0)
    tokens = [rng.normal(size=(1 + row % 3, WIDTH)) for row in range(ROWS)]
    labels = [rng.bytes(60).hex() for _ in range(ROWS)]
    columns = {"label": labels, "score": ("double", [row / 7 for row in range(ROWS)])}
    folder = write_dataset(
        tmp_path_factory.mktemp(request.param) / "emb",
        rng.normal(size=(ROWS, DIM)),
        rng.normal(size=(ROWS, DIM)),
        columns=columns,
        format=request.param,
        tokens=tokens,
        rejects=(0, 1),
    )
    assert verify(folder, shards.DEEP).whole
    sizes = [path.stat().st_size for path in Path(folder).glob("*e*/*_0000?.*") if path.parent.name != "errors"]
    assert sum(size > 3 << 16 for size in sizes) == len(sizes) - 2 * (request.param == "npy"), "all lies in the ends"
    return folder, everything(EmbeddingDataset(folder))


def everything(dataset):
    """All that a data set has to say of its rows: arrays by name, each with one entry for a row."""
    states, mask = dataset.text_tokens[:]
    found = {"image": dataset.image[:], "text": dataset.text[:], "states": states, "mask": mask}
    for name in dataset.column_names():
        found[name] = np.array(dataset.column(name).to_pylist(), object)
    return found


def differing_rows(found, expected):
    """How many rows of each array are other than they should be; arrays that are as they should be are left out."""
    assert found.keys() == expected.keys()
    counts = {}
    for name, array in expected.items():
        assert found[name].shape == array.shape
        if found[name].dtype != object:
            alike = (found[name].view(np.uint8) == array.view(np.uint8)).reshape(len(array), -1).all(axis=1)
        else:
            alike = found[name] == array
        if not alike.all():
            counts[name] = int((~alike).sum())
    return counts


def attempt(look):
    """(what it returned, None), or (None, the error of ours that it raised, which says what to do)."""
    try:
        return look(), None
    except EmbedpipeError as raised:
        problem = raised
    assert problem.remedy, problem
    return None, problem


def is_found_by_verify(folder):
    report, problem = attempt(lambda: verify(folder, shards.DEEP))
    return problem is not None or not report.whole


def torment(whole, place, seed):
    folder, expected = whole
    mine = shutil.copytree(folder, place)
    kind, paths = damage(mine, random.Random(seed))
    what = f"{seed}: {kind} {[path.relative_to(mine).as_posix() for path in paths]}"
    assert is_found_by_verify(str(mine)), what
    attempt(lambda: verify(str(mine)))  # neither of these has to find it, nor to stumble over it
    attempt(lambda: describe(str(mine)))
    found, problem = attempt(lambda: everything(EmbeddingDataset(str(mine))))
    if problem is None:
        wrong = differing_rows(found, expected)
        allowed = paths[0].parent.name in ("img_emb", "text_emb", "text_tokens") and kind in INSIDE
        assert not wrong or allowed, (what, wrong)
        assert sum(wrong.values()) <= INSIDE.get(kind, 0), (what, wrong)
    shutil.rmtree(mine)


@pytest.mark.parametrize("seed", range(FEW))
def test_every_damage_is_found_and_no_row_is_anothers(seed, whole, tmp_path):
    torment(whole, tmp_path / "emb", seed)


@pytest.mark.slow
def test_each_of_250_damages_is_found_and_no_row_is_anothers(whole, tmp_path):
    for seed in range(FEW, FEW + MANY):
        torment(whole, tmp_path / "emb", seed)


@pytest.fixture(scope="module")
def image_shards(tmp_path_factory):
    """Image shards, as fetch leaves them, of a folder of pictures."""
    from embedpipe.fetch import FetchConfig
    from embedpipe.fetch.job import fetch

    root = tmp_path_factory.mktemp("images")
    shards.write_files(root / "photos", [*shards.samples(12), ("bad.jpg", b"x"), ("bad.txt", b"c")])
    fetch(
        str(root / "photos"),
        str(root / "shards"),
        FetchConfig(samples_per_shard=5, image_size=32, processes=1, resizer="opencv"),
    )
    assert verify(str(root / "shards"), shards.DEEP).whole
    return str(root / "shards")


@pytest.mark.parametrize("seeds", [range(20), pytest.param(range(20, 270), marks=pytest.mark.slow)], ids=str)
def test_every_damage_to_image_shards_is_found(seeds, image_shards, tmp_path):
    for seed in seeds:
        mine = shutil.copytree(image_shards, tmp_path / str(seed))
        kind, paths = damage(mine, random.Random(seed))
        assert is_found_by_verify(str(mine)), (seed, kind, paths)
        shutil.rmtree(mine)


@pytest.mark.slow
def test_every_byte_of_the_documents_counts(tmp_path, encoded_once):
    """Each byte of embedpipe.json and of a manifest, changed in one way: some bit of it, or a letter's case."""
    mine = shutil.copytree(encoded_once[1], tmp_path / "emb")
    for path in (mine / "embedpipe.json", mine / "manifest" / "00001.json"):
        data = path.read_bytes()
        for place in range(len(data)):
            change = 1 << (place // 2 % 8) if place % 2 else 0x20
            path.write_bytes(data[:place] + bytes([data[place] ^ change]) + data[place + 1 :])
            with pytest.raises(EmbedpipeError):
                EmbeddingDataset(str(mine))
        path.write_bytes(data)
    assert files_of(mine)


def test_workers_find_the_same(whole, tmp_path):
    mine = shutil.copytree(whole[0], tmp_path / "emb")
    for _ in range(2):
        damage(mine, random.Random(3))
    alone = verify(str(mine), VerifyConfig(deep=True))
    assert verify(str(mine), VerifyConfig(deep=True, workers=2)) == alone
    assert not alone.whole
