"""An image that crashes, hangs or overfills the decoder is one failed row of fetch, and everything else is stored."""

import pyarrow.parquet as pq
import pytest

from embedpipe.fetch import FetchConfig, fetch
from tests import costly, shards
from tests.faulty_pillow import faulty_pillow, marked

__all__ = ["faulty_pillow"]


def write(folder, bad):
    """Ten good images around the bad ones, which are given by name."""
    folder.mkdir()
    for i in range(10):
        (folder / f"{'a' if i < 5 else 'z'}{i}.jpg").write_bytes(shards.jpeg(i))
    for name, data in bad.items():
        (folder / name).write_bytes(data)


def outcomes(out):
    rows = [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return {row["url"]: row["error_class"] for row in rows}


def fetched(tmp_path, bad, **options):
    write(tmp_path / "photos", bad)
    report = fetch(str(tmp_path / "photos"), str(tmp_path / "out"), FetchConfig(processes=1, **options))
    assert report.succeeded == 10
    found = outcomes(tmp_path / "out")
    assert len(found) == 10 + len(bad)
    return {name: found[name] for name in bad}


def test_in_a_format_that_is_decoded_in_a_child(tmp_path, faulty_pillow):
    bad = {f"m-{how}.tif": marked(how) for how in ("segfault", "abort", "leave", "spin")}
    assert fetched(tmp_path, bad, max_sample_seconds=1.0, resizer="opencv") == {
        "m-segfault.tif": "decoder_died",
        "m-abort.tif": "decoder_died",
        "m-leave.tif": "decoder_died",
        "m-spin.tif": "too_costly_time",
    }


@pytest.mark.parametrize("resizer", ["opencv", pytest.param("img2dataset", marks=pytest.mark.slow)])
def test_in_the_download_process_which_is_replaced(resizer, tmp_path, faulty_pillow):
    bad = {f"m{i}.png": marked(how, "PNG") for i, how in enumerate(("segfault", "abort", "leave"))}
    assert set(fetched(tmp_path, bad, resizer=resizer).values()) == {"decoder_died"}


def test_a_jpeg_of_many_scans(tmp_path):
    bad = {"m-scans.jpg": costly.jpeg_of_scans(4_000, 6_000)}
    found = fetched(tmp_path, bad, max_sample_seconds=1.0, resizer="opencv")
    assert found == {"m-scans.jpg": "too_costly_time"}


@pytest.mark.slow
def test_a_tile_larger_than_the_image_is_not_allocated(tmp_path):
    found = fetched(tmp_path, {"m-tile.tif": costly.tiff_of_one_tile()}, max_sample_seconds=30.0)
    assert found == {"m-tile.tif": "too_costly_memory"}
