"""Samples from tars: whatever state they are in, each sample is kept whole, or rejected with a reason."""

import hashlib
import io
import json
import random
import tarfile
import uuid

import pytest

from embedpipe import files, manifest
from embedpipe.accounts import Ledger
from embedpipe.errors import EmptyInput, InputError
from embedpipe.manifest import IMAGE_SHARDS, RunCard, ShardManifest
from embedpipe.read import SampleRules, open_reader
from embedpipe.types import REJECT_CLASSES, Reject, Sample, SourceShard
from tests import shards

RULES = SampleRules()


def read(members, tmp_path, rules=RULES, **options):
    place = shards.write_tar(tmp_path / "a.tar", members, **options)
    return shards.read(open_reader(place, rules))


def read_bytes(data, tmp_path):
    """Everything that comes out of a file of these bytes; its digest and accounts are checked on the way."""
    (tmp_path / "a.tar").write_bytes(data)
    reader = open_reader(str(tmp_path / "a.tar"), RULES)
    shard = reader.shards(())[0]
    digest, ledger, counted = hashlib.sha256(), Ledger(reader.unit), Ledger(reader.unit)
    found = list(reader.read(shard, digest, ledger))
    reader.count(shard, counted)
    assert digest.hexdigest() == hashlib.sha256(data).hexdigest()
    assert ledger.closed().add_up
    assert counted.closed() == ledger.closed()
    assert [x.index for x in found if isinstance(x, Sample)] == list(range(sum(isinstance(x, Sample) for x in found)))
    assert all(x.error_class in REJECT_CLASSES for x in found if isinstance(x, Reject))
    return [x for x in found if isinstance(x, Sample)], [x for x in found if isinstance(x, Reject)]


def classes(rejects):
    return [reject.error_class for reject in rejects]


def expected(count):
    return [
        Sample(f"{i:05d}", i, shards.jpeg(i), shards.caption(i), {"number": i, "label": f"l{i % 3}"})
        for i in range(count)
    ]


# Where shards are found.


@pytest.mark.parametrize(
    "form",
    [
        "{root}/d/00000.tar",
        "{root}/d",
        "{root}/d/",
        "{root}/d/*.tar",
        "{root}/d/{{00000..00001}}.tar",
        "{root}/d/0000?.tar",
        "d",
        "d/*.tar",
        "./d/*.tar",
        "d/{{00000..00001}}.tar",
        "d/00000.tar",
        "file://{root}/d",
        "file://{root}/d/*.tar",
    ],
)
def test_every_way_to_name_tars_reads_them(form, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shards.write_shards(tmp_path / "d", shards=2, per_shard=2)
    reader = open_reader(form.format(root=tmp_path), RULES)
    found = reader.shards(())
    names = [shard.name for shard in found]
    assert names == (["00000.tar"] if form.endswith("00000.tar") else ["00000.tar", "00001.tar"])
    assert shards.read(reader, found[0]) == (expected(2), [])


@pytest.mark.parametrize("form", ["*.tar", "{00000..00001}.tar", ".", "00000.tar"])
def test_tars_in_the_working_folder(form, tmp_path, monkeypatch):
    shards.write_shards(tmp_path, shards=2, per_shard=2)
    monkeypatch.chdir(tmp_path)
    reader = open_reader(form, RULES)
    assert reader.shards(())[0].name == "00000.tar"
    assert shards.read(reader, reader.shards(())[0]) == (expected(2), [])


@pytest.mark.parametrize("form", ["", "/*.tar", "/{00000..00001}.tar", "/0000[01].tar"])
def test_tars_on_another_file_system(form):
    base = f"memory://{uuid.uuid4().hex}"
    for i in range(2):
        files.write_bytes(f"{base}/{i:05d}.tar", shards.tar_bytes(shards.samples(2)))
    reader = open_reader(base + form, RULES)
    found = reader.shards(())
    assert [shard.name for shard in found] == ["00000.tar", "00001.tar"]
    assert shards.read(reader, found[1]) == (expected(2), [])


def test_wildcards_in_folder_names_keep_shards_apart(tmp_path):
    for folder in "ab":
        shards.write_tar(tmp_path / folder / "0.tar", shards.samples(1))
    for form in ("*/0.tar", "{a,b}/0.tar", "{a,b}/*.tar"):
        reader = open_reader(f"{tmp_path}/{form}", RULES)
        assert [shard.name for shard in reader.shards(())] == ["a/0.tar", "b/0.tar"]
        assert shards.read(reader, reader.shards(())[1]) == (expected(1), [])


def test_a_folder_with_brackets_in_its_name_is_a_folder(tmp_path):
    shards.write_shards(tmp_path / "set [v2]", shards=1, per_shard=1)
    for form in ("set [v2]", "set [v2]/00000.tar"):
        assert shards.read(open_reader(str(tmp_path / form), RULES)) == (expected(1), [])


def test_only_what_fetch_committed_is_read(tmp_path):
    shards.write_shards(tmp_path, shards=3, per_shard=1)
    manifest.write_run(str(tmp_path), RunCard(IMAGE_SHARDS, {}, (SourceShard("u", 1, ""),) * 3))
    for number in (0, 2):
        manifest.commit(str(tmp_path), ShardManifest(number, SourceShard("u", 1, ""), "", 1, 1, 0, {}, ()), 5)
    assert [shard.name for shard in open_reader(str(tmp_path), RULES).shards(())] == ["00000.tar", "00002.tar"]


def test_input_that_is_not_there_says_so(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        open_reader(str(tmp_path / "no"), RULES).shards(())
    with pytest.raises(EmptyInput, match=r"no \.tar files"):
        open_reader(str(tmp_path / "*.tar"), RULES).shards(())
    shards.write_tar(tmp_path / "00000.tar", [])
    with pytest.raises(InputError, match=r"00001\.tar: no such file"):
        open_reader(str(tmp_path / "{00000..00001}.tar"), RULES).shards(())
    with pytest.raises(InputError, match="no input format 'webdatset'.*webdataset"):
        open_reader(str(tmp_path), RULES, "webdatset")


def test_a_shard_that_is_gone_raises_when_it_is_read(tmp_path):
    reader = open_reader(shards.write_shards(tmp_path, shards=1), RULES)
    (shard,) = reader.shards(())
    (tmp_path / "00000.tar").unlink()
    with pytest.raises(InputError, match=r"00000\.tar: no such file"):
        list(reader.read(shard, shards.Digest()))


def test_a_file_that_is_no_tar_gives_one_reject(tmp_path):
    (tmp_path / "urls.dat").write_bytes(b"PAR1" * 1000)
    samples, rejects = shards.read(open_reader(str(tmp_path / "urls.dat"), RULES))
    assert samples == []
    assert classes(rejects) == ["shard_truncated"]


# Tears and damage.


@pytest.fixture(scope="module")
def whole():
    return shards.tar_bytes(shards.samples(4))


def test_a_tar_cut_at_any_block_keeps_whole_samples_and_says_so(whole, tmp_path):
    end = _end_of_members(whole)
    kept = []
    for cut in range(0, end + 512, 512):
        samples, rejects = read_bytes(whole[:cut], tmp_path)
        assert samples == expected(len(samples))
        assert classes(rejects) == ["shard_truncated"] * (cut <= end)
        assert not rejects or rejects[0].index == len(samples)
        kept.append(len(samples))
    assert kept == sorted(kept)
    assert kept[-1] == 4


def test_a_tar_cut_anywhere_keeps_whole_samples_and_says_so(whole, tmp_path):
    for cut in random.Random(0).sample(range(_end_of_members(whole)), 60):
        samples, rejects = read_bytes(whole[:cut], tmp_path)
        assert samples == expected(len(samples))
        assert classes(rejects) == ["shard_truncated"]


def test_a_gzipped_tar_is_read_and_its_tears_are_told(tmp_path):
    members = [m for i in range(4) for m in shards.sample(i, picture=random.Random(i).randbytes(3000))]
    samples, rejects = read(members, tmp_path, compress=True)
    assert [sample.key for sample in samples] == [f"{i:05d}" for i in range(4)]
    assert rejects == []
    data = (tmp_path / "a.tar").read_bytes()
    for cut in random.Random(0).sample(range(len(data)), 40):
        torn, rejects = read_bytes(data[:cut], tmp_path)
        assert torn == samples[: len(torn)]
        assert classes(rejects) == ["shard_truncated"]


def test_a_damaged_header_is_told_and_what_came_before_is_kept(whole, tmp_path):
    headers = _headers(whole)
    for number, place in enumerate(headers):
        samples, rejects = read_bytes(whole[:place] + b"!" * 9 + whole[place + 9 :], tmp_path)
        # With nothing to compare it with, the very first sample may be half of one.
        assert len(samples) == (number // 3 if number > 3 else 0)
        assert samples == expected(len(samples))
        assert classes(rejects) == ["shard_truncated"]


def test_flipped_bytes_never_raise_and_never_join_samples(whole, tmp_path):
    rng = random.Random(1)
    known = {sample.key: sample for sample in expected(4)}
    headers = _headers(whole)
    for _ in range(150):
        data = bytearray(whole)
        place = rng.choice(headers) + rng.randrange(512)
        data[place] ^= rng.randrange(1, 256)
        samples, _rejects = read_bytes(bytes(data), tmp_path)
        for sample in samples:
            if sample.key in known:
                assert sample.image == known[sample.key].image


@pytest.mark.parametrize("seed", range(12))
def test_random_bytes_give_one_reject(seed, tmp_path):
    rng = random.Random(seed)
    data = rng.randbytes(rng.choice([1, 511, 512, 513, 5000, 30000]))
    if seed % 3 == 0:
        data = b"\x1f\x8b" + data
    samples, rejects = read_bytes(data, tmp_path)
    assert samples == []
    assert classes(rejects) == ["shard_truncated"]


def test_an_empty_file_gives_one_reject(tmp_path):
    assert classes(read_bytes(b"", tmp_path)[1]) == ["shard_truncated"]


def test_an_empty_tar_is_whole_and_holds_nothing(tmp_path):
    assert read([], tmp_path) == ([], [])


def test_two_tars_in_one_file_are_not_taken_for_one(whole, tmp_path):
    samples, rejects = read_bytes(whole + whole, tmp_path)
    assert samples == expected(4)
    assert classes(rejects) == ["shard_truncated"]


def test_a_member_that_claims_more_than_there_is(whole, tmp_path):
    huge = tarfile.TarInfo("x.jpg")
    huge.size = 1 << 40
    data = whole[: _end_of_members(whole)] + huge.tobuf(tarfile.GNU_FORMAT) + b"short"
    samples, rejects = read_bytes(data, tmp_path)
    assert samples == expected(4)
    assert classes(rejects) == ["shard_truncated"]


def test_a_sparse_member_cannot_claim_memory(tmp_path):
    entry = tarfile.TarInfo("00001.jpg")
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[483:495] = b"%011o\0" % (1 << 32)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data = bytes(header) + shards.tar_bytes([("00001.txt", b"caption")])
    samples, rejects = read_bytes(data, tmp_path)
    assert samples == []
    assert classes(rejects) == ["image_missing"]


def _headers(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [entry.offset for entry in archive]


def _end_of_members(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.getmembers()
        return archive.offset


# Names and grouping.


def test_a_key_that_comes_again_is_rejected_next_to_it_and_far_from_it(tmp_path):
    members = [*shards.sample(0), *shards.sample(0), *shards.sample(1), *shards.sample(0)]
    samples, rejects = read(members, tmp_path)
    assert [sample.key for sample in samples] == ["00000", "00001"]
    assert [(r.key, r.index, r.error_class) for r in rejects] == [
        ("00000", 1, "duplicate_key"),
        ("00000", 3, "duplicate_key"),
    ]


def test_of_several_images_under_one_key_the_first_counts(tmp_path):
    members = [("a.jpg", shards.jpeg(1)), ("a.png", shards.png(2)), ("a.txt", b"two")]
    samples, rejects = read(members, tmp_path)
    assert [(s.key, s.image, s.caption) for s in samples] == [("a", shards.jpeg(1), "two")]
    assert rejects == []


@pytest.mark.parametrize("extension", ["jpg", "JPG", "jpeg", "Png", "webp", "gif", "BMP", "tif", "TIFF"])
def test_extensions_of_any_case_are_known(extension, tmp_path):
    samples, rejects = read([(f"A.{extension}", b"x"), ("A.TXT", b"caption")], tmp_path)
    assert [(s.key, s.image, s.caption) for s in samples] == [("A", b"x", "caption")]
    assert rejects == []


def test_what_belongs_to_no_sample_is_passed_over(tmp_path):
    members = [
        (".hidden.jpg", b"x"),
        ("._00000.jpg", b"x"),
        ("README", b"x"),
        ("00000.cls", b"1"),
        *shards.sample(0),
        ("notes.", b"x"),
        ("00000.seg.png", b"x"),
        ("dir.with.dots/.jpg", b"x"),
    ]
    assert read(members, tmp_path) == (expected(1), [])


def test_names_that_point_elsewhere_are_only_names(tmp_path):
    members = [("../../x.jpg", b"1"), ("../../x.txt", b"up"), ("/etc/y.jpg", b"2"), ("/etc/y.txt", b"root")]
    samples, rejects = read(members, tmp_path)
    assert [s.key for s in samples] == ["../../x", "/etc/y"]
    assert rejects == []
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_names_that_are_not_utf8_stay_apart_and_can_be_stored(tmp_path):
    members = [("a\udcff.jpg", b"1"), ("a\udcff.txt", b"one"), ("a\udcfe.jpg", b"2"), ("a\udcfe.txt", b"two")]
    samples, rejects = read(members, tmp_path)
    assert [(s.key, s.caption) for s in samples] == [("a\\xff", "one"), ("a\\xfe", "two")]
    assert rejects == []


def test_long_and_unicode_names_are_kept(tmp_path):
    key = "ü" * 30 + "/" + "x" * 200
    samples, _ = read([(f"{key}.jpg", b"1"), (f"{key}.txt", b"one")], tmp_path)
    assert [s.key for s in samples] == [key]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_members_that_are_no_files_are_no_images(kind, tmp_path):
    members = [*shards.sample(0), shards.special("00001.jpg", kind, "00000.jpg"), ("00001.txt", b"caption")]
    samples, rejects = read(members, tmp_path)
    assert samples == expected(1)
    assert [(r.key, r.error_class) for r in rejects] == [("00001", "image_missing")]


# Captions and metadata.


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (b"\xff\xfe", "caption_encoding"),
        ("ünï".encode("latin-1"), "caption_encoding"),
        (b"", "caption_missing"),
        (b" \n\t", "caption_missing"),
        (b"x" * ((1 << 20) + 1), "caption_too_large"),
    ],
)
def test_a_bad_caption_is_a_reject(text, wanted, tmp_path):
    samples, rejects = read([("a.jpg", b"1"), ("a.txt", text), *shards.sample(0)], tmp_path)
    assert [(s.key, s.index) for s in samples] == [("00000", 1)]
    assert [(r.key, r.index, r.stage, r.error_class) for r in rejects] == [("a", 0, "read", wanted)]


def test_captions_are_kept_to_the_letter(tmp_path):
    said = "  a 猫 🐈 \r\n and\ttabs \x00 end "
    samples, _ = read([("a.jpg", b"1"), ("a.txt", said.encode())], tmp_path)
    assert samples[0].caption == said
    samples, _ = read([("a.jpg", b"1"), ("a.txt", b"\xef\xbb\xbfwith a mark")], tmp_path)
    assert samples[0].caption == "with a mark"


def test_a_caption_may_come_from_a_field_of_the_json(tmp_path):
    members = [("a.jpg", b"1"), ("a.json", json.dumps({"caption": "c", "alt": "other"}).encode())]
    assert read(members, tmp_path)[0][0].caption == "c"
    assert read(members, tmp_path, SampleRules(caption_key="alt"))[0][0].caption == "other"
    assert classes(read(members, tmp_path, SampleRules(caption_key="none"))[1]) == ["caption_missing"]
    assert read([*members, ("a.txt", b"txt wins")], tmp_path)[0][0].caption == "txt wins"
    number = [("a.jpg", b"1"), ("a.json", b'{"caption": 3}')]
    assert classes(read(number, tmp_path)[1]) == ["caption_missing"]


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b'"x"',
        b"\xff",
        b"[" * 100_000,
        b'{"a":' * 200 + b"1" + b"}" * 200,
        b"1" * 9999,
        b'{"a": %s}' % (b"9" * 9999),
        b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}",
    ],
)
def test_metadata_that_is_no_object_is_a_reject(text, tmp_path):
    samples, rejects = read([("a.jpg", b"1"), ("a.json", text), ("a.txt", b"caption"), *shards.sample(0)], tmp_path)
    assert [s.key for s in samples] == ["00000"]
    assert [(r.key, r.error_class) for r in rejects] == [("a", "metadata_invalid")]
    assert len(rejects[0].message) < 300


def test_wide_metadata_is_not_deep_metadata(tmp_path):
    wide = {f"field {i}": [i, {"x": [i]}] for i in range(200)}
    samples, _ = read([("a.jpg", b"1"), ("a.json", json.dumps(wide).encode()), ("a.txt", b"c")], tmp_path)
    assert samples[0].metadata == wide


@pytest.mark.parametrize(
    ("rules", "good", "bad"),
    [
        (SampleRules(), ["both"], {"picture": "caption_missing", "text": "image_missing", "zero": "image_empty"}),
        (SampleRules(need_caption=False), ["both", "picture"], {"text": "image_missing", "zero": "image_empty"}),
        (SampleRules(need_image=False), ["both", "text", "zero"], {"picture": "caption_missing"}),
    ],
)
def test_what_is_asked_for_is_what_must_be_there(rules, good, bad, tmp_path):
    members = [("both.jpg", b"1"), ("both.txt", b"c"), ("picture.jpg", b"2"), ("text.txt", b"c")]
    members += [("zero.jpg", b""), ("zero.txt", b"c")]
    samples, rejects = read(members, tmp_path, rules)
    assert [s.key for s in samples] == good
    assert {r.key: r.error_class for r in rejects} == bad
    assert all((s.image is None) == (not rules.need_image) for s in samples)
    assert all((s.caption is None) == (not rules.need_caption) for s in samples)


def test_a_reader_reads_the_same_twice_and_survives_pickling(tmp_path):
    import pickle

    reader = open_reader(shards.write_shards(tmp_path, shards=1), RULES)
    copy = pickle.loads(pickle.dumps(reader))
    assert copy == reader
    assert shards.read(copy) == shards.read(reader) == shards.read(reader)


@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n", b"\n\n"])
def test_the_line_break_at_a_files_end_is_not_the_captions(ending, tmp_path):
    data = shards.tar_bytes([("a.jpg", shards.jpeg()), ("a.txt", b" two\nlines " + ending)])
    ((sample,), _) = read_bytes(data, tmp_path)
    assert sample.caption == " two\nlines "
