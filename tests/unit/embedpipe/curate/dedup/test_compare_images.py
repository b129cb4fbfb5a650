"""Pictures decide which near rows are one: copies are, lookalikes are not, and what cannot be read is told."""

import io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from embedpipe.curate import DedupConfig, dedup, plan_dedup
from embedpipe.curate.dedup import compare_images
from embedpipe.curate.dedup.decision import DEFAULT_DIFFERENCE
from embedpipe.curate.dedup.image_difference import SIDE, grey_thumbnail, image_differences
from embedpipe.encode.job import encode
from embedpipe.errors import InputError
from tests import embeddings, shards

DRAWN_PX = 220
COLOURS = ((214, 40, 40), (40, 90, 200), (250, 190, 30), (30, 140, 70))


def drawn(seed, colour=None, digit=None):
    """A drawing as emoji are: a few shapes on white, a digit in the middle."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (DRAWN_PX, DRAWN_PX), "white")
    pen = ImageDraw.Draw(image)
    ink = COLOURS[rng.integers(len(COLOURS))] if colour is None else colour
    pen.rounded_rectangle((25, 35, 190, 195), int(rng.integers(5, 70)), fill=ink, outline=(30, 30, 30), width=6)
    for _ in range(3):
        left, top = rng.integers(20, 140, 2).tolist()
        size = int(rng.integers(25, 60))
        pen.ellipse((left, top, left + size, top + size), fill=tuple(rng.integers(0, 255, 3).tolist()))
    pen.polygon([(30, 40), (80, 45), (40, 110)], fill=(90, 40, 120))
    said = str(rng.integers(10)) if digit is None else digit
    pen.text((88, 80), said, "white", ImageFont.load_default(size=70))
    return image


def encoded(image, quality=95, format="JPEG"):
    stream = io.BytesIO()
    image.save(stream, format, quality=quality)
    return stream.getvalue()


def apart(one, other):
    return float(
        image_differences(*(grey_thumbnail(encoded(picture, format="PNG"))[None] for picture in (one, other)))[0]
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(75, 95), st.floats(0.75, 1.5), st.floats(0, 0.02), st.floats(0, 0.02))
def test_a_copy_is_told_whichever_way_round(seed, quality, scale, left, top):
    image = drawn(seed)
    box = tuple(DRAWN_PX * edge for edge in (left, top, left + 0.98, top + 0.98))
    side = round(DRAWN_PX * scale)
    copy = encoded(image.resize((side, side), Image.Resampling.BICUBIC, box=box), quality)
    one, other = grey_thumbnail(encoded(image))[None], grey_thumbnail(copy)[None]
    assert image_differences(one, other)[0] <= DEFAULT_DIFFERENCE
    assert image_differences(other, one)[0] <= DEFAULT_DIFFERENCE


@pytest.mark.parametrize("seed", range(12))
def test_lookalikes_are_not_copies(seed):
    image = drawn(seed, COLOURS[0], "3")
    for other in (
        drawn(seed, COLOURS[1], "3"),
        drawn(seed, (180, 60, 60), "3"),
        drawn(seed, COLOURS[0], "8"),
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        image.rotate(5, fillcolor="white"),
    ):
        assert apart(image, other) > DEFAULT_DIFFERENCE
    assert apart(image, image) < 1e-6


def test_pictures_with_nothing_to_align_are_compared_all_the_same():
    white, cream = (Image.new("RGB", (50, 80), colour) for colour in ("white", (255, 240, 190)))
    assert apart(white, white) < 1e-6
    assert apart(white, cream) > DEFAULT_DIFFERENCE
    assert image_differences(*np.zeros((2, 0, 3, SIDE, SIDE), np.uint8)).shape == (0,)
    assert grey_thumbnail(b"no picture") is None


def near_rows(tmp_path, count=24, damaged=(), per_shard=8):
    """Pictures, row 2 i + 1 a copy of row 2 i, embeddings that are all near each other; (data set, image shards)."""
    rng = np.random.default_rng(0)
    image = np.ones((count, 16)) + rng.normal(size=(count, 16)) * 0.15
    image[1::2] = image[::2] + rng.normal(size=(count // 2, 16)) * 0.02
    place = embeddings.write_dataset(tmp_path / "emb", image, image, count // per_shard)
    folder = tmp_path / "shards"
    folder.mkdir()
    for first in range(0, count, per_shard):
        members = []
        for row in range(first, first + per_shard):
            data = encoded(drawn(row // 2), 95 if row % 2 else 80)
            members.append((f"{row:06d}.jpg", data[:300] if row in damaged else data))
            members.append((f"{row:06d}.txt", b"drawn"))
        shards.write_tar(folder / f"{first // per_shard:05d}.tar", members)
    return place, str(folder)


def dropped(out):
    return pq.read_table(f"{out}/dropped.parquet").to_pydict()


COPIES = list(range(1, 24, 2))


def test_near_rows_go_when_their_pictures_agree(tmp_path):
    place, images = near_rows(tmp_path)
    out = str(tmp_path / "out")
    report = dedup(place, out, DedupConfig(images=images))
    gone = dropped(out)
    assert gone["row"] == COPIES
    assert gone["of_row"] == [row - 1 for row in COPIES]
    assert max(gone["difference"]) <= DEFAULT_DIFFERENCE
    assert (report.confirmed_by, report.threshold, report.not_compared) == ("pictures", 0.75, 0)
    assert report.pairs_compared > 60
    assert report.difference_sweep["0.03"] == 12
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert told["confirmed_by"] == "pictures"
    assert images in told["why"]
    assert "cosine, difference" in (tmp_path / "out" / "pairs.html").read_text()
    alone = dedup(place, str(tmp_path / "alone"), DedupConfig(images=images, confirm="none"))
    assert (alone.confirmed_by, alone.threshold, alone.pairs_compared) == ("none", 0.95, 0)
    assert dropped(tmp_path / "alone")["row"] != COPIES
    assert set(dropped(tmp_path / "alone")["difference"]) <= {None}


def test_another_difference_reads_nothing_anew(tmp_path, monkeypatch):
    place, images = near_rows(tmp_path)
    out = str(tmp_path / "out")
    sweep = dedup(place, out, DedupConfig(images=images)).difference_sweep
    monkeypatch.setattr(compare_images, "_compare_all", lambda *_: pytest.fail("compared anew"))
    for value in ("0.005", "0.1"):
        assert dedup(place, out, DedupConfig(images=images, difference=float(value))).kept == sweep[value]


def test_what_cannot_be_seen_is_judged_by_its_cosine(tmp_path):
    place, images = near_rows(tmp_path, damaged=(4, 5))
    shutil.move(f"{images}/00002.tar", tmp_path / "elsewhere.tar")
    report = dedup(place, str(tmp_path / "out"), DedupConfig(images=images))
    assert 0 < report.not_compared < report.pairs_compared
    gone = dropped(tmp_path / "out")
    unseen = {4, 5, *range(16, 24)}
    assert {row for row in gone["row"] if row not in unseen} >= set(COPIES) - unseen
    for row, of, cosine, difference in zip(*(gone[n] for n in ("row", "of_row", "cosine", "difference")), strict=True):
        if {row, of} & unseen:
            assert difference is None
            assert cosine >= 0.95
        else:
            assert difference <= DEFAULT_DIFFERENCE


def test_a_picture_that_is_not_the_one_encoded_is_not_compared(tmp_path, encode_config):
    source = shards.write_tar(tmp_path / "in.tar", shards.samples(4))
    encode(source, str(tmp_path / "emb"), encode_config())
    config = DedupConfig(threshold=0.01)
    assert dedup(str(tmp_path / "emb"), str(tmp_path / "a"), config).not_compared == 0
    others = [(name, shards.jpeg(99) if name.endswith("jpg") else data) for name, data in shards.samples(4)]
    shards.write_tar(tmp_path / "in.tar", others)
    report = dedup(str(tmp_path / "emb"), str(tmp_path / "b"), config)
    assert report.not_compared == report.pairs_compared > 0


def test_without_image_shards_cosines_decide_and_it_is_said(tmp_path):
    place, images = near_rows(tmp_path)
    report = dedup(place, str(tmp_path / "out"))
    assert (report.confirmed_by, report.threshold) == ("none", 0.95)
    assert "give their folder with `images`" in report.why
    assert plan_dedup(place).confirmed_by == "none"
    assert plan_dedup(place, DedupConfig(images=images)).confirmed_by == "pictures"
    with pytest.raises(InputError, match="no image shards.*`images`"):
        dedup(place, str(tmp_path / "out"), DedupConfig(confirm="pictures"))
    with pytest.raises(InputError, match="texts are compared"):
        dedup(place, str(tmp_path / "out"), DedupConfig(confirm="pictures", modality="text"))
    with pytest.raises(InputError, match="no such way.*pictures"):
        DedupConfig(confirm="picture")
    with pytest.raises(InputError, match="at least 0"):
        DedupConfig(difference=-1)


def test_auto_leaves_distant_image_shards_alone(tmp_path):
    place, _ = near_rows(tmp_path)
    shards.edit(tmp_path / "emb" / "embedpipe.json", source="s3://bucket/shards")
    plan = plan_dedup(place)
    assert plan.confirmed_by == "none"
    assert "s3://bucket/shards is not on this machine; `confirm='pictures'`" in plan.why


def test_killed_while_pictures_are_compared_it_finds_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_images, "_PAIRS_AT_ONCE", 7)
    monkeypatch.setattr(compare_images, "_BATCHES_IN_GROUP", 3)
    place, images = near_rows(tmp_path)
    keep, kept = compare_images.Workspace.keep, []

    def counted(self, name, array):
        keep(self, name, array)
        kept.append(name)

    monkeypatch.setattr(compare_images.Workspace, "keep", counted)
    dedup(place, str(tmp_path / "whole"), DedupConfig(images=images, pairs=4))
    steps = len(kept)
    assert sum(name.startswith("group") for name in kept) > 3
    for survives in (0, 2, 5, *range(7, steps, 4), steps - 1):
        kept.clear()

        def dies(self, name, array, survives=survives):
            if len(kept) == survives:
                raise KeyboardInterrupt
            counted(self, name, array)

        monkeypatch.setattr(compare_images.Workspace, "keep", dies)
        out = tmp_path / f"killed-{survives}"
        with pytest.raises(KeyboardInterrupt):
            dedup(place, str(out), DedupConfig(images=images, threads=1, pairs=4))
        monkeypatch.setattr(compare_images.Workspace, "keep", counted)
        dedup(place, str(out), DedupConfig(images=images, threads=1, pairs=4))
        for name in (".pictures/difference.npy", "kept.parquet", "dropped.parquet", "pairs.html"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        assert sorted(path.name for path in (out / ".pictures").iterdir()) == ["difference.npy", "identity.json"]
