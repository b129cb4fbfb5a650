"""Whatever is wrong with an output, verify finds it, names the shard, and drops it if asked; encode makes it again.

Random damages, five hundred of them, are in tests/properties/test_damage.py.
"""

import contextlib
import json
import random
import shutil
import subprocess
import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from embedpipe import files, filesystem
from embedpipe.encode.job import encode
from embedpipe.errors import DatasetError, EmbedpipeError, InputError, OutputBusy, StorageFailed
from embedpipe.fetch import FetchConfig
from embedpipe.info import describe
from embedpipe.load import EmbeddingDataset
from embedpipe.lock import exclusive
from embedpipe.verify import VerifyConfig, verify
from tests import shards

SHARD_FILES = (("img_emb/img_emb", "npy"), ("metadata/metadata", "parquet"), ("text_emb/text_emb", "npy"))


def data_files(folder):
    return sorted(p for name in ("img_emb", "text_emb", "metadata", "errors") for p in folder.glob(f"{name}/*"))


def test_an_undamaged_data_set_is_whole(encoded_once):
    report = verify(encoded_once[1])
    assert report.whole
    assert (report.planned, report.committed, report.missing, report.rows, report.rejected) == (3, 3, 0, 21, 0)


@pytest.mark.parametrize("seed", range(24))
def test_any_damage_to_a_data_file_is_found_and_the_shard_named(seed, encoded):
    rng = random.Random(seed)
    path = rng.choice(data_files(encoded))
    data = path.read_bytes()
    kind = ("flip", "cut", "remove", "swap", "grow", "folder")[seed % 6]
    numbers = {int(path.stem[-5:])}
    if kind == "flip":
        place = rng.randrange(len(data))
        path.write_bytes(data[:place] + bytes([data[place] ^ rng.randrange(1, 256)]) + data[place + 1 :])
    elif kind == "cut":
        path.write_bytes(data[: rng.randrange(len(data))])
    elif kind == "remove":
        path.unlink()
    elif kind == "swap":
        other = rng.choice([p for p in path.parent.iterdir() if p != path])
        numbers.add(int(other.stem[-5:]))
        path.write_bytes(other.read_bytes())
        other.write_bytes(data)
    elif kind == "grow":
        path.write_bytes(data + b"\0")
    else:
        path.unlink()
        path.mkdir()
    report = verify(str(encoded), shards.DEEP)
    assert {fault.number for fault in report.faults} == numbers
    assert all(path.parent.name in fault.what for fault in report.faults)
    assert all(fault.name == f"{fault.number:05d}.tar" for fault in report.faults)


@pytest.mark.parametrize("seed", range(20))
def test_no_damage_to_a_manifest_or_run_card_makes_verify_raise_anything_else(seed, encoded):
    rng = random.Random(seed)
    path = rng.choice([*sorted(encoded.glob("manifest/*.json")), encoded / "embedpipe.json"])
    data = bytearray(path.read_bytes())
    if seed % 2:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    else:
        data = data[: rng.randrange(len(data))]
    path.write_bytes(data)
    with contextlib.suppress(EmbedpipeError):
        describe(str(encoded))
    try:
        whole = verify(str(encoded)).whole
    except EmbedpipeError:
        whole = False
    assert not whole


@pytest.mark.parametrize(
    "change",
    [
        {"rows_in": 8},
        {"rows_out": 6, "rows_in": 6},
        {"rows_rejected": 1, "rows_in": 8},
        {"rows_rejected": 1, "rows_in": 8, "rejects": {"image_empty": 1}},
        {"rejects": {"image_empty": 2}},
        {"dim": 8},
        {"dtype": "float32"},
        {"fingerprint": "other"},
        {"number": 2},
        {"files": []},
    ],
)
def test_a_manifest_that_does_not_fit_its_files_is_a_fault(change, encoded):
    shards.edit(encoded / "manifest" / "00001.json", **change)
    assert {fault.number for fault in verify(str(encoded), shards.DEEP).faults} == {1}


def test_manifests_of_another_place_are_found(encoded):
    shutil.copy(encoded / "manifest" / "00000.json", encoded / "manifest" / "00001.json")
    assert {fault.number for fault in verify(str(encoded)).faults} == {1}
    plan = json.loads((encoded / "embedpipe.json").read_text())["plan"][:2]
    shards.edit(encoded / "embedpipe.json", plan=plan)
    assert {fault.number for fault in verify(str(encoded)).faults} == {1, 2}


def test_a_shard_that_is_not_made_yet_is_missing_and_no_fault(encoded):
    shards.forget(encoded, 2)
    report = verify(str(encoded))
    assert report.whole
    assert (report.committed, report.missing, report.rows) == (2, 1, 14)
    assert report.leftovers == tuple(f"{stem}_00002.{end}" for stem, end in SHARD_FILES)
    assert len(EmbeddingDataset(str(encoded))) == 14


def test_a_manifest_that_vanished_is_missed(encoded, encoded_once, encode_config):
    """Its rows would be gone, and those behind it have other numbers."""
    (encoded / "manifest" / "00001.json").unlink()
    (fault,) = verify(str(encoded)).faults
    assert (fault.number, fault.what) == (1, "manifest/00001.json: missing")
    with pytest.raises(
        DatasetError, match=r"manifest/00001\.json: missing, 1 of 3 shards are lost.*embedpipe.verify.*repair=True"
    ):
        EmbeddingDataset(str(encoded))
    assert verify(str(encoded), REPAIR).dropped == (1,)
    assert verify(str(encoded)).whole
    assert len(EmbeddingDataset(str(encoded))) == 14
    encode(encoded_once[0], str(encoded), encode_config())
    assert shards.tree(encoded) == shards.tree(encoded_once[1])


def test_an_output_of_before_may_miss_manifests(encoded):
    shards.edit(encoded / "embedpipe.json", pending=None)
    (encoded / "manifest" / "00001.json").unlink()
    assert verify(str(encoded), shards.DEEP).whole


def test_fast_reads_no_data_and_deep_all_of_it(encoded):
    path = encoded / "img_emb" / "img_emb_00001.npy"
    array = np.load(path)
    np.save(path, array[::-1])
    report = verify(str(encoded))
    assert report.whole
    assert not report.deep
    assert [fault.what for fault in verify(str(encoded), shards.DEEP).faults] == [
        "img_emb/img_emb_00001.npy: the checksum does not match: its bytes were changed"
    ]


def told(folder):
    return [fault.what for fault in verify(str(folder), shards.DEEP).faults]


def rewritten(encoded, name, change):
    """Change a file's contents, and let the manifest agree: only the meaning is wrong."""
    path = encoded / name
    if path.suffix == ".npy":
        np.save(path, change(np.load(path)))
    else:
        pq.write_table(change(pq.read_table(path)), path)
    shards.record_anew(encoded, 1, path)


def put(array, row, value):
    array[row] = value
    return array


def column(table, name, change):
    values = table[name].to_pylist()
    kind = table.schema.field(name).type
    return table.set_column(table.schema.get_field_index(name), name, pa.array(change(values), kind))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("img_emb/img_emb", lambda a: put(a, 3, np.nan), "image embeddings: 1 of 7 rows hold NaN or infinity"),
        ("img_emb/img_emb", lambda a: put(a, (5, 2), -np.inf), "hold NaN or infinity, the first is row 5"),
        ("text_emb/text_emb", lambda a: put(a, 6, a[6] * 1.01), "text embeddings: 1 of 7 rows are not of length 1"),
        ("text_emb/text_emb", lambda a: put(a, 6, 0), "are not of length 1, the first is row 6"),
        ("img_emb/img_emb", lambda a: a[::-1].copy(), "rows are not the dot product of image and text"),
        ("img_emb/img_emb", lambda a: a.astype(np.float32), "image embeddings are float32, should be float16"),
        ("img_emb/img_emb", lambda a: a[:6], "shape (6, 16), but its manifest says (7, 16)"),
        ("metadata/metadata", lambda t: column(t, "key", lambda v: [*v[1:], v[1]]), "7 rows, but 6 keys"),
        ("metadata/metadata", lambda t: column(t, "key", lambda v: [None, *v[1:]]), "1 rows have no key"),
        ("metadata/metadata", lambda t: column(t, "key", lambda v: v[::-1]), "key and image_path differ"),
        ("metadata/metadata", lambda t: column(t, "src_shard", lambda v: ["x", *v[1:]]), "of another input shard"),
        ("metadata/metadata", lambda t: column(t, "src_index", lambda v: v[::-1]), "not in the order of the input"),
        ("metadata/metadata", lambda t: column(t, "src_index", lambda v: [*v[:-1], 9]), "not the 7 samples of the"),
        ("metadata/metadata", lambda t: column(t, "src_index", lambda v: [None, *v[1:]]), "rows without one"),
        ("metadata/metadata", lambda t: column(t, "similarity", lambda v: [None, *v[1:]]), "similarity: 1 rows have"),
        ("metadata/metadata", lambda t: column(t, "similarity", lambda v: [v[0] + 0.01, *v[1:]]), "similarity: 1 of"),
        ("metadata/metadata", lambda t: t.drop_columns(["label"]), "but embedpipe.json says key string"),
        ("metadata/metadata", lambda t: t.slice(1), "6 rows, but its manifest says 7"),
    ],
)
def test_numbers_and_rows_that_are_wrong_are_found_however_sound_their_files(name, change, said, encoded):
    rewritten(encoded, f"{name}_00001.{'parquet' if name.startswith('meta') else 'npy'}", change)
    faults = verify(str(encoded), shards.DEEP).faults
    assert {fault.number for fault in faults} == {1}
    assert any(said in fault.what for fault in faults), faults


@pytest.fixture
def with_rejects(tmp_path, encode_config):
    members = [*shards.samples(3), ("bad.jpg", b"x"), ("bad.txt", b"c"), ("mute.jpg", shards.jpeg())]
    shards.write_tar(tmp_path / "in" / "0.tar", shards.samples(2))
    shards.write_tar(tmp_path / "in" / "1.tar", members)
    encode(str(tmp_path / "in"), str(tmp_path / "rejects"), encode_config())
    return tmp_path / "rejects"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: column(t, "error_class", lambda v: v[:1] * 2), "but the manifest says {"),
        (lambda t: column(t, "src_shard", lambda v: ["x", *v[1:]]), "errors: rows of another input shard than 1.tar"),
        (lambda t: column(t, "src_index", lambda v: [0, *v[1:]]), "together are not the 5 samples"),
        (lambda t: t.slice(1), "1 rows of"),
        (lambda t: t.drop_columns(["stage"]), "2 rows of key, src_shard, src_index, error_class, message"),
    ],
)
def test_rejects_are_checked_like_rows(change, said, with_rejects):
    assert verify(str(with_rejects), shards.DEEP).whole
    rewritten(with_rejects, "errors/errors_00001.parquet", change)
    assert any(said in what for what in told(with_rejects)), told(with_rejects)


def test_files_that_nothing_lists_are_told_and_no_fault(encoded):
    strangers = ["img_emb/img_emb_00007.npy", "errors/errors_00001.parquet", "metadata/x.tmp-1-2", "manifest/note.txt"]
    shards.write_files(encoded, [(name, b"x") for name in strangers])
    report = verify(str(encoded), shards.DEEP)
    assert report.whole
    assert report.leftovers == tuple(sorted(strangers))


def test_an_index_is_checked_by_its_card(encoded):
    from embedpipe.index import build_index

    build_index(str(encoded))
    assert verify(str(encoded), shards.DEEP).whole
    (path,) = (encoded / "index").glob("image-*.faiss")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    (fault,) = verify(str(encoded), shards.DEEP).faults
    assert fault.number is None
    assert f"index/{path.name}: the checksum does not match" in fault.what
    assert "`embedpipe index` makes it again" in fault.what
    path.unlink()
    assert f"{path.name}: missing" in told(encoded)[0]
    (encoded / "index" / "image.json").write_bytes(b"{")
    assert "image.json: damaged: not JSON" in told(encoded)[0]


# Repair.


REPAIR = VerifyConfig(deep=True, repair=True)


def test_repair_drops_what_is_bad_and_encode_makes_exactly_that_again(encoded, encoded_once, encode_config):
    flipped = encoded / "img_emb" / "img_emb_00000.npy"
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"?")
    (encoded / "metadata" / "metadata_00002.parquet").unlink()
    report = verify(str(encoded), REPAIR)
    assert not report.whole
    assert report.dropped == (0, 2)
    left = verify(str(encoded), shards.DEEP)
    assert (left.whole, left.committed, left.missing) == (True, 1, 2)
    done = encode(encoded_once[0], str(encoded), encode_config())
    assert (done.already, done.report.tasks, done.redone) == (1, 2, ())
    assert shards.tree(encoded) == shards.tree(encoded_once[1])


def test_repair_of_a_damaged_manifest_and_of_a_whole_output(encoded):
    before = shards.tree(encoded)
    assert verify(str(encoded), REPAIR).dropped == ()
    assert shards.tree(encoded) == before
    (encoded / "manifest" / "00001.json").write_bytes(b"{")
    assert verify(str(encoded), VerifyConfig(repair=True)).dropped == (1,)
    assert not (encoded / "manifest" / "00001.json").exists()


def test_nothing_is_dropped_of_an_output_whose_card_is_damaged(encoded):
    card = encoded / "embedpipe.json"
    card.write_bytes(card.read_bytes().replace(b'"npy"', b'"nqy"'))
    (encoded / "img_emb" / "img_emb_00000.npy").unlink()
    with pytest.raises(DatasetError, match=r"embedpipe\.json: damaged: its checksum does not match.*Restore it"):
        verify(str(encoded), REPAIR)
    assert len(list((encoded / "manifest").iterdir())) == 3


def test_what_cannot_be_read_is_a_fault_and_is_not_dropped(encoded, monkeypatch):
    sha256 = files.sha256

    def broken(location):
        if "text_emb_00001" in location:
            raise OSError(5, "Input/output error")
        return sha256(location)

    monkeypatch.setattr(files, "sha256", broken)
    report = verify(str(encoded), REPAIR)
    (fault,) = report.faults
    assert (fault.number, fault.proven, report.dropped) == (1, False, ())
    assert "text_emb_00001.npy: cannot be read: [Errno 5] Input/output error" in fault.what


def test_repair_waits_for_nobody(encoded):
    with exclusive(str(encoded)), pytest.raises(OutputBusy, match="in use by process"):
        verify(str(encoded), REPAIR)


@pytest.fixture
def read_only(encoded, tmp_path):
    """The data set, bad in shard 1, on a disk that cannot be written."""
    (encoded / "img_emb" / "img_emb_00001.npy").unlink()
    place = tmp_path / "read-only"
    place.mkdir()
    for options in (["--bind", str(encoded)], ["-o", "remount,ro,bind"]):
        if subprocess.run(["mount", *options, str(place)], capture_output=True, check=False).returncode:
            subprocess.run(["umount", str(place)], capture_output=True, check=False)
            pytest.skip("a read-only file system needs the right to mount one")
    yield place
    subprocess.run(["umount", str(place)], check=False)


def test_a_read_only_disk_can_be_verified_and_not_repaired(read_only, embedpipe):
    assert {fault.number for fault in verify(str(read_only), shards.DEEP).faults} == {1}
    result = embedpipe("verify", read_only, "--repair")
    assert result.exit_code == 1
    assert "cannot write: Read-only file system" in result.stderr
    assert "make this one writable" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert len(list((read_only / "manifest").iterdir())) == 3


class FailingStore(MemoryFileSystem):
    """An object store that answers so many requests for files, and then no more."""

    protocol = "failing"
    answers = 10**9

    def _open(self, path, mode="rb", **options):
        type(self).answers -= 1
        if type(self).answers < 0:
            raise ConnectionResetError(104, "Connection reset by peer")
        return super()._open(path, mode, **options)


@pytest.fixture
def on_a_store(encoded):
    fsspec.register_implementation("failing", FailingStore, clobber=True)
    FailingStore.store, FailingStore.pseudo_dirs = {}, [""]
    for path in encoded.rglob("*"):
        if path.is_file():
            files.write_bytes(f"failing://emb/{path.relative_to(encoded)}", path.read_bytes())
    yield "failing://emb"
    FailingStore.answers = 10**9


def test_a_store_that_fails_half_way_is_one_error_and_drops_nothing(on_a_store, monkeypatch):
    monkeypatch.setattr(filesystem, "_PAUSE_S", 0.001)
    FailingStore.answers = 10**9
    assert verify(on_a_store, shards.DEEP).whole
    requests = 10**9 - FailingStore.answers
    assert requests > 12
    for answered in range(requests):
        FailingStore.answers = answered
        with pytest.raises(StorageFailed, match=r"failing://emb/.*: ConnectionResetError.*run the same command"):
            verify(on_a_store, REPAIR)
    FailingStore.answers = 10**9
    assert verify(on_a_store, shards.DEEP).whole


# Image shards.


@pytest.fixture(scope="module")
def fetched_once(tmp_path_factory):
    from embedpipe.fetch.job import fetch

    root = tmp_path_factory.mktemp("fetched")
    shards.write_files(root / "photos", [*shards.samples(7), ("bad.jpg", b"x"), ("bad.txt", b"c")])
    fetch(
        str(root / "photos"),
        str(root / "shards"),
        FetchConfig(samples_per_shard=4, image_size=32, processes=1, resizer="opencv"),
    )
    return root


@pytest.fixture
def fetched(fetched_once, tmp_path):
    return shutil.copytree(fetched_once / "shards", tmp_path / "shards")


def test_image_shards_are_whole_by_both_modes_and_leftovers_are_told(fetched):
    shards.write_files(fetched, [("00009.tar", b"x"), ("00000.tar.tmp-1-2", b"x"), ("notes.txt", b"mine")])
    for config in (None, shards.DEEP):
        report = verify(str(fetched), config)
        assert (report.whole, report.rows, report.rejected, report.committed) == (True, 7, 1, 2)
        assert report.leftovers == ("00000.tar.tmp-1-2", "00009.tar")


def retarred(path, change):
    with tarfile.open(path) as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive]
    path.write_bytes(shards.tar_bytes(change(members)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m[:-1], "00001.tar: ends before all of"),
        (lambda m: [*m, ("zz.jpg", b"x")], "holds zz.jpg, where its end belongs"),
        (lambda m: [m[3], *m[1:3], m[0], *m[4:]], "where 000010 belongs"),
        (lambda m: [(m[0][0], m[3][1]), *m[1:]], "is not at the offset, or of the length"),
        (lambda m: [(m[0][0], m[0][1][:-1] + b"?"), *m[1:]], "the sha256 of its bytes is not the one in its row"),
        (lambda m: [*m[:2], (m[2][0], b"another caption"), *m[3:]], "is not the caption of its row"),
    ],
)
def test_a_tar_that_is_not_what_its_rows_say_is_found(change, said, fetched):
    retarred(fetched / "00001.tar", change)
    shards.record_anew(fetched, 1, fetched / "00001.tar")
    faults = verify(str(fetched), shards.DEEP).faults
    assert {fault.number for fault in faults} == {1}
    assert any(said in fault.what for fault in faults), faults


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.slice(1), "3 rows in the parquet, but the manifest says 4"),
        (lambda t: column(t, "status", lambda v: ["failed", *v[1:]]), "in the parquet, but the manifest says"),
        (lambda t: column(t, "key", lambda v: v[::-1]), "not unique and in order"),
        (lambda t: column(t, "error_class", lambda v: ["timeout" if x else x for x in v]), "failures {"),
    ],
)
def test_a_table_that_is_not_what_the_manifest_says_is_found(change, said, fetched):
    number = 0 if pq.read_table(fetched / "00000.parquet")["error_class"].null_count < 4 else 1
    path = fetched / f"0000{number}.parquet"
    pq.write_table(change(pq.read_table(path)), path)
    shards.record_anew(fetched, number, path)
    assert any(said in what for what in told(fetched)), told(fetched)


def test_repaired_image_shards_are_fetched_again(fetched, fetched_once):
    from embedpipe.fetch.job import fetch

    (fetched / "00001.tar").write_bytes(b"x")
    assert verify(str(fetched), VerifyConfig(repair=True)).dropped == (1,)
    photos, config = (
        str(fetched_once / "photos"),
        FetchConfig(samples_per_shard=4, image_size=32, processes=1, resizer="opencv"),
    )
    assert fetch(photos, str(fetched), config).shards_now == 1
    assert (fetched / "00001.tar").read_bytes() == (fetched_once / "shards" / "00001.tar").read_bytes()


def test_what_is_no_output_of_ours_says_so(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        verify(str(tmp_path / "no"))
    with pytest.raises(DatasetError, match=r"no embedpipe\.json"):
        verify(str(tmp_path))
