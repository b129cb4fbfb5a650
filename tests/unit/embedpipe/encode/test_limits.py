"""What ends a run before its end: too many rejects, and a disk that is full, which says how much it lacks."""

import re

import pytest

from embedpipe import files, manifest
from embedpipe.encode import disk_space
from embedpipe.encode.job import encode
from embedpipe.errors import DiskFull, TooManyRejects
from embedpipe.progress import RejectLimit
from embedpipe.verify import verify
from tests import shards

BAD = [(f"bad{i}.{extension}", b"x") for i in range(8) for extension in ("jpg", "txt")]


@pytest.mark.parametrize(
    ("limit", "rejected", "total", "too_many", "hopeless"),
    [
        (RejectLimit(5), 5, 10, False, False),
        (RejectLimit(5), 6, 10, True, True),
        (RejectLimit(0), 1, 10**6, True, True),
        (RejectLimit(5, percent=True), 51, 1000, True, False),
        (RejectLimit(5, percent=True), 50, 1000, False, False),
        (RejectLimit(5, percent=True), 101, 1000, True, True),
        (RejectLimit(5, percent=True), 100, 1000, True, False),
        (RejectLimit(5, percent=True), 999, 999, True, False),
        (RejectLimit(0, percent=True), 0, 1000, False, False),
        (RejectLimit(100, percent=True), 1000, 1000, False, False),
    ],
)
def test_limits(limit, rejected, total, too_many, hopeless):
    assert (limit(rejected, total), limit.hopeless(rejected, total)) == (too_many, hopeless)


def test_limits_as_text():
    assert [str(RejectLimit(5, percent=True)), str(RejectLimit(500)), str(RejectLimit(0.5, True))] == [
        "5%",
        "500",
        "0.5%",
    ]


def write_bad(folder, count):
    """So many shards of two samples and eight rejects."""
    for i in range(count):
        shards.write_tar(folder / f"{i}.tar", [*shards.samples(2, 2 * i), *BAD])
    return str(folder)


@pytest.fixture
def bad_source(tmp_path):
    return write_bad(tmp_path / "in", 4)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_hopeless_run_stops_between_shards_and_keeps_what_it_has(workers, tmp_path, encode_config):
    out, count = str(tmp_path / "emb"), 4 * workers  # each may finish what it has in hand
    bad_source = write_bad(tmp_path / "in", count)
    said = r"of the first \d+ samples were rejected \(\d+ image_undecodable\), more than `max_rejects=9`; \d shards?"
    with pytest.raises(TooManyRejects, match=said) as caught:
        encode(bad_source, out, encode_config(max_rejects=RejectLimit(9), workers=workers))
    assert f"{out}/errors" in caught.value.remedy
    done = manifest.committed_numbers(out)
    assert 2 <= len(done) < count, "the first shard is within the limit"
    assert verify(out, shards.DEEP).whole
    with pytest.raises(TooManyRejects):
        encode(bad_source, out, encode_config(max_rejects=RejectLimit(9)))
    assert manifest.committed_numbers(out) == done, "the same limit stops at once"
    assert encode(bad_source, out, encode_config(max_rejects=RejectLimit(8 * count))).rejected == 8 * count


def test_a_share_is_judged_by_enough_samples(bad_source, tmp_path, encode_config, monkeypatch):
    report = encode(bad_source, str(tmp_path / "1"), encode_config(max_rejects=RejectLimit(5, percent=True)))
    assert (report.rejected, report.rejects) == (32, {"image_undecodable": 32})
    monkeypatch.setattr("embedpipe.progress.SAMPLES_TO_JUDGE_BY", 20)
    with pytest.raises(TooManyRejects, match="16 of the first 20 samples.*`max_rejects=5%`; 2 shards"):
        encode(bad_source, str(tmp_path / "2"), encode_config(max_rejects=RejectLimit(5, percent=True)))
    report = encode(bad_source, str(tmp_path / "3"), encode_config(max_rejects=RejectLimit(41, percent=True)))
    assert report.rejected == 32, "over the limit, but not by far: to the end"


def test_a_limit_passed_by_the_last_shard_is_for_the_caller_to_see(bad_source, tmp_path, encode_config):
    report = encode(bad_source, str(tmp_path / "emb"), encode_config(max_rejects=RejectLimit(31)))
    assert report.rejected == 32


@pytest.fixture
def filling(monkeypatch):
    """Lets a number of files be written, and then the disk is full."""

    def after(count):
        write = files.write_bytes

        def write_some(location, data):
            nonlocal count
            count -= 1
            if count < 0:
                raise DiskFull(f"{location}: no space left on the device", "Free some")
            return write(location, data)

        monkeypatch.setattr(files, "write_bytes", write_some)

    return after


def needed(problem):
    """Bytes the message says are needed."""
    amount, unit = re.search(r"about ([\d.]+) (bytes|kB|MB) more are needed", str(problem)).groups()
    return float(amount) * {"bytes": 1, "kB": 1e3, "MB": 1e6}[unit]


@pytest.mark.parametrize("committed", [0, 1, 2])
def test_a_full_disk_says_how_much_is_needed(committed, tmp_path, encode_config, filling, monkeypatch):
    source = shards.write_shards(tmp_path / "in", shards=4, per_shard=40)
    encode(source, str(tmp_path / "whole"), encode_config(dtype="float32"))
    entries = list(manifest.read_manifests(str(tmp_path / "whole"), 5))
    truth = sum(entry.bytes() for entry in entries[committed:])
    filling(2 + committed)  # the run card, the note of a run at work, and one manifest for each shard
    out = str(tmp_path / "emb")
    with pytest.raises(DiskFull) as caught:
        encode(source, out, encode_config(dtype="float32"))
    assert f"{4 - committed} shards are left" in str(caught.value)
    assert re.search(r"[\d.]+ [kMGT]?B are free", str(caught.value))
    assert caught.value.remedy == "Free some"
    # Before a shard is committed only rows and dimensions are known, of as many shards as were read by then; afterwards
    # what they came to.
    if committed:
        assert needed(caught.value) == pytest.approx(truth, rel=0.1)
    else:
        assert truth / 3 < needed(caught.value) < truth * 3
    assert manifest.committed_numbers(out) == list(range(committed))
    assert verify(out, shards.DEEP).whole


def test_a_disk_that_is_full_from_the_start_says_so(tmp_path, encode_config, filling):
    source = shards.write_shards(tmp_path / "in", shards=2, per_shard=2)
    filling(0)
    with pytest.raises(
        DiskFull, match=r"embedpipe\.json: no space left on the device: 2 shards are left, [\d.]+ .* free"
    ):
        encode(source, str(tmp_path / "emb"), encode_config())


def test_sizes_as_text():
    assert [disk_space.size(n) for n in (0, 999, 1500, 23_000_000_000, 10**15)] == [
        "0 bytes",
        "999 bytes",
        "1.5 kB",
        "23.0 GB",
        "1000.0 TB",
    ]
