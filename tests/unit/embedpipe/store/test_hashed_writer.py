"""Files that are hashed while they are written: what is said of them is what a second reading would find."""

import hashlib
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpipe.errors import DatasetError
from embedpipe.manifest import FileRecord
from embedpipe.store import hashed_writer
from embedpipe.store.hashed_writer import require_written, write_hashed, write_npy, write_parquet

END = 65536


def record_by_hand(path, data):
    """As data sets are documented: sha256 of all, and of the first and the last 64 KiB."""
    ends = hashlib.sha256(data[:END] + data[-END:]).hexdigest()
    return FileRecord(path, len(data), hashlib.sha256(data).hexdigest(), ends)


@pytest.mark.parametrize("size", [0, 1, END - 1, END, END + 1, 2 * END + 7, 3_000_000])
@pytest.mark.parametrize("piece", [1000, END, 1 << 20, 1 << 22])
def test_the_record_is_that_of_the_bytes_however_they_come(tmp_path, size, piece):
    data = np.random.default_rng(0).bytes(size)

    def save(stream):
        for first in range(0, size, piece):
            assert stream.write(data[first : first + piece]) == len(data[first : first + piece])

    record = write_hashed(str(tmp_path), "a/b.bin", save)
    assert (tmp_path / "a" / "b.bin").read_bytes() == data
    assert record == record_by_hand("a/b.bin", data)
    require_written(str(tmp_path), record)


@given(st.lists(st.binary(max_size=30), max_size=8))
def test_ends_are_kept_over_pieces_of_any_size(pieces):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashed_writer, "_END_BYTES", 8)
        patch.setattr(hashed_writer, "_WORTH_A_THREAD_BYTES", 16)
        target = io.BytesIO()
        stream = hashed_writer._HashingStream(target)
        for piece in pieces:
            stream.write(piece)
        data = b"".join(pieces)
        assert target.getvalue() == data
        record = stream.record("x")
    assert record.ends_sha256 == hashlib.sha256(data[:8] + data[-8:]).hexdigest()
    assert (record.bytes, record.sha256) == (len(data), hashlib.sha256(data).hexdigest())


def test_a_large_piece_is_hashed_to_its_end_before_the_next(tmp_path):
    data = bytes(64 << 20)
    stream = hashed_writer._HashingStream(io.BytesIO())
    stream.write(data)
    assert stream.record("x").sha256 == hashlib.sha256(data).hexdigest()
    assert stream.writable() is True


def test_what_cannot_be_written_is_not_said_to_be_there(tmp_path):
    class Full(io.BytesIO):
        def write(self, data):
            raise OSError("no space left")

    stream = hashed_writer._HashingStream(Full())
    for size in (10, 2 << 20):
        with pytest.raises(OSError, match="no space left"):
            stream.write(bytes(size))
    assert stream.bytes == 0


def test_arrays_are_written_in_c_order(tmp_path):
    array = np.arange(12, dtype=np.float16).reshape(3, 4)
    record = write_npy(str(tmp_path), "a.npy", np.asfortranarray(array))
    data = (tmp_path / "a.npy").read_bytes()
    assert record == record_by_hand("a.npy", data)
    assert np.array_equal(np.load(tmp_path / "a.npy"), array)
    assert b"'fortran_order': False" in data


def test_tables_are_written_with_checksums_of_their_pages(tmp_path):
    table = pa.table({"a": list(range(1000)), "b": ["caption"] * 1000})
    record = write_parquet(str(tmp_path), "a.parquet", table)
    place = tmp_path / "a.parquet"
    data = bytearray(place.read_bytes())
    assert record == record_by_hand("a.parquet", bytes(data))
    assert pq.read_table(place).equals(table)
    about = pq.ParquetFile(place).metadata.row_group(0).column(0)
    assert about.compression == "SNAPPY"
    data[about.dictionary_page_offset + about.total_compressed_size // 2] ^= 1
    place.write_bytes(data)
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(place, page_checksum_verification=True).read()


@pytest.mark.parametrize("size", [10, END, 3 * END])
def test_another_file_is_told_by_its_size_or_its_ends(tmp_path, size):
    data = np.random.default_rng(0).bytes(size)
    record = write_hashed(str(tmp_path), "a", lambda stream: stream.write(data))
    place = tmp_path / "a"
    for other in (data + b"1", data[:-1]):
        place.write_bytes(other)
        with pytest.raises(
            DatasetError, match=f"a: {len(other)} bytes, but its manifest says {size}. `embedpipe verify`"
        ):
            require_written(str(tmp_path), record)
    for changed in (0, size - 1, min(size, END) - 1, max(0, size - END)):
        other = bytearray(data)
        other[changed] ^= 1
        place.write_bytes(other)
        with pytest.raises(DatasetError, match="a: is not the file that was written there"):
            require_written(str(tmp_path), record)
    place.unlink()
    with pytest.raises(DatasetError, match="a: cannot be read: .*no such file"):
        require_written(str(tmp_path), record)


def test_what_lies_between_the_ends_and_files_of_before_there_were_ends_are_not_looked_at(tmp_path):
    data = bytearray(np.random.default_rng(0).bytes(3 * END))
    record = write_hashed(str(tmp_path), "a", lambda stream: stream.write(data))
    data[END] ^= 1
    (tmp_path / "a").write_bytes(data)
    require_written(str(tmp_path), record)
    data[0] ^= 1
    (tmp_path / "a").write_bytes(data)
    require_written(str(tmp_path), FileRecord("a", record.bytes, record.sha256, ""))
