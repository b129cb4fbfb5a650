"""Rows of one array, from every kind of file: what numpy and Arrow would give, or an error that names the file."""

import contextlib
import os
import uuid

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpipe.errors import DatasetError
from embedpipe.store import rows
from embedpipe.store.rows import Normalised, NpyHeader, NpyRows, NpzRows, ParquetRows, npy_header, npz_headers, whole

KINDS = ("npy", "remote npy", "npz", "parquet", "fixed parquet")
ROWS = 23


def values(dtype, count=ROWS, width=5, seed=0):
    return np.random.default_rng(seed).standard_normal((count, width)).astype(dtype)


@contextlib.contextmanager
def remote(data):
    """The location of a file of these bytes that is not on a local disk."""
    place = f"memory://{uuid.uuid4().hex}/a.npy"
    with fsspec.open(place, "wb") as stream:
        stream.write(data)
    yield place
    fsspec.filesystem("memory").rm(place)


def column(array, fixed=False):
    kind = pa.float16() if array.dtype == np.float16 else pa.from_numpy_dtype(array.dtype)
    flat = pa.array(array.reshape(-1), kind)
    if fixed:
        return pa.FixedSizeListArray.from_arrays(flat, array.shape[1])
    return pa.ListArray.from_arrays(np.arange(len(array) + 1, dtype=np.int32) * array.shape[1], flat)


@contextlib.contextmanager
def opened(kind, array, folder, **options):
    """Rows of a file of that kind, closed in the end."""
    if kind == "remote npy":
        np.save(folder / "a.npy", array)
        with remote((folder / "a.npy").read_bytes()) as place, contextlib.closing(NpyRows(place)) as found:
            yield found
        return
    if kind == "npy":
        np.save(folder / "a.npy", array)
        found = NpyRows(str(folder / "a.npy"))
    elif kind == "npz":
        place = str(folder / "a.npz")
        np.savez(place, first=np.zeros((2, 2), np.float32), second=array)
        found = NpzRows(place, "second", npz_headers(place)["second"])
    else:
        table = pa.table({"id": list(range(len(array))), "e": column(array, kind == "fixed parquet")})
        pq.write_table(table, folder / "a.parquet", row_group_size=options.get("row_group_size", 7))
        found = ParquetRows(str(folder / "a.parquet"), "e")
    with contextlib.closing(found):
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """For files of examples, each in the place of the one before."""
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module", params=[(kind, dtype) for kind in KINDS for dtype in ("float16", "float32")], ids=str)
def file(request, tmp_path_factory):
    kind, dtype = request.param
    array = values(dtype)
    with opened(kind, array, tmp_path_factory.mktemp("rows")) as found:
        yield found, array


@given(st.lists(st.tuples(st.integers(0, ROWS), st.integers(0, ROWS)).map(sorted), min_size=1, max_size=6))
def test_any_rows_in_any_order_are_those_that_were_stored(file, asked):
    found, array = file
    assert found.shape == array.shape
    assert found.dtype == array.dtype
    for start, stop in asked:
        out = np.full((stop - start, array.shape[1]), np.nan, array.dtype)
        found.read(start, out)
        assert np.array_equal(out, array[start:stop])
    assert np.array_equal(whole(found), array)


@given(st.integers(0, ROWS), st.integers(1, 30))
def test_rows_behind_the_end_are_an_error_and_never_made_up(file, start, more):
    found, array = file
    out = np.empty((ROWS - start + more, array.shape[1]), array.dtype)
    with pytest.raises(DatasetError) as problem:
        found.read(start, out)
    assert str(problem.value).startswith(f"{found.location}: ")


@pytest.mark.parametrize("kind", ["npy", "remote npy"])
def test_a_file_that_became_shorter_since_it_was_opened_is_told_by_how_much(kind, tmp_path):
    array = values("float16")
    np.save(tmp_path / "a.npy", array)
    data = (tmp_path / "a.npy").read_bytes()
    with remote(data) if kind == "remote npy" else contextlib.nullcontext(str(tmp_path / "a.npy")) as place:
        found = NpyRows(place)
        with fsspec.open(place, "wb") as stream:
            stream.write(data[:-3])
        with pytest.raises(DatasetError, match=r"a\.npy: ends 3 bytes early\. Fetch or write the file again"):
            whole(found)
        out = np.empty((ROWS - 1, 5), np.float16)
        found.read(0, out)
        assert np.array_equal(out, array[:-1])
        found.close()


def test_a_local_read_that_comes_in_pieces_goes_on(tmp_path, monkeypatch):
    array = values("float32")
    few = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, views, place: few(file, [views[0][:11]], place))
    with opened("npy", array, tmp_path) as found:
        assert np.array_equal(whole(found), array)


def test_a_closed_file_is_opened_again_when_it_is_read(tmp_path):
    array = values("float16")
    for kind in ("npy", "npz"):
        with opened(kind, array, tmp_path) as found:
            assert np.array_equal(whole(found), array)
            found.close()
            found.close()
            assert np.array_equal(whole(found), array)


def test_closing_lets_go_of_the_file(tmp_path):
    def open_files():
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    for kind in ("npy", "parquet"):
        with opened(kind, values("float16"), tmp_path) as found:
            whole(found)
            assert open_files() == before + 1
        assert open_files() == before


def test_an_npz_that_was_replaced_since_it_was_looked_at_is_named(tmp_path):
    place = str(tmp_path / "a.npz")
    for other in (values("float16", 1), values("float16", ROWS + 1), values("float16", width=1), values("float32")):
        np.savez(place, e=values("float16"))
        found = NpzRows(place, "e", npz_headers(place)["e"])
        np.savez(place, e=other)
        with pytest.raises(DatasetError, match=r"a\.npz: e is another array than a moment ago"):
            whole(found)
    found = NpzRows(place, "e", npz_headers(place)["e"])
    np.savez(place, f=values("float16"))
    with pytest.raises(DatasetError, match=r"a\.npz: cannot be read"):
        whole(found)


@pytest.mark.parametrize(("kind", "most"), [("npy", 1 << 20), ("remote npy", 16 << 20), ("npz", 1 << 20)])
def test_so_many_rows_are_asked_for_at_once_as_a_cache_or_a_request_is_worth(kind, most, tmp_path):
    with opened(kind, values("float16", width=300), tmp_path) as found:
        assert found.rows_at_once == most // 600
    with opened(kind, np.zeros((2, most), np.float16), tmp_path) as found:
        assert found.rows_at_once == 1
    with opened(kind, np.zeros((2, 0), np.float16), tmp_path) as found:
        assert found.rows_at_once == most
        assert whole(found).shape == (2, 0)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_a_header_is_numpys(version, tmp_path):
    array = values("float32")
    with (tmp_path / "a.npy").open("wb") as stream:
        np.lib.format.write_array(stream, array, version)
        size = stream.tell()
    header = npy_header(str(tmp_path / "a.npy"))
    assert header == NpyHeader(array.shape, array.dtype, size - array.nbytes)
    assert np.array_equal(whole(NpyRows(str(tmp_path / "a.npy"), header)), array)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4"])
def test_any_order_of_numbers_is_read_as_numpy_reads_it(version, order, dtype, tmp_path):
    array = np.asarray(np.random.default_rng(0).normal(size=(7, 5)), dtype, order)
    with (tmp_path / "a.npy").open("wb") as stream:
        np.lib.format.write_array(stream, array, version)
    rows = NpyRows(str(tmp_path / "a.npy"))
    assert rows.dtype == np.dtype(dtype).newbyteorder("=")
    assert np.array_equal(whole(rows), array)
    part = np.empty((3, 5), rows.dtype)
    rows.read(2, part)
    assert np.array_equal(part, array[2:5])
    rows.close()
    with pytest.raises(DatasetError, match="ends|wanted"):
        rows.read(5, part)
    np.savez(tmp_path / "a.npz", a=array)
    header = npz_headers(str(tmp_path / "a.npz"))["a"]
    assert np.array_equal(whole(NpzRows(str(tmp_path / "a.npz"), "a", header)), array)


def test_another_order_is_read_from_an_object_store(tmp_path):
    import fsspec

    array = np.asfortranarray(np.random.default_rng(0).normal(size=(9, 4)).astype(">f4"))
    with fsspec.open("memory://orders/a.npy", "wb") as stream:
        np.lib.format.write_array(stream, array)
    assert np.array_equal(whole(NpyRows("memory://orders/a.npy")), array)


def test_a_long_header_is_read_whole(tmp_path):
    array = values("float32")
    header = repr({"descr": "<f4", "fortran_order": False, "shape": array.shape}).encode() + b" " * 9000 + b"\n"
    start = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header
    (tmp_path / "a.npy").write_bytes(start + array.tobytes())
    assert np.array_equal(whole(NpyRows(str(tmp_path / "a.npy"))), array)


def test_a_column_of_numbers_lies_in_any_order(tmp_path):
    for array in (values("float16", width=1), values("float16", count=1)):
        np.save(tmp_path / "a.npy", np.asfortranarray(array))
        assert np.array_equal(whole(NpyRows(str(tmp_path / "a.npy"))), array)


@pytest.mark.parametrize(("shape", "same"), [((6, 1), True), ((1, 6), True), ((0, 6), True), ((3, 2), False)])
def test_fortran_order_is_taken_where_it_is_no_other(shape, same, tmp_path):
    numbers = np.arange(np.prod(shape), dtype=np.float16)
    with (tmp_path / "a.npy").open("wb") as stream:
        about = {"descr": "<f2", "fortran_order": True, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, about)
        stream.write(numbers.tobytes())
    rows = NpyRows(str(tmp_path / "a.npy"))
    assert rows.plain is same
    assert np.array_equal(whole(rows), numbers.reshape(shape, order="F"))


def test_what_is_no_npy_or_torn_is_named(tmp_path):
    place = tmp_path / "a.npy"
    np.save(place, values("float16"))
    data = place.read_bytes()
    with pytest.raises(DatasetError, match=r"b\.npy: cannot be read: .*no such file"):
        npy_header(str(tmp_path / "b.npy"))
    for torn in (b"", b"text", data[:40], data[:6] + b"\x03\x00" + data[8:]):
        place.write_bytes(torn)
        with pytest.raises(DatasetError, match=r"a\.npy: cannot be read: .*\. Fetch or write the file again"):
            npy_header(str(place))
    for other in (data[:-1], data + b"1"):
        place.write_bytes(other)
        with pytest.raises(
            DatasetError, match=rf"a\.npy: {len(other)} bytes, but its header promises 23 rows in {len(data)}"
        ):
            npy_header(str(place))


@given(st.integers(1, 9), st.integers(1, 30), st.lists(st.integers(0, 29), min_size=1, max_size=5))
def test_parquet_rows_are_found_in_any_row_group(folder, group, count, starts):
    array = values("float32", count)
    with opened("parquet", array, folder, row_group_size=group) as found:
        for start in starts:
            out = np.empty((max(0, min(4, count - start)), 5), np.float32)
            found.read(min(start, count), out)
            assert np.array_equal(out, array[start : start + 4])


def test_rows_that_follow_are_decoded_once(tmp_path, monkeypatch):
    array, asked = values("float16"), []
    with opened("parquet", array, tmp_path) as found:
        found.rows_at_once = 3
        decoded = found._decoded
        monkeypatch.setattr(found, "_decoded", lambda groups: asked.append(groups) or decoded(groups))
        for start in range(0, ROWS - 1, 2):
            found.read(start, np.empty((2, 5), np.float16))
        assert asked == [range(4)]
        found.read(15, np.empty((2, 5), np.float16))
        assert asked == [range(4), range(2, 4)]


def test_lists_without_rows_have_the_width_that_is_told(tmp_path):
    pq.write_table(pa.table({"e": column(values("float16", 0))}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"e": column(values("float16", 0), fixed=True)}), tmp_path / "fixed.parquet")
    for file, dim, width in (("a.parquet", None, 0), ("a.parquet", 7, 7), ("fixed.parquet", None, 5)):
        found = ParquetRows(str(tmp_path / file), "e", dim)
        assert found.shape == (0, width)
        assert whole(found).shape == (0, width)
        found.close()


@pytest.mark.parametrize(
    ("lists", "says"),
    [
        (pa.array([1.0, 2.0]), "is of type double, not lists of numbers"),
        (pa.array([["a"]]), "is of type list<element: string>, not lists of numbers"),
        (pa.array([[1, 2]]), "is of type list<element: int64>, not lists of numbers"),
        (pa.array([[1.0, 2.0], [1.0]]), "rows of 1 to 2 numbers, not 2"),
        (pa.array([[1.0], [1.0]]), "rows of 1 to 1 numbers, not 2"),
        (pa.array([[1.0, 2.0], None]), "1 rows are null"),
        (pa.array([[1.0, 2.0], None], pa.list_(pa.float64(), 2)), "1 rows are null"),
        (pa.array([[1.0, None]]), "1 numbers are null"),
    ],
    ids=str,
)
def test_what_are_no_rows_of_numbers_is_named(lists, says, tmp_path):
    pq.write_table(pa.table({"e": lists}), tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match=rf"a\.parquet: e:? ?{says}"):
        whole(ParquetRows(str(tmp_path / "a.parquet"), "e", 2))


def test_a_parquet_file_that_cannot_be_read_is_named(tmp_path):
    place = tmp_path / "a.parquet"
    table = pa.table({"e": column(values("float32", 2000))})
    pq.write_table(table, place, use_dictionary=False, write_page_checksum=True)
    with pytest.raises(DatasetError, match=r"a\.parquet: has no column 'f'\. Say which column"):
        ParquetRows(str(place), "f")
    data = bytearray(place.read_bytes())
    data[len(data) // 2] ^= 255
    place.write_bytes(data)
    with pytest.raises(DatasetError, match=r"a\.parquet: cannot be read: .*CRC"):
        whole(ParquetRows(str(place), "e", 5))
    with pytest.raises(DatasetError, match=r"a\.parquet: cannot be read: .*CRC"):
        ParquetRows(str(place), "e")
    place.write_bytes(b"PAR1")
    with pytest.raises(DatasetError, match=r"a\.parquet: cannot be read"):
        ParquetRows(str(place), "e")


@pytest.mark.parametrize(
    "kind", [pa.large_list(pa.float16()), pa.list_(pa.float64()), pa.list_(pa.float64(), 5)], ids=str
)
def test_other_lists_are_read_as_numpy_converts_them(kind, tmp_path):
    array = values("float16")
    pq.write_table(pa.table({"e": pa.array(list(array), kind)}), tmp_path / "a.parquet")
    found = ParquetRows(str(tmp_path / "a.parquet"), "e")
    assert found.dtype == (np.float16 if kind.value_type == pa.float16() else np.float32)
    assert np.array_equal(whole(found), array.astype(found.dtype))
    found.close()


@given(st.integers(0, ROWS), st.integers(0, ROWS), st.integers(1, 7))
def test_normalised_rows_have_unit_length_but_those_of_zeros(folder, start, stop, at_once):
    array = values("float32") * np.arange(ROWS, dtype=np.float32)[:, None]  # the first is of zeros
    with opened("npy", array, folder) as found:
        found.rows_at_once = at_once
        unit = Normalised(found)
        assert (unit.location, unit.shape, unit.dtype) == (found.location, found.shape, found.dtype)
        out = np.empty((max(0, stop - start), 5), np.float32)
        unit.read(start, out)
        length = np.linalg.norm(array.astype(np.float64), axis=1, keepdims=True)
        expected = np.where(length > 0, array / np.where(length > 0, length, 1), 0)[start:stop]
        np.testing.assert_allclose(out, expected, rtol=1e-6)
        unit.close()
        assert found._file is None


def test_the_lock_on_headers_is_one_for_all():
    """numpy's reading of headers is not safe in two threads at once on Python 3.11."""
    assert rows.HEADERS.acquire(blocking=False)
    rows.HEADERS.release()
