"""Parquet files read whole: the same from everywhere, and by no thread that outlives the call."""

import ast
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedpipe.errors import InputError
from embedpipe.parquet_tables import read_table

ROOT = Path(__file__).parents[3]


@pytest.fixture(params=["local", "url", "remote"])
def written(request, tmp_path):
    table = pa.table({"a": range(1000), "b": [f"text {i}" for i in range(1000)]})
    location = {
        "local": str(tmp_path / "a.parquet"),
        "url": (tmp_path / "a.parquet").as_uri(),
        "remote": f"memory://{tmp_path.name}/a.parquet",
    }[request.param]
    with fsspec.open(location, "wb") as sink:
        pq.write_table(table, sink, row_group_size=100, write_page_checksum=True)
    return location, table


def test_a_table_and_columns_of_it(written):
    location, table = written
    assert read_table(location) == table
    assert read_table(location, ["b"]) == table.select(["b"])
    assert read_table(location, schema=pa.schema([("b", pa.string())])) == table.select(["b"])
    other = read_table(location, schema=pa.schema([("c", pa.string()), ("a", pa.float64())]))
    assert other.column("c").null_count == 1000
    assert other.column("a").to_pylist() == [*range(1000)]


def test_damage_is_seen(written):
    location, _ = written
    with fsspec.open(location, "rb") as source:
        data = bytearray(source.read())
    data[200] ^= 1
    with fsspec.open(location, "wb") as sink:
        sink.write(bytes(data))
    with pytest.raises((OSError, pa.ArrowException)):
        read_table(location)


def test_a_missing_file_is_our_error(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_table(str(tmp_path / "none.parquet"))


def test_nothing_else_reads_a_whole_file():
    """A script that ends right after pyarrow.parquet.read_table of a Python stream is aborted, one time in ten.

    It also imports pandas.
    """
    found = set()
    for path in sorted((ROOT / "embedpipe").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "read_table" and ast.unparse(node.value) != "self":
                found.add(path.name)
    assert found == set()


@pytest.mark.slow
@pytest.mark.parametrize("remote", [False, True])
def test_a_script_that_ends_right_after_it_ends_well(tmp_path, remote):
    pq.write_table(pa.table({"a": range(100)}), tmp_path / "a.parquet")
    code = f"""
import fsspec
from embedpipe.parquet_tables import read_table
location = {str(tmp_path / "a.parquet")!r}
if {remote}:
    with open(location, "rb") as source, fsspec.open("memory://a.parquet", "wb") as sink:
        sink.write(source.read())
    location = "memory://a.parquet"
assert read_table(location).num_rows == 100
"""

    def ends(_):
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(6) as pool:
        assert {(done.returncode, done.stderr) for done in pool.map(ends, range(60))} == {(0, "")}
