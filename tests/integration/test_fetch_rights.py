"""Fetch reads what images say of their rights, from the web and from folders, and leaves older outputs as they are."""

import json
import tarfile

import pyarrow.parquet as pq
import pytest

from embedpipe import manifest
from embedpipe.errors import RunMismatch
from embedpipe.fetch import FetchConfig, fetch
from embedpipe.fetch.rights import COLUMNS
from embedpipe.verify.job import verify
from tests import bodies, web
from tests.shards import DEEP


@pytest.fixture(scope="module")
def site():
    with web.serving() as running:
        yield running


def config(**options):
    return FetchConfig(processes=1, threads=4, allow_hosts=("127.0.0.1",), samples_per_shard=4, **options)


def table(site, tmp_path, *paths, header="url,caption,rights_terms"):
    file = tmp_path / f"urls-{len(paths)}.csv"
    rows = [f"{site.url(path)},caption {i},mine" for i, path in enumerate(paths)]
    file.write_text("\n".join([header, *rows]) + "\n")
    return str(file)


def rows(out):
    return [row for file in sorted(out.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


PATHS = (
    "/photo/1.jpg",
    "/stated/DMI-ALLOWED/2.jpg",
    "/stated/DMI-PROHIBITED/3.jpg",
    "/stated/DMI-PROHIBITED-SEECONSTRAINT/4.jpg",
)


def test_rights_become_columns_and_opt_outs_rejects(site, tmp_path):
    # The last row repeats the second in another shard: it has its rights too.
    report = fetch(table(site, tmp_path, *PATHS, PATHS[1]), str(tmp_path / "out"), config())
    assert report.failed == {"opt_out": 2}
    plain, allowed, prohibited, constrained, again = rows(tmp_path / "out")
    assert plain["rights_creator"] is None and plain["has_c2pa"] is False  # noqa: PT018
    for row in (allowed, again):
        assert (row["status"], row["rights_creator"], row["rights_data_mining"]) == ("success", "Ann 2", "DMI-ALLOWED")
    assert prohibited["error_message"] == "forbidden by the image's own metadata: plus:DataMining: DMI-PROHIBITED"
    assert (prohibited["rights_data_mining"], constrained["error_class"]) == ("DMI-PROHIBITED", "opt_out")
    # The table's own column of that name is passed through under another.
    assert {row["source_rights_terms"] for row in rows(tmp_path / "out")} == {"mine"}
    with tarfile.open(tmp_path / "out" / "00000.tar") as archive:
        said = json.load(archive.extractfile("000001.json"))
    assert {name: said[name] for name in COLUMNS.names} == {name: allowed[name] for name in COLUMNS.names}
    assert verify(str(tmp_path / "out"), DEEP).whole


def test_rights_can_be_recorded_alone_or_left_unread(site, tmp_path):
    source = table(site, tmp_path, *PATHS)
    assert fetch(source, str(tmp_path / "record"), config(rights="record")).failed == {}
    assert rows(tmp_path / "record")[2]["rights_data_mining"] == "DMI-PROHIBITED"
    assert fetch(source, str(tmp_path / "off"), config(rights="off")).failed == {}
    assert "rights_creator" not in rows(tmp_path / "off")[2]
    assert "rights_terms" in rows(tmp_path / "off")[2]


def test_an_output_begun_before_goes_on_as_it_was(site, tmp_path):
    source, out = table(site, tmp_path, *PATHS), str(tmp_path / "out")
    fetch(source, out, config(rights="off"))
    run = manifest.read_run(out)
    options = {name: value for name, value in run.options.items() if name != "rights"}
    manifest.write_run(out, manifest.dataclasses.replace(run, options=options))  # as version 0.1 wrote it
    with pytest.raises(RunMismatch, match='rights was "off", now "obey"'):
        fetch(source, out, config(rights="obey"))
    manifest.retract(out, 0, run.shard_digits)
    assert fetch(source, out, config()).failed == {}
    assert "rights_creator" not in rows(tmp_path / "out")[0]
    assert fetch(source, out, config(rights="off")).shards_now == 0


def test_the_choice_is_kept_by_an_output(site, tmp_path):
    source, out = table(site, tmp_path, *PATHS), str(tmp_path / "out")
    fetch(source, out, config(rights="record"))
    assert fetch(source, out, config()).shards_now == 0
    with pytest.raises(RunMismatch, match='rights was "record", now "obey"'):
        fetch(source, out, config(rights="obey"))


def test_a_folder_of_images_is_read_as_well(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(bodies.stated(1, "DMI-ALLOWED"))
    (tmp_path / "photos" / "a.json").write_text('{"rights_creator": "of the file beside"}')
    (tmp_path / "photos" / "b.jpg").write_bytes(bodies.stated(2, "DMI-PROHIBITED"))
    assert fetch(str(tmp_path / "photos"), str(tmp_path / "out"), config()).failed == {"opt_out": 1}
    assert rows(tmp_path / "out")[0]["rights_creator"] == "Ann 1"
    with tarfile.open(tmp_path / "out" / "00000.tar") as archive:
        said = json.load(archive.extractfile("000000.json"))
    assert (said["rights_creator"], said["source_rights_creator"]) == ("Ann 1", "of the file beside")
