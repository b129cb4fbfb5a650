"""Files of queries: what is read of them, and what is said of those that are none."""

import gzip

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedpipe.errors import EmptyInput, InputError, OptionError
from embedpipe.index.query import Query
from embedpipe.index.query_files import read_queries
from embedpipe.read.delimited import DialectOptions


@pytest.fixture
def write(tmp_path):
    def make(name, data):
        (tmp_path / name).write_bytes(data if isinstance(data, bytes) else data.encode())
        return str(tmp_path / name)

    return make


def test_texts_of_lines_and_columns(write, tmp_path):
    assert read_queries(write("q.txt", "\ufeffa cat\r\n\n  a dog \n")) == ["a cat", "a dog"]
    assert read_queries(write("q.csv", 'n,query\n1,"a, cat"\n2,"a\ndog"\n')) == ["a, cat", "a\ndog"]
    assert read_queries(write("q.csv", "n,text\n1,é\n"), "n") == ["1"]
    assert read_queries(write("q.TSV", "only\na b\n")) == ["a b"]
    assert read_queries(write("q.csv", "n;text\n1;a, b\n".encode("utf-16"))) == ["a, b"]
    assert read_queries(write("q.txt", "a\nb\n".encode("utf-16"))) == ["a", "b"]
    assert read_queries(write("q.tsv.gz", gzip.compress(b'n\ttext\n1\t"Hello" she said\n'))) == ['"Hello" she said']
    quoted = DialectOptions(quoting="minimal")
    swallowed = 'text\tn\n"open only\t2\nmiddle\t3\nclose"\t4\n'
    assert read_queries(write("q.tsv", swallowed), None, quoted) == ["open only\t2\nmiddle\t3\nclose"]
    with pytest.raises(InputError, match=r"line 2: .*`quoting='none'`"):
        read_queries(write("q.tsv", swallowed))
    pq.write_table(pa.table({"caption": ["x", "y"], "other": [1, 2]}), tmp_path / "q.parquet")
    assert read_queries(str(tmp_path / "q.parquet")) == ["x", "y"]


def test_embeddings_of_arrays_and_columns(tmp_path):
    rows = np.float16([[1, 2], [3, 4], [5, 6]])
    np.save(tmp_path / "q.npy", rows)
    assert np.array_equal(read_queries(str(tmp_path / "q.npy")), rows.astype(np.float32))
    np.save(tmp_path / "q.npy", rows[1])
    assert np.array_equal(read_queries(str(tmp_path / "q.npy")), [[3, 4]])
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 2)
    pq.write_table(pa.table({"key": ["a", "b", "c"], "image_embedding": fixed}), tmp_path / "q.parquet")
    found = read_queries(str(tmp_path / "q.parquet"))
    assert found.dtype == np.float32
    assert np.array_equal(found, rows)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("q.json", b"[]", "queries come from .txt, .csv"),
        ("q.txt", b"a\n\xff", "line 2: not UTF-8"),
        ("q.csv", "a,b\n1,2\n", "none of its columns.*`column`: a, b"),
        ("q.csv", "query,b\n,2\n", "row 0 has no 'query'"),
        ("q.csv", 'query,b\n"a"\n"b', "line 2: 1 fields"),
        ("q.tsv", "only\na\tb\n", "line 2: 2 fields where the header has 1"),
        ("q.parquet", b"PAR1", "cannot be read"),
        ("q.npy", b"NUMPY", "no .npy file"),
    ],
)
def test_what_is_no_file_of_queries_is_named(write, name, data, said):
    with pytest.raises(InputError, match=said):
        read_queries(write(name, data))


def test_what_holds_nothing_or_something_else(write, tmp_path):
    for name, data in (("q.txt", "\n \n"), ("q.csv", "query\n"), ("q.csv", "")):
        with pytest.raises(EmptyInput, match="no queries in it"):
            read_queries(write(name, data))
    with pytest.raises(InputError, match="no column 'txt'. Did you mean text"):
        read_queries(write("q.csv", "text\na\n"), "txt")
    np.save(tmp_path / "q.npy", np.arange(4))
    with pytest.raises(InputError, match="int64 of shape"):
        read_queries(str(tmp_path / "q.npy"))
    np.save(tmp_path / "q.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match="no .npy file"):
        read_queries(str(tmp_path / "q.npy"))
    pq.write_table(pa.table({"query": [1, 2]}), tmp_path / "q.parquet")
    with pytest.raises(InputError, match="neither texts nor embeddings"):
        read_queries(str(tmp_path / "q.parquet"))
    pq.write_table(pa.table({"embedding": [[1.0, 2.0], [3.0]]}), tmp_path / "q.parquet")
    with pytest.raises(InputError, match="neither texts nor embeddings of one width"):
        read_queries(str(tmp_path / "q.parquet"))
    with pytest.raises(InputError, match="no such file"):
        read_queries(str(tmp_path / "no.txt"))


@pytest.mark.parametrize("option", [{"quoting": "none"}, {"delimiter": ";"}, {"encoding": "cp1252"}])
def test_a_dialect_without_a_file_of_queries_is_refused(option):
    with pytest.raises(OptionError, match=f"`{next(iter(option))}` is only of use with `queries`"):
        Query(text="a cat", **option)
