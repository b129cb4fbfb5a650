"""Everything in a tar or a folder is accounted for by its name: seen = used + passed over."""

import io
import os
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedpipe.accounts import PASSED_OVER, Ledger
from embedpipe.read import SampleRules, open_reader
from embedpipe.read.names import printable
from embedpipe.types import Sample
from tests import shards

JPEG = shards.jpeg(1, 8, 8)
CONTENTS = {
    "picture": JPEG,
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40),
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
    "text": b"a caption",
    "json": b'{"caption": ["one", "two"], "n": 1}',
    "numbers": bytes(range(256)) * 3,
    "nothing": b"",
    "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
}
STEMS = st.sampled_from(
    [
        "a",
        "b",
        "IMG_1.0",
        "IMG_1.1",
        "Dr. No",
        "Dr",
        "000",
        "000.seg",
        "s1.input",
        "s1.outputs",
        "x y",
        "caf\udce9",
        "猫",
    ]
)
ENDINGS = st.sampled_from(
    [
        *[
            "jpg",
            "JPG",
            "png",
            "jfif",
            "avif",
            "HEIC",
            "svg",
            "txt",
            "TXT",
            "json",
            "npy",
            "cls",
            "pdf",
            "xyz",
            "1",
            "0",
        ],
        "",
        "tar.gz",
        "left.jpg",
        "outputs.txt",
    ]
)
FOLDERS = st.sampled_from(["", "", "", "sub/", "v1.2/", "__MACOSX/", ".cache/", "./"])
PREFIXES = st.sampled_from(["", "", "", "", ".", "._"])
NAMES = st.one_of(
    st.builds(
        lambda *parts: "".join(parts[:3]) + (f".{parts[3]}" if parts[3] else ""), FOLDERS, PREFIXES, STEMS, ENDINGS
    ),
    st.text("ab.1 /_-é\udcff", min_size=1, max_size=12),
)
KINDS = st.sampled_from(["file"] * 8 + ["folder", "link", "hardlink", "pipe", "sparse"])
MEMBERS = st.lists(st.tuples(NAMES, KINDS, st.sampled_from(sorted(CONTENTS))), max_size=12)
RULES = st.sampled_from(
    [
        SampleRules(),
        SampleRules(need_caption=False),
        SampleRules(need_image=False),
        SampleRules(caption_key="n"),
        SampleRules(reading=1),
        SampleRules(reading=1, need_caption=False),
    ]
)
TAR_RULES = RULES | st.just(SampleRules(image_member="left.jpg", caption_member="outputs.txt"))
TYPES = {"folder": tarfile.DIRTYPE, "link": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE, "pipe": tarfile.FIFOTYPE}


class Names(Ledger):
    """A ledger that also keeps every name."""

    def __init__(self, unit):
        super().__init__(unit)
        self.used, self.passed = [], []

    def use(self, path):
        super().use(path)
        self.used.append(path)

    def pass_over(self, path, reason):
        super().pass_over(path, reason)
        self.passed.append((path, reason))


def sparse(name, data):
    """A member as old GNU tar writes sparse files: one piece, and the size that it claims."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT, errors="surrogateescape"))
    header[124:136] = b"%011o\0" % len(data)
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = b"%011o\0%011o\0" % (0, len(data))
    header[483:495] = b"%011o\0" % (1 << 20)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data + bytes(-len(data) % 512)


def packed(members):
    """The tar, and the names and contents of its members."""
    stream, put = io.BytesIO(), []
    for name, kind, content in members:
        data = CONTENTS[content]
        if kind == "sparse" and len(name.encode("utf-8", "surrogateescape")) < 90:
            stream.write(sparse(name, data))
        else:
            entry = tarfile.TarInfo(name.rstrip("/") or "x")
            entry.type, entry.linkname = TYPES.get(kind, tarfile.REGTYPE), "elsewhere"
            entry.size = len(data) if entry.isreg() else 0
            stream.write(entry.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape"))
            stream.write(data + bytes(-len(data) % 512) if entry.isreg() else b"")
            name = entry.name
        put.append((name, kind, content))
    return stream.getvalue() + bytes(1024), put


def taken_stock(reader, shard):
    """(ledger, samples and rejects) of one shard; the ledger agrees with one that only counts."""
    ledger, counted = Names(reader.unit), Ledger(reader.unit)
    found = list(reader.read(shard, shards.Digest(), ledger))
    reader.count(shard, counted)
    accounts = ledger.closed()
    assert counted.closed() == accounts
    assert accounts.add_up
    assert accounts.used == len(ledger.used)
    assert Counter(reason for _, reason in ledger.passed) == accounts.passed_over
    assert {reason.split(" ")[0] for reason in accounts.passed_over} <= PASSED_OVER.keys()
    return ledger, found


def holds_tar(members, rules, folder):
    data, put = packed(members)
    (folder / "a.tar").write_bytes(data)
    reader = open_reader(str(folder / "a.tar"), rules)
    ledger, found = taken_stock(reader, reader.shards(())[0])
    assert ledger.closed().seen == len(put)
    everything = Counter(path.rstrip("/") for path in [*ledger.used, *(path for path, _ in ledger.passed)])
    assert everything == Counter(printable(name).rstrip("/") for name, _, _ in put)
    assert [sample.index for sample in found] == list(range(len(found)))
    assert len({sample.key for sample in found if isinstance(sample, Sample)}) == sum(
        isinstance(sample, Sample) for sample in found
    )
    assert bool(found) == bool(ledger.used)
    assert len(found) <= len(ledger.used)
    for sample in found:
        names = [path for path in ledger.used if path.startswith(sample.key)]
        assert names, (sample, ledger.used)


def holds_folder(members, rules, folder):
    root = folder / "in"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    put = {}
    for name, kind, content in members:
        path = Path(os.path.normpath(root / name.strip("/")))
        if (
            root not in path.parents
            or any(p.is_file() or p.is_symlink() for p in [*path.parents, path])
            or path.exists()
        ):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "link":
            path.symlink_to("nowhere")
        elif kind == "hardlink":
            path.symlink_to(root)
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
            continue
        else:
            path.write_bytes(CONTENTS[content])
        put[str(path.relative_to(root))] = kind
    reader = open_reader(str(root), rules, "folder", samples_per_shard=2)
    if not put:
        return
    try:
        survey = reader.survey(())
    except Exception as problem:
        assert type(problem).__name__ == "EmptyInput"  # noqa: PT017
        return
    assert survey.accounts.add_up
    assert survey.accounts.seen == len(put)
    assert survey.accounts.used == sum(len(shard.members) for shard in survey.shards)
    names = []
    for shard in survey.shards:
        ledger, found = taken_stock(reader, shard)
        assert ledger.closed().seen == len(shard.members)
        assert len({sample.key for sample in found}) == len({reader._key(path) for path in shard.members})
        names += [*ledger.used, *(path for path, _ in ledger.passed)]
    assert Counter(names) == Counter(printable(path) for shard in survey.shards for path in shard.members)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("accounts")


@settings(max_examples=150)
@given(members=MEMBERS, rules=TAR_RULES)
def test_every_member_of_a_tar_is_used_or_passed_over_for_a_reason(members, rules, folder):
    holds_tar(members, rules, folder)


@settings(max_examples=60)
@given(members=MEMBERS, rules=RULES)
def test_every_file_of_a_folder_is_used_or_passed_over_for_a_reason(members, rules, folder):
    holds_folder(members, rules, folder)


@pytest.mark.slow
@settings(max_examples=2000)
@given(members=MEMBERS, rules=TAR_RULES)
def test_two_thousand_tars(members, rules, folder):
    holds_tar(members, rules, folder)


@pytest.mark.slow
@settings(max_examples=2000)
@given(members=MEMBERS, rules=RULES)
def test_two_thousand_folders(members, rules, folder):
    holds_folder(members, rules, folder)


OF_EVERY_KIND = st.sets(
    st.builds(
        "{}{}.{}".format,
        st.sampled_from(["000", "001", "a", "b/c", "Dr", "IMG_1"]),
        st.sampled_from(["", "", "", ".seg", ".0", ". No", ".left", ".v1.2"]),
        st.sampled_from(["jpg", "png", "txt", "json", "cls", "npy", "avif", "JPG", "svg", "orig"]),
    ),
    max_size=14,
)


@settings(max_examples=150)
@given(names=OF_EVERY_KIND, need_caption=st.booleans())
def test_rows_that_version_0_1_read_of_a_sorted_tar_are_read_as_they_were(names, need_caption, folder):
    contents = {
        "txt": b"caption of ",
        "json": b'{"caption": "in %s"}',
        "cls": b"1",
        "npy": b"\x93NUMPY",
        "svg": b"<svg/>",
    }

    def content(name):
        data = contents.get(name.rpartition(".")[2], JPEG)
        return data % name.encode() if b"%s" in data else data + name.encode()

    place = shards.write_tar(folder / "sorted.tar", [(name, content(name)) for name in sorted(names)])
    before, now = (
        {
            sample.key: sample
            for sample in shards.read(open_reader(place, SampleRules(need_caption=need_caption, reading=reading)))[0]
        }
        for reading in (1, 2)
    )
    for key, sample in before.items():
        found = now[key]
        assert (found.image, found.caption, found.metadata) == (sample.image, sample.caption, sample.metadata)
