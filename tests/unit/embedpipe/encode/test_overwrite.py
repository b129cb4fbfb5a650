"""--overwrite removes what the data set wrote, nothing else, and may be killed at any moment."""

import json
import shutil
from pathlib import Path

import pytest

from embedpipe import files, manifest
from embedpipe.encode.job import encode, plan_encode
from embedpipe.errors import DatasetError, InputError, ModelError, RunMismatch
from embedpipe.manifest import IMAGE_SHARDS, RunCard
from embedpipe.verify import verify
from tests import shards


class Killed(BaseException):
    """Stands in for SIGKILL: nothing catches it."""


@pytest.fixture(scope="module")
def expected(encoded_once, encode_config, other_model, tmp_path_factory):
    """What the other model gives, in an output of its own."""
    out = tmp_path_factory.mktemp("expected") / "emb"
    encode(encoded_once[0], str(out), encode_config(other_model))
    return shards.tree(out)


STRANGERS = {
    "notes.txt": b"mine",
    "img_emb/mine.npy": b"mine",
    "metadata/metadata_99999.parquet": b"of no shard of the plan",
    "index/image.faiss": b"an index",
    "deep/er/file": b"mine",
}


def test_it_begins_again_and_leaves_alone_what_is_not_ours(encoded_once, encoded, encode_config, other_model, expected):
    shards.write_files(encoded, STRANGERS.items())
    with pytest.raises(RunMismatch, match="another encoder.*`overwrite=True`"):
        encode(encoded_once[0], str(encoded), encode_config(other_model))
    report = encode(encoded_once[0], str(encoded), encode_config(other_model, overwrite=True))
    assert (report.already, report.report.tasks, report.rows) == (0, 3, 21)
    assert shards.tree(encoded) == {**expected, **STRANGERS}


def test_shards_that_are_no_longer_there_go_with_the_rest(encoded_once, encoded, encode_config, tmp_path):
    shards.write_tar(tmp_path / "in" / "only.tar", shards.samples(2))
    report = encode(str(tmp_path / "in"), str(encoded), encode_config(overwrite=True))
    assert (report.planned, report.vanished, report.rows) == (1, (), 2)
    assert len(list(encoded.glob("*/*.npy"))) == 2
    assert verify(str(encoded), shards.DEEP).whole


def test_killed_at_any_removal_it_leaves_what_the_next_run_accepts(
    encoded_once, encode_config, other_model, expected, tmp_path, monkeypatch
):
    remove, left = files.remove, 0

    def remove_some(location):
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        remove(location)

    monkeypatch.setattr(files, "remove", remove_some)
    first = shards.tree(encoded_once[1])
    survived = set()
    for moment in range(30):
        out = Path(shutil.copytree(encoded_once[1], tmp_path / f"{moment}"))
        left = moment
        try:
            encode(encoded_once[0], str(out), encode_config(other_model, overwrite=True))
        except Killed:
            survived.add(len(list(out.rglob("*"))))
        else:
            assert shards.tree(out) == expected
            break
        left = 1000
        if (out / "embedpipe.json").exists():
            assert verify(str(out), shards.DEEP).whole
            again = Path(shutil.copytree(out, tmp_path / f"{moment}-same"))
            encode(encoded_once[0], str(again), encode_config())
            assert shards.tree(again) == first
            with pytest.raises(RunMismatch):
                encode(encoded_once[0], str(out), encode_config(other_model))
        encode(encoded_once[0], str(out), encode_config(other_model, overwrite=True))
        assert shards.tree(out) == expected
    else:
        pytest.fail("it never ended")
    assert moment >= 3 + 9 + 1, "three manifests, three files of each shard, one card"
    assert len(survived) >= 13


def test_a_mistake_costs_nothing(encoded_once, encoded, encode_config, tmp_path):
    before = shards.tree(encoded)
    with pytest.raises(ModelError):
        encode(encoded_once[0], str(encoded), encode_config("ViT-B-33", overwrite=True))
    with pytest.raises(InputError):
        encode(str(tmp_path / "no"), str(encoded), encode_config(overwrite=True))
    change, todo = plan_encode(encoded_once[0], str(encoded), encode_config(overwrite=True))
    assert (change.added, todo) == (3, [0, 1, 2])
    assert shards.tree(encoded) == before


def test_what_encode_did_not_write_is_not_overwritten(encoded_once, encode_config, tmp_path):
    (tmp_path / "shards").mkdir()
    manifest.write_run(str(tmp_path / "shards"), RunCard(IMAGE_SHARDS, {}, ()))
    shards.write_files(tmp_path / "no card" / "manifest", [("00000.json", b"{}")])
    shards.write_files(tmp_path / "damaged", [("embedpipe.json", b"{")])
    before = shards.tree(tmp_path / "shards"), (tmp_path / "no card" / "manifest" / "00000.json").read_bytes()
    for place, kind in (("shards", RunMismatch), ("no card", RunMismatch), ("damaged", DatasetError)):
        with pytest.raises(kind):
            encode(encoded_once[0], str(tmp_path / place), encode_config(overwrite=True))
    assert before == (shards.tree(tmp_path / "shards"), (tmp_path / "no card/manifest/00000.json").read_bytes())


def test_a_manifest_cannot_name_files_that_are_not_ours(encoded_once, encoded, encode_config):
    outside = encoded.parent / "outside"
    outside.write_bytes(b"mine")
    (encoded / "notes").write_bytes(b"mine")
    place = encoded / "manifest" / "00001.json"
    document = json.loads(place.read_bytes())
    for path in ("../outside", "img_emb/../../outside", str(outside), "notes", "img_emb/../notes"):
        document["files"].append({"path": path, "bytes": 4, "sha256": ""})
    place.write_text(json.dumps(document))
    (encoded / "manifest" / "00002.json").write_text("{")
    encode(encoded_once[0], str(encoded), encode_config(overwrite=True))
    assert outside.read_bytes() == (encoded / "notes").read_bytes() == b"mine"
    (encoded / "notes").unlink()
    assert shards.tree(encoded) == shards.tree(encoded_once[1])


def test_with_nothing_there_it_is_an_ordinary_run(encoded_once, encode_config, tmp_path):
    encode(encoded_once[0], str(tmp_path / "emb"), encode_config(overwrite=True))
    assert shards.tree(tmp_path / "emb") == shards.tree(encoded_once[1])
