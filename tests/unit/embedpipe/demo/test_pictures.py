import csv
import itertools

import pytest
from PIL import Image

from embedpipe.demo.pictures import read_pictures, write_demo_pictures, write_url_table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_demo_pictures(folder, limit=12, size=48)
    return folder


def test_each_concept_is_drawn_in_both_styles(folder):
    rows = read_pictures(folder)
    assert len(rows) == 24
    assert {(row.concept, row.style) for row in rows} == {
        (concept, style) for concept in {row.concept for row in rows} for style in ("flat", "outlined")
    }


def test_twins_do_not_stand_beside_each_other(folder):
    rows = read_pictures(folder)
    assert not [a for a, b in itertools.pairwise(rows) if a.concept == b.concept]


def test_pictures_are_opaque_on_white_with_something_drawn(folder):
    for row in read_pictures(folder):
        with Image.open(folder / row.path) as picture:
            assert (picture.mode, picture.size, picture.format) == ("RGB", (48, 48), "PNG")
            assert len(picture.getcolors(maxcolors=48 * 48)) > 5
    with Image.open(folder / "outlined" / "1f4c5.png") as calendar:
        assert calendar.getpixel((0, 0)) == (255, 255, 255)


def test_a_small_set_is_a_subset_of_a_larger_one(folder, tmp_path):
    write_demo_pictures(tmp_path, limit=5, size=48)
    larger = {row.path: row for row in read_pictures(folder)}
    for row in read_pictures(tmp_path):
        assert larger[row.path] == row
        assert (tmp_path / row.path).read_bytes() == (folder / row.path).read_bytes()


def test_complete_pictures_are_left_alone_and_others_drawn_again(tmp_path):
    write_demo_pictures(tmp_path, limit=2, size=32)
    rows = read_pictures(tmp_path)
    kept, lost = tmp_path / rows[0].path, tmp_path / rows[1].path
    kept.write_bytes(b"untouched")
    write_demo_pictures(tmp_path, limit=2, size=32)
    assert kept.read_bytes() == b"untouched"
    lost.unlink()
    write_demo_pictures(tmp_path, limit=2, size=32)
    assert Image.open(kept).size == Image.open(lost).size == (32, 32)
    write_demo_pictures(tmp_path, limit=2, size=40)
    assert Image.open(kept).size == (40, 40)


def test_makers_and_licences_are_named_beside_the_pictures(folder):
    text = (folder / "ATTRIBUTION.md").read_text()
    assert "CC-BY-4.0" in text
    assert "CC-BY-SA-4.0" in text


def test_url_table(folder, tmp_path):
    table = write_url_table(folder, "http://127.0.0.1:9/", tmp_path / "urls.csv")
    with table.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0]) == ["url", "caption", "concept", "style", "split", "alias"]
    assert rows[0]["url"] == "http://127.0.0.1:9/flat/1f4c5.png"
    assert rows[0]["caption"] == "a flat emoji of a calendar"
    assert len(rows) == 24
