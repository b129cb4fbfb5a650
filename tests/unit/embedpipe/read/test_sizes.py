"""How large a sample's files may be: larger ones are rejected by every reader, and are not read into memory."""

import gzip
import hashlib
import io
import subprocess
import sys
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedpipe.read import SampleRules, open_reader
from tests import shards

MOST = 20_000
RULES = SampleRules(max_sample_bytes=MOST)
SIZES = {"a": MOST, "b": MOST + 1, "c": 100 * MOST, "d": 3}


def write(kind, folder, sizes=SIZES):
    members = [
        member for key, size in sizes.items() for member in ((f"{key}.jpg", bytes(size)), (f"{key}.txt", b"caption"))
    ]
    if kind == "folder":
        return shards.write_files(folder / "files", members)
    if kind == "tar":
        return shards.write_tar(folder / "a.tar", members)
    if kind == "tar.gz":
        return shards.write_tar(folder / "a.tar.gz", members, compress=True)
    images = [bytes(size) for size in sizes.values()]
    column = {
        "binary": pa.array(images, pa.binary()),
        "large": pa.array(images, pa.large_binary()),
        "view": pa.array(images, pa.binary_view()),
        "struct": pa.array([{"bytes": image, "path": None} for image in images]),
    }[kind]
    return shards.write_table(
        folder / "a.parquet", pa.table({"key": list(sizes), "image": column, "caption": ["caption"] * len(sizes)})
    )


KINDS = ("tar", "tar.gz", "folder", "binary", "large", "view", "struct")


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_of_too_many_bytes_is_a_reject(kind, tmp_path):
    samples, rejects = shards.read(open_reader(write(kind, tmp_path), RULES))
    assert [(sample.key, len(sample.image)) for sample in samples] == [("a", MOST), ("d", 3)]
    assert [(reject.key, reject.index, reject.error_class) for reject in rejects] == [
        ("b", 1, "too_many_bytes"),
        ("c", 2, "too_many_bytes"),
    ]
    assert all(str(MOST) in reject.message for reject in rejects)


@pytest.mark.parametrize("kind", KINDS)
def test_the_digest_covers_what_is_not_read(kind, tmp_path):
    digests = []
    for place in (write(kind, tmp_path / "one"), write(kind, tmp_path / "two")):
        for rules in (RULES, SampleRules()):
            reader = open_reader(place, rules)
            digest = hashlib.sha256()
            list(reader.read(reader.shards(())[0], digest))
            digests.append(digest.hexdigest())
    assert len(set(digests)) == 1


def test_metadata_of_too_many_bytes_is_a_reject(tmp_path):
    large = b'{"a": "' + b"x" * (1 << 24) + b'"}'
    place = shards.write_tar(
        tmp_path / "a.tar", [("a.jpg", b"1"), ("a.json", large), ("a.txt", b"c"), *shards.sample(0)]
    )
    samples, rejects = shards.read(open_reader(place, SampleRules()))
    assert [sample.key for sample in samples] == ["00000"]
    assert [(reject.key, reject.error_class) for reject in rejects] == [("a", "metadata_invalid")]


def gzip_of_zeros(path, mebibytes):
    """A .tar.gz with one sample of that many mebibytes of zeros, and a good one after it."""
    entry = tarfile.TarInfo("bomb.jpg")
    entry.size = mebibytes << 20
    rest = shards.tar_bytes([("bomb.txt", b"caption"), *shards.sample(0)])
    with path.open("wb") as file:
        file.write(gzip.compress(entry.tobuf(tarfile.GNU_FORMAT), 1))
        block = gzip.compress(bytes(1 << 26), 1)
        for _ in range(mebibytes // 64):
            file.write(block)
        file.write(gzip.compress(rest, 1))


@pytest.mark.slow
def test_a_member_of_gigabytes_is_passed_over_in_little_memory(tmp_path):
    gzip_of_zeros(tmp_path / "a.tar.gz", 3 << 10)
    script = f"""
import resource
from embedpipe.read import SampleRules, open_reader
from tests import shards
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
samples, rejects = shards.read(open_reader({str(tmp_path / "a.tar.gz")!r}, SampleRules()))
print([s.key for s in samples], [(r.key, r.error_class) for r in rejects])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert said[0] == "['00000'] [('bomb', 'too_many_bytes')]"
    assert int(said[1]) < 100_000  # KiB


def test_rows_of_many_bytes_are_read_a_few_at_a_time(tmp_path):
    from embedpipe.read import table as module

    stream = io.BytesIO()
    pq.write_table(pa.table({"image": [bytes([i]) * (1 << 22) for i in range(8)]}), stream, compression=None)
    assert module._rows_at_once(pq.ParquetFile(stream)) == 31
