"""Documents with a checksum of themselves: nothing about them can be changed without being noticed."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpipe.checksummed_json import Unsound, dump, load

scalar = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=8)
value = scalar | st.lists(scalar, max_size=3) | st.just("0" * 64)
document = st.dictionaries(st.text(max_size=5).filter(lambda name: name != "self_sha256"), value, max_size=5)


@given(document)
def test_what_is_sealed_is_read_back_and_anybody_can_check_it(written):
    data = dump(written)
    assert load(data, ()) == written
    claimed = json.loads(data)["self_sha256"]
    assert data.count(claimed.encode()) == 1
    assert hashlib.sha256(data.replace(claimed.encode(), b"0" * 64)).hexdigest() == claimed


def test_the_checksum_is_the_last_field_of_lines_of_their_own():
    blank = b'{\n "a": [\n  1\n ],\n "self_sha256": "' + b"0" * 64 + b'"\n}\n'
    expected = hashlib.sha256(blank).hexdigest()
    assert dump({"a": [1]}) == blank.replace(b"0" * 64, expected.encode())


def test_what_is_no_object_has_no_checksum():
    assert load(b"[1]", ()) == [1]
    assert load(b'"a"', ()) == "a"


@given(document, st.data())
def test_any_changed_byte_is_noticed(written, draw):
    data = bytearray(dump(written))
    place = draw.draw(st.integers(0, len(data) - 1))
    data[place] ^= draw.draw(st.integers(1, 255))
    with pytest.raises(Unsound):
        load(bytes(data), written)


@given(document, st.data())
def test_any_cut_or_growth_is_noticed(written, draw):
    data = dump(written)
    cut = draw.draw(st.integers(0, len(data) - 1))
    grown = draw.draw(st.binary(min_size=1, max_size=3))
    for changed in (data[:cut], data + grown, grown + data):
        with pytest.raises(Unsound):
            load(changed, written)


def test_a_document_of_before_is_taken_and_one_with_strangers_is_not():
    assert load(b'{"a": 1}', ("a", "b")) == {"a": 1}
    with pytest.raises(Unsound, match="no checksum, and unknown fields: self_rha256"):
        load(b'{"a": 1, "self_rha256": "00"}', ("a", "b"))
    for claimed in (b"1", b'""', b'"zz"', b"null", b'"' + "ü".encode() * 64 + b'"'):
        with pytest.raises(Unsound, match="does not match"):
            load(b'{"a": 1, "self_sha256": ' + claimed + b"}", ("a",))
