"""Where tables are found: names with brackets, partitioned folders, and what is no table."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedpipe import manifest
from embedpipe.errors import InputError
from embedpipe.fetch import FetchConfig, make_plan
from embedpipe.fetch.planned_rows import shard_rows
from embedpipe.read import locations
from embedpipe.read.tables.table import locate_tables

U = "http://a/"


def planned(urls, **options):
    plan = make_plan(str(urls), "/nowhere", FetchConfig(**options))
    return pa.concat_tables(table for _, table in shard_rows(plan, frozenset(range(len(plan.shards)))))


@pytest.mark.parametrize("folder", ["in", "in [1]", "in*", "in{a,b}"])
@pytest.mark.parametrize("name", ["urls[1].csv", "urls.csv", "urls?.csv"])
def test_a_path_that_exists_is_no_pattern(tmp_path, folder, name):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / name).write_text(f"url\n{U}\n")
    for given in (tmp_path / folder / name, tmp_path / folder, f"{tmp_path}/{folder}/*.csv"):
        (found,) = locate_tables(str(given))
        assert found.name == name
        assert planned(given).column("url").to_pylist() == [U]


def test_a_folder_of_a_tar_pattern_is_taken_literally(tmp_path):
    (tmp_path / "in [1]").mkdir()
    for number in range(3):
        (tmp_path / "in [1]" / f"{number}.tar").touch()
    pattern = f"{tmp_path}/in [1]/{{0..1}}.tar"
    assert [name.rpartition("/")[2] for name in locations.locate(pattern, ()).locations] == ["0.tar", "1.tar"]
    assert locations.root(pattern) == f"{tmp_path}/in [1]"


def test_folders_named_column_equals_value_are_columns(tmp_path):
    for day, part, text in (
        ("2024-01-01", "de", "1"),
        ("2024-01-02", "a%2Fb", "2"),
        ("__HIVE_DEFAULT_PARTITION__", "x", "3"),
    ):
        folder = tmp_path / f"date={day}" / f"part={part}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"url": [U + text], "n": [int(text)]}), folder / "part-0.parquet")
        (folder / "_SUCCESS").touch()
    rows = planned(tmp_path).to_pylist()
    assert rows == [
        {"url": U + "1", "caption": None, "n": 1, "date": "2024-01-01", "part": "de"},
        {"url": U + "2", "caption": None, "n": 2, "date": "2024-01-02", "part": "a/b"},
        {"url": U + "3", "caption": None, "n": 3, "date": None, "part": "x"},
    ]
    assert planned(f"{tmp_path}/*/*/*.parquet").column("date").to_pylist()[0] == "2024-01-01"


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_column_of_the_file_counts_more_than_its_folder(tmp_path, ending):
    for day, date in (("1", "own"), ("2", None)):
        (tmp_path / f"date={day}").mkdir()
        row = {"url": U, **({"date": date} if date else {})}
        text = ",".join(row) + "\n" + ",".join(row.values()) if ending == "csv" else json.dumps(row)
        (tmp_path / f"date={day}" / f"t.{ending}").write_text(text + "\n")
    assert planned(tmp_path).column("date").to_pylist() == ["own", "2"]


def test_an_output_given_as_the_table_is_told(tmp_path):
    (tmp_path / "t.csv").write_text(f"url\n{U}\n")
    plan = make_plan(str(tmp_path / "t.csv"), str(tmp_path / "out"), FetchConfig())
    manifest.write_run(str(tmp_path / "out"), plan.run)
    with pytest.raises(InputError, match=r"an output of embedpipe \(embedpipe/image-shards\).*swapped"):
        make_plan(str(tmp_path / "out"), str(tmp_path / "else"), FetchConfig())


def test_a_folder_of_other_endings_says_what_is_known(tmp_path):
    (tmp_path / "t.csv.lz4").touch()
    with pytest.raises(InputError, match=r"no url table in it.*gz, bz2, xz, zst"):
        locate_tables(str(tmp_path))
    with pytest.raises(InputError, match=r"not a kind of table.*gz, bz2, xz, zst"):
        locate_tables(str(tmp_path / "t.csv.lz4"))
