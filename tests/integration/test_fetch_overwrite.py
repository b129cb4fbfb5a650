"""fetch --overwrite removes what fetch wrote, nothing else, and may be killed at any moment."""

import shutil
from pathlib import Path

import pytest

from embedpipe import files
from embedpipe.errors import EmbedpipeError, InputError, OptionError, RunMismatch
from embedpipe.fetch import FetchConfig, fetch, plan_fetch
from embedpipe.verify import verify
from tests import shards

CONFIG = FetchConfig(processes=1, samples_per_shard=3, drop_duplicates=True)
OTHER = FetchConfig(processes=1, samples_per_shard=4, image_size=16, overwrite=True)
STRANGERS = {
    "notes.txt": b"mine",
    "99999.parquet": b"of no shard of the plan",
    "reports/mine.json": b"mine",
    "retry/notes": b"mine",
    "deep/00000.tar": b"mine",
}


class Killed(BaseException):
    """Stands in for SIGKILL: nothing catches it."""


def contents(out):
    """What is in an output, without what differs between two runs."""
    apart = ("reports/0", "manifest/", ".fetch/", ".lock")
    return {name: data for name, data in shards.tree(out).items() if not name.startswith(apart)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Eight photographs, and two captions without one, which fail."""
    folder = tmp_path_factory.mktemp("photos")
    shards.write_files(folder, [(f"{i}.jpg", shards.jpeg(i)) for i in range(8)])
    shards.write_files(folder, [(f"lone{i}.txt", b"a caption") for i in range(2)])
    return str(folder)


@pytest.fixture(scope="module")
def fetched_once(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("once") / "out"
    (Path(photos) / "8.jpg").write_bytes(b"")
    fetch(photos, str(out), CONFIG)
    fetch(photos, str(out), FetchConfig(**{**settings(CONFIG), "retry_failed": True}))
    assert (out / "retry" / "00001.parquet").exists()
    return out


def settings(config):
    return {name: getattr(config, name) for name in ("processes", "samples_per_shard", "drop_duplicates")}


@pytest.fixture(scope="module")
def expected(photos, fetched_once, tmp_path_factory):
    """What the other options give, in an output of its own."""
    out = tmp_path_factory.mktemp("expected") / "out"
    fetch(photos, str(out), OTHER)
    return contents(out)


def test_it_begins_again_and_leaves_alone_what_is_not_ours(photos, fetched_once, expected, tmp_path):
    out = Path(shutil.copytree(fetched_once, tmp_path / "out"))
    shards.write_files(out, STRANGERS.items())
    with pytest.raises(RunMismatch, match=r"`overwrite=True`"):
        fetch(photos, str(out), FetchConfig(**{**settings(OTHER), "image_size": 16}))
    plan, to_fetch = plan_fetch(photos, str(out), OTHER)
    assert to_fetch == list(range(len(plan.shards)))
    report = fetch(photos, str(out), OTHER)
    assert (report.shards, report.shards_now, report.retried) == (len(plan.shards), len(plan.shards), 0)
    assert contents(out) == {**expected, **STRANGERS}
    assert sorted(path.name for path in (out / "reports").glob("0*")) == ["00001.json"]
    assert not (out / "retry" / "00001.parquet").exists()
    assert verify(str(out), shards.DEEP).whole


def test_killed_at_any_removal_it_leaves_what_the_next_run_accepts(
    photos, fetched_once, expected, tmp_path, monkeypatch
):
    remove, left = files.remove, 0

    def remove_some(location):
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        remove(location)

    monkeypatch.setattr(files, "remove", remove_some)
    moment = 0
    while True:
        out = Path(shutil.copytree(fetched_once, tmp_path / f"{moment}"))
        left = moment
        try:
            fetch(photos, str(out), OTHER)
        except Killed:
            pass
        else:
            assert contents(out) == expected
            break
        left = 1000
        if (out / "embedpipe.json").exists():
            with pytest.raises(RunMismatch):
                fetch(photos, str(out), FetchConfig(**{**settings(OTHER), "image_size": 16}))
        fetch(photos, str(out), OTHER)
        assert contents(out) == expected, moment
        moment += 3
    assert moment > 12, "manifests, tars, parquet files, the card, the list of retries, reports"


def test_a_mistake_costs_nothing(photos, fetched_once, tmp_path):
    out = Path(shutil.copytree(fetched_once, tmp_path / "out"))
    before = shards.tree(out)
    with pytest.raises(InputError):
        fetch(str(tmp_path / "no"), str(out), OTHER)
    with pytest.raises(OptionError, match="`overwrite`"):
        FetchConfig(overwrite=True, retry_failed=True)
    plan_fetch(photos, str(out), OTHER)
    assert shards.tree(out) == before


def test_what_fetch_did_not_write_is_not_overwritten(photos, encoded_once, tmp_path):
    shards.write_files(tmp_path / "tars", [("00000.tar", b"mine")])
    shards.write_files(tmp_path / "damaged", [("embedpipe.json", b"{")])
    shutil.copytree(encoded_once[1], tmp_path / "emb")
    for name in ("tars", "damaged", "emb"):
        before = shards.tree(tmp_path / name)
        with pytest.raises(EmbedpipeError):
            fetch(photos, str(tmp_path / name), OTHER)
        assert shards.tree(tmp_path / name) == before, name


def test_with_nothing_there_it_is_an_ordinary_run(photos, expected, tmp_path, embedpipe):
    done = embedpipe(
        "fetch", photos, str(tmp_path / "out"), "--overwrite", "--samples-per-shard", "4", "--image-size", "16"
    )
    assert done.exit_code == 0, done.stderr
    assert contents(tmp_path / "out") == expected
