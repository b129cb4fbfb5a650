"""Keys as members of tars: nothing leads outside, no two become one, and each can be had back."""

import io
import posixpath
import tarfile

import webdataset as wds
from hypothesis import example, given
from hypothesis import strategies as st
from webdataset.tariterators import base_plus_ext

from embedpipe.tar import TarWriter, key_of_member, member_key

names = st.text("ab.%/\\\\:\n\x002Ee é猫\udcff", max_size=12) | st.text(min_size=1, max_size=20)
HOSTILE = (
    "",
    "../up/04",
    "/etc/p",
    "a/../../b",
    "..",
    ".",
    "a//b",
    "a/",
    "C:\\\\x",
    "a%2Eb",
    "a.b",
    "%",
    "./a",
    "a/./b",
)


@given(st.lists(names, min_size=2, max_size=8, unique=True))
@example(list(HOSTILE))
def test_members_are_safe_reversible_and_different(keys):
    keys = [key for key in keys if not any("\ud800" <= it <= "\udc7f" for it in key)]
    made = [member_key(key) for key in keys]
    assert [key_of_member(it) for it in made] == keys
    assert len(set(made)) == len(keys)
    for name in made:
        assert name
        assert not name.startswith("/")
        assert "\\" not in name
        assert not posixpath.basename(name).startswith(".")
        assert not {"", ".", ".."} & set(name.split("/"))
        assert posixpath.normpath(f"out/{name}.jpg") == f"out/{name}.jpg"
        assert base_plus_ext(f"{name}.jpg") == (name, "jpg")


def test_other_programs_read_and_extract_them_inside(tmp_path):
    stream = io.BytesIO()
    tar = TarWriter(stream)
    keys = sorted(HOSTILE, key=member_key)
    for number, key in enumerate(keys):
        tar.add(f"{member_key(key)}.txt", str(number).encode())
    tar.finish()
    (tmp_path / "in" / "deep").mkdir(parents=True)
    with tarfile.open(fileobj=io.BytesIO(stream.getvalue())) as archive:
        archive.extractall(tmp_path / "in" / "deep" / "out", filter="fully_trusted")
    assert [path.name for path in (tmp_path / "in" / "deep").iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["deep"]
    (tmp_path / "a.tar").write_bytes(stream.getvalue())
    found = {
        key_of_member(it["__key__"]): int(it["txt"])
        for it in wds.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    }
    assert found == {key: number for number, key in enumerate(keys)}
