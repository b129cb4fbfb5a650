"""Our tar reader gives what tarfile gives, for every kind of archive that tarfile and GNU tar write."""

import contextlib
import io
import shutil
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedpipe.tar import FILE, TarDamaged, entries

NAMES = st.one_of(
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=30),
    st.text("ab/.é\udcff", min_size=1, max_size=300),
    st.text("x", min_size=95, max_size=270).map(lambda name: f"d/{name}.jpg"),
)
KINDS = st.sampled_from(
    [tarfile.REGTYPE] * 5
    + [tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]
)
MEMBERS = st.lists(
    st.tuples(NAMES, KINDS, st.binary(max_size=1200), st.sampled_from([0, 1.5, 1e9, -3])), min_size=0, max_size=6
)
FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


def packed(members, form):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form, errors="surrogateescape") as archive:
        for name, kind, data, mtime in members:
            if kind == tarfile.AREGTYPE:
                name = name.rstrip("/") or "x"  # else it is a folder, and has no data
            entry = tarfile.TarInfo(name)
            entry.type, entry.mtime, entry.linkname = kind, mtime, "elsewhere" * 15 * (kind == tarfile.SYMTYPE)
            entry.size = len(data) if entry.isreg() else 0
            try:
                archive.addfile(entry, io.BytesIO(data) if entry.isreg() else None)
            except ValueError:
                continue  # this format cannot hold it
    return stream.getvalue()


def by_tarfile(data):
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", errors="surrogateescape") as archive:
        return [(m.name, archive.extractfile(m).read()) for m in archive if m.isreg() and not m.issparse()]


def by_us(data):
    return [(entry.path, entry.data) for entry in entries(io.BytesIO(data), everything) if entry.what == FILE]


def everything(path, size, start):
    return True


@settings(max_examples=150, deadline=None)
@given(MEMBERS, FORMATS)
def test_all_that_tarfile_writes_is_read_as_tarfile_reads_it(members, form):
    data = packed(members, form)
    assert by_us(data) == by_tarfile(data)


@settings(max_examples=100, deadline=None)
@given(MEMBERS, FORMATS, st.data())
def test_a_cut_or_a_flipped_byte_gives_whole_members_first_and_then_damage(members, form, choose):
    data = packed(members, form)
    whole = by_us(data)
    cut = choose.draw(st.integers(0, len(data) - 1))
    found = []
    with contextlib.suppress(TarDamaged):
        for entry in entries(io.BytesIO(data[:cut]), everything):
            found += [(entry.path, entry.data)] if entry.what == FILE else []
    assert found == whole[: len(found)]
    flipped = bytearray(data)
    flipped[cut] ^= choose.draw(st.integers(1, 255))
    with contextlib.suppress(TarDamaged):
        by_us(bytes(flipped))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=3000))
def test_any_bytes_are_read_or_are_damage(data):
    with pytest.raises(TarDamaged):
        by_us(b"x" + data)


def test_every_member_of_any_kind_comes_once():
    kinds = [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
    data = packed([(f"m{i}", kind, b"1", 0) for i, kind in enumerate(kinds)], tarfile.GNU_FORMAT)
    found = [(entry.path.rstrip("/"), entry.what) for entry in entries(io.BytesIO(data), everything)]
    assert found == list(
        zip([f"m{i}" for i in range(6)], ["file", "folder", "link", "link", "special", "special"], strict=True)
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1600), st.sampled_from([True, False, None]), st.booleans()), max_size=5))
def test_what_is_not_taken_is_passed_over_and_who_is_undecided_sees_the_beginning(members):
    contents = [bytes([65 + i]) * size for i, (size, _, _) in enumerate(members)]
    data = packed([(f"{i}", tarfile.REGTYPE, body, 0) for i, body in enumerate(contents)], tarfile.PAX_FORMAT)
    asked = []

    def take(path, size, start):
        asked.append((path, size, start))
        first, then = members[int(path)][1:]
        return first if start is None else then

    found = list(entries(io.BytesIO(data), take))
    wanted, questions = [], []
    for i, (size, first, then) in enumerate(members):
        questions += [(f"{i}", size, None)] + [(f"{i}", size, contents[i][:512])] * (first is None)
        wanted.append((f"{i}", contents[i] if first or (first is None and then) else None))
    assert [(entry.path, entry.data) for entry in found] == wanted
    assert asked == questions


def test_sizes_in_base_256_and_in_pax_headers():
    entry = tarfile.TarInfo("big.jpg")
    entry.size = 5
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\x80" + (5).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert by_us(bytes(header) + b"hello" + bytes(507 + 1024)) == [("big.jpg", b"hello")]
    entry.pax_headers = {"size": "5", "comment": "= and\nlines"}
    entry.size = 0
    assert by_us(entry.tobuf(tarfile.PAX_FORMAT) + b"hello" + bytes(507 + 1024)) == [("big.jpg", b"hello")]


@pytest.mark.skipif(shutil.which("tar") is None, reason="there is no tar command")
@pytest.mark.parametrize("form", ["v7", "ustar", "oldgnu", "gnu", "posix"])
def test_what_gnu_tar_writes_sparse_files_included(form, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.jpg").write_bytes(b"a" * 1000)
    (tmp_path / "link.jpg").symlink_to("sub/a.jpg")
    (tmp_path / ("n" * (90 if form in ("v7", "ustar") else 180) + ".txt")).write_bytes(b"text")
    sparse = tmp_path / "hole.jpg"
    with sparse.open("wb") as stream:
        for place in range(0, 8 << 20, 1 << 20):
            stream.seek(place)
            stream.write(b"x" * 4096)
    (tmp_path / "z.jpg").write_bytes(b"z")
    holes = [] if form in ("v7", "ustar") else ["--sparse"]
    command = ["tar", f"--format={form}", *holes, "-cf", "-", "sub", *sorted(p.name for p in tmp_path.iterdir())]
    data = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout
    assert by_us(data) == by_tarfile(data)
    assert by_us(data)[-1] == ("z.jpg", b"z")
