"""Rows are taken out of everything that was made of an image, stay out, and leave the rest as it was."""

import dataclasses
import json
import os
import shutil
import signal
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import embedpipe as library
from embedpipe import files, manifest
from embedpipe.encode.job import encode
from embedpipe.errors import DatasetError, EmptyInput, InputError, OptionError, OutputBusy
from embedpipe.fetch import FetchConfig, fetch
from embedpipe.load import EmbeddingDataset
from embedpipe.lock import exclusive
from embedpipe.takedown import TakedownConfig, search
from embedpipe.takedown.job import plan_takedown, takedown
from embedpipe.verify.job import verify
from tests import bodies, web
from tests.embeddings import write_dataset
from tests.shards import DEEP

PATHS = [f"/photo/{i}.jpg" for i in range(10)]
# The bytes of photo 3 under another url, its url with another caption, what fails, and a repeat in the last shard.
PATHS += ["/photo/3.jpg?copy", "/photo/3.jpg", "/status/404", "/photo/11.jpg", "/photo/3.jpg"]


def config(**options):
    return FetchConfig(processes=1, threads=4, allow_hosts=("127.0.0.1",), samples_per_shard=5, **options)


@pytest.fixture(scope="module")
def site():
    with web.serving() as running:
        yield running


@pytest.fixture(scope="module")
def made(site, tmp_path_factory, encode_config):
    """(table, shards, embeddings): fetched, encoded with token states, indexed."""
    root = tmp_path_factory.mktemp("made")
    lines = [f"{site.url(path)},caption {i},{'x' * i}" for i, path in enumerate(PATHS)]
    (root / "urls.csv").write_text("\n".join(["url,caption,note", *lines]) + "\n")
    fetch(str(root / "urls.csv"), str(root / "shards"), config())
    return root


@pytest.fixture
def own(made, tmp_path, encode_config):
    """A copy to take rows from: as if it had been made there."""
    for name in ("urls.csv", "shards"):
        copy = shutil.copytree if (made / name).is_dir() else shutil.copy
        copy(made / name, tmp_path / name)

    def encoded(out="emb", **options):
        stage = {"text_tokens": True}
        encode(str(tmp_path / "shards"), str(tmp_path / out), encode_config(stage=stage, **options))
        library.index(str(tmp_path / out))
        library.index(str(tmp_path / out), library.IndexConfig("text"))
        return str(tmp_path / out)

    return tmp_path, str(tmp_path / "shards"), encoded


def listed(folder, *entries, name="gone.txt"):
    (folder / name).write_text("\n".join(entries) + "\n")
    return str(folder / name)


def table_of(shards):

    return pa.concat_tables(pq.read_table(p) for p in sorted(Path(shards).glob("*.parquet"))).to_pylist()


def images_of(shards):

    found = {}
    for path in sorted(Path(shards).glob("*.tar")):
        with tarfile.open(path) as archive:
            found |= {it.name: archive.extractfile(it).read() for it in archive if it.name.endswith("jpg")}
    return found


def everything(folder):
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")


def test_a_url_goes_from_everywhere_with_all_that_is_the_same_picture(site, own):
    root, shards, encoded = own
    emb = encoded()
    url = site.url("/photo/3.jpg")
    before, rows_before = images_of(shards), table_of(shards)
    data = EmbeddingDataset(emb)
    kept_before = {row["key"]: data.image[i].tobytes() for i, row in enumerate(data.to_arrow().to_pylist())}
    picture = next(row["sha256"] for row in rows_before if row["url"] == url)
    same = [row["key"] for row in rows_before if row["sha256"] == picture]
    assert len(same) == 4

    # Another spelling of the url, and one that is nowhere.
    named = listed(root, f"  {url.upper().replace('/PHOTO/3.JPG', '/photo/3.jpg')}#top", "http://nowhere.example/x")
    plan = plan_takedown([emb, shards], TakedownConfig(urls=named))
    assert [(it.holds, it.rows) for it in plan.outputs] == [("image shards", 4), ("embedding data set", 4)]
    assert images_of(shards) == before
    report = takedown([emb, shards], TakedownConfig(urls=named))
    assert (report.rows, report.not_found) == (8, ("http://nowhere.example/x",))
    assert report.copies == 2  # the other url, in both
    assert report.files_searched > 20

    # Of the rows that went only uid and key are left; all others are as they were.
    rows = table_of(shards)
    for old, new in zip(rows_before, rows, strict=True):
        if old["key"] in same:
            left = {name: value for name, value in new.items() if value is not None}
            assert left.pop("error_class") == "taken_down"
            assert left.keys() == {"uid", "key", "status", "error_message", "attempts"}
        else:
            assert {**new, "offset": None} == {**old, "offset": None}
    assert images_of(shards) == {name: data for name, data in before.items() if name[:-4] not in same}
    kept = EmbeddingDataset(emb)
    found = {row["key"]: kept.image[i].tobytes() for i, row in enumerate(kept.to_arrow().to_pylist())}
    assert found == {key: value for key, value in kept_before.items() if key not in same}
    assert verify(shards, DEEP).whole
    assert verify(emb, DEEP).whole
    assert verify(emb, DEEP).leftovers == ()

    # Nothing of it in any byte, and none of its embeddings.
    raw = everything(root / "shards") + everything(root / "emb")
    assert url.encode() not in raw
    assert before[f"{same[0]}.jpg"] not in raw
    assert all(value not in raw for key, value in kept_before.items() if key in same)
    for hit in library.search(kept, kept.image[0], k=20):
        assert hit.key not in same
    with open(report.outputs[0].record + "/00001.json") as stream:
        assert json.load(stream)["finished"]


def test_nothing_brings_it_back(site, own, encode_config):
    root, shards, encoded = own
    emb = encoded()
    named = listed(root, site.url("/photo/3.jpg"))
    takedown([shards, emb], TakedownConfig(urls=named))
    report = encode(shards, emb, encode_config(stage={"text_tokens": True}))
    assert report.report.tasks == 0
    assert verify(emb, DEEP).whole
    # Shards that are fetched or encoded again do without it, and so do new rows with its bytes or its url.
    for number in range(3):
        manifest.retract(shards, number, 5)
        manifest.retract(emb, number, 5)
    (root / "more").mkdir()
    shutil.move(root / "urls.csv", root / "more" / "urls.csv")
    more = [
        f"{site.url('/photo/3.jpg')}#x,new",
        f"{site.url('/photo/3.jpg?again')},newer",
        f"{site.url('/photo/1.jpg')},y",
    ]
    (root / "more" / "zz.csv").write_text("\n".join(["url,caption", *more]) + "\n")
    again = fetch(str(root / "more"), shards, config(retry_failed=True))
    assert again.failed == {"http_404": 1, "taken_down": 6}
    assert again.succeeded == 16 - 5 + 1 - 1
    assert verify(shards, DEEP).whole
    assert b"/photo/3.jpg" not in everything(root / "shards")
    for row in table_of(shards):
        if row["error_class"] == "taken_down":
            left = {name for name, value in row.items() if value is not None}
            assert left == {"uid", "key", "status", "error_class", "error_message", "attempts"}


def test_a_shard_of_plain_tars_that_is_encoded_again_does_without(encoded, encoded_once, encode_config, tmp_path):
    """The input is the user's own: what went is dropped when its shard is made again."""
    emb = str(encoded)
    key = EmbeddingDataset(emb).keys()[8]
    named = listed(tmp_path, key)
    takedown([emb], TakedownConfig(keys=named))
    once = manifest.read_manifest(emb, 1, 5)
    assert (once.rows_in, once.rows_out, once.rows_dropped) == (7, 6, 1)
    assert verify(emb, DEEP).whole
    manifest.retract(emb, 1, 5)
    encode(encoded_once[0], emb, encode_config())
    again = manifest.read_manifest(emb, 1, 5)
    assert (again.rows_in, again.rows_out, again.rows_dropped, again.files) == (7, 6, 1, once.files)
    assert verify(emb, DEEP).whole


def test_a_merged_data_set_loses_rows_and_takes_none_of_them_over_again(tmp_path):
    rng = np.random.default_rng(0)
    parts = []
    for part in range(2):
        names, keys = [f"{part}-0.tar", f"{part}-1.tar"], [f"{part}-{i}" for i in range(6)]
        parts.append(write_dataset(tmp_path / f"emb-{part}", *rng.normal(size=(2, 6, 4)), names=names, key=keys))
    merged = str(tmp_path / "merged")
    library.merge(parts, merged)
    named = TakedownConfig(keys=listed(tmp_path, "1-4"))
    assert takedown([merged], named).rows == 1
    assert verify(merged, DEEP).whole
    manifest.retract(merged, 3, 5)
    with pytest.raises(DatasetError, match="has rows that were taken out"):
        library.merge(parts, merged)
    takedown([parts[1]], named)
    assert library.merge(parts, merged).rows == 11
    assert verify(merged, DEEP).whole


@pytest.mark.parametrize("format", ["npy", "parquet"])
def test_keys_and_both_formats(own, format):
    root, shards, encoded = own
    emb = encoded(format=format)
    keys = [row["key"] for row in table_of(shards) if row["status"] == "success"]
    pq.write_table(pa.table({"src_shard": ["00000.tar"], "key": [keys[1]]}), root / "gone.parquet")
    report = takedown([shards, emb], TakedownConfig(keys=str(root / "gone.parquet")))
    assert (report.rows, report.copies, report.not_found) == (2, 0, ())
    assert keys[1] not in list(EmbeddingDataset(emb).keys())
    assert verify(shards, DEEP).whole
    assert verify(emb, DEEP).whole
    # Images and embeddings still belong together, sample by sample.
    library.export_images(emb, None, str(root / "images"))
    assert len(images_of(root / "images")) == len(EmbeddingDataset(emb))
    # Again: nothing is left to do, and nothing is reported as missing.
    assert takedown([shards, emb], TakedownConfig(keys=str(root / "gone.parquet"))).rows == 0


def test_embeddings_follow_shards_that_were_taken_down_alone(site, own, encode_config):
    root, shards, encoded = own
    emb = encoded()
    named = listed(root, site.url("/photo/3.jpg"))
    takedown([shards], TakedownConfig(urls=named))
    assert takedown([emb], TakedownConfig(urls=named)).rows == 4
    assert verify(emb, DEEP).whole
    assert encode(shards, emb, encode_config(stage={"text_tokens": True})).report.tasks == 0
    library.export_images(emb, None, str(root / "images"))


def test_all_rows_of_a_data_set_may_go(own):
    root, shards, encoded = own
    emb = encoded()
    named = listed(root, *{row["url"] for row in table_of(shards)})
    takedown([shards, emb], TakedownConfig(urls=named))
    assert images_of(shards) == {}
    assert verify(shards, DEEP).whole
    assert verify(emb, DEEP).whole
    assert not list((root / "emb" / "index").glob("*.faiss"))
    assert not list((root / "emb").rglob("*.npy"))


@pytest.mark.slow  # three fetches
def test_rows_of_retries_go_with_their_lists(site, tmp_path):
    (tmp_path / "urls.csv").write_text(
        f"url,caption\n{site.url('/flaky/4/take/1.jpg')},a\n{site.url('/photo/1.jpg')},b\n"
    )
    shards = str(tmp_path / "shards")
    fetch(str(tmp_path / "urls.csv"), shards, config(retries=0))
    fetch(str(tmp_path / "urls.csv"), shards, config(retries=0, retry_failed=True))
    named = listed(tmp_path, site.url("/flaky/4/take/1.jpg"))
    report = takedown([shards], TakedownConfig(urls=named))
    assert report.rows == 2  # the row, and its retry
    assert b"flaky" not in everything(tmp_path / "shards")
    assert verify(shards, DEEP).whole
    again = fetch(str(tmp_path / "urls.csv"), shards, config(retries=0, retry_failed=True))
    assert (again.rows, again.succeeded, again.failed) == (2, 1, {"taken_down": 1})


def test_lists_of_a_selection_lose_it_as_well(own):
    root, shards, encoded = own
    emb = encoded()
    library.dedup(emb, str(root / "dedup"), library.DedupConfig(confirm="none"))
    key = pq.read_table(root / "dedup" / "kept.parquet")["key"][0].as_py()
    named = listed(root, key)
    report = takedown([shards, emb, str(root / "dedup")], TakedownConfig(keys=named))
    assert report.outputs[-1].holds == "selection"
    assert report.outputs[-1].rows >= 1
    for name in ("kept.parquet", "dropped.parquet"):
        assert key not in pq.read_table(root / "dedup" / name)["key"].to_pylist()
    assert not (root / "dedup" / "pairs.html").exists()


def test_a_leftover_that_holds_it_is_found(site, own):
    root, shards, _ = own
    shutil.copy(root / "shards" / "00000.tar", root / "shards" / "00000.tar.tmp-1-dead")
    with pytest.raises(DatasetError, match=r"tmp-1-dead: the image .* is still in it"):
        takedown([shards], TakedownConfig(urls=listed(root, site.url("/photo/3.jpg"))))
    (root / "shards" / "00000.tar.tmp-1-dead").unlink()
    report = takedown([shards], TakedownConfig(urls=listed(root, site.url("/photo/3.jpg"))))
    assert (report.not_found, report.files_searched > 0) == ((), True)


def test_a_url_that_begins_or_ends_another_is_told_apart(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a/1.jpg", "a/11.jpg", "a/1.jpg.jpg", "b/a/1.jpg", "photo-number-1.jpg", "photo-number-1.jpg.png"):
        place = tmp_path / "photos" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(bodies.photo(len(name) + len(place.parts)))
        place.with_suffix(".json").write_text(json.dumps({"beside": "photo-number-1.jpg"}))
    fetch(str(tmp_path / "photos"), str(tmp_path / "shards"), FetchConfig(processes=1))
    report = takedown(
        [str(tmp_path / "shards")], TakedownConfig(urls=listed(tmp_path, "a/1.jpg", "photo-number-1.jpg"))
    )
    assert (report.rows, report.not_found) == (2, ())
    assert len(images_of(tmp_path / "shards")) == 4


@pytest.mark.parametrize(("chunk", "found"), [(64, True), (7, True), (1 << 20, True)])
def test_a_url_is_found_in_any_file_across_its_chunks(tmp_path, monkeypatch, chunk, found):
    monkeypatch.setattr(search, "_CHUNK", chunk)
    needles = search.Needles(texts={b"http://e.org/a.jpg"})
    (tmp_path / "notes.log").write_bytes(b"x" * 57 + b' "http://e.org/a.jpg"' + b"y" * 100)
    (tmp_path / "other.log").write_bytes(b"http://e.org/a.jpg2 xhttp://e.org/a.jpg http://e.org/a.jpg?q" + b"y" * 100)
    assert bool(search._in_bytes(str(tmp_path / "notes.log"), needles)) is found
    assert not search._in_bytes(str(tmp_path / "other.log"), needles)


def test_what_is_refused(own, tmp_path):
    root, shards, _ = own
    with pytest.raises(OptionError, match="`urls` or by `keys`"):
        TakedownConfig()
    named = listed(root, "http://x/y")
    with pytest.raises(InputError, match="neither image shards"):
        takedown([str(root)], TakedownConfig(urls=named))
    with pytest.raises(EmptyInput, match="names nothing"):
        takedown([shards], TakedownConfig(urls=listed(root, "", name="empty.txt")))
    with exclusive(shards), pytest.raises(OutputBusy):
        takedown([shards], TakedownConfig(urls=named))
    assert takedown([shards], TakedownConfig(urls=named)).not_found == ("http://x/y",)
    assert not (root / "shards" / "takedowns").exists()


def test_the_command(embedpipe, site, own):
    root, shards, _ = own
    named = listed(root, site.url("/photo/3.jpg"), "http://nowhere.example/")
    planned = embedpipe("takedown", shards, "--urls", named, "--dry-run")
    assert json.loads(planned.stdout)["rows"] == 4
    done = embedpipe("takedown", shards, "--urls", named)
    assert done.exit_code == 0
    assert "4 rows taken out in 2 shards" in done.stdout
    assert "nothing of them is left in" in done.stdout
    assert "http://nowhere.example/" in done.stderr
    assert "--urls or by --keys" in embedpipe("takedown", shards).stderr


def killed_at(operation, job):
    """Run `job` in a process that is killed before its `operation`th rename or removal; whether it came so far."""
    child = os.fork()
    if not child:
        done = 0

        def counted(method):
            def call(*arguments):
                nonlocal done
                done += 1
                if done > operation:
                    os.kill(os.getpid(), signal.SIGKILL)
                return method(*arguments)

            return call

        Path.replace, files.remove = counted(Path.replace), counted(files.remove)
        try:
            job()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def data_files(folder):
    """What readers read, by path: of image shards and embeddings."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name.endswith((".tar", ".npy", ".parquet"))}


@pytest.mark.parametrize(
    "operations", [range(6, 60, 17), pytest.param(range(200), marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_killed_anywhere_it_goes_on_and_readers_see_old_or_new(site, made, tmp_path, encode_config, operations):
    encode(str(made / "shards"), str(tmp_path / "emb"), encode_config())
    outputs = ("shards", "emb")
    shutil.copytree(made / "shards", tmp_path / "shards")
    run = manifest.read_run(str(tmp_path / "emb"))
    named = TakedownConfig(urls=listed(tmp_path, site.url("/photo/3.jpg")))

    def fresh(name):
        place = tmp_path / name
        for output in outputs:
            shutil.copytree(tmp_path / output, place / output)
        source = str(place / "shards")
        manifest.write_run(str(place / "emb"), dataclasses.replace(run, source=source))
        return place, [source, str(place / "emb")]

    whole, paths = fresh("undisturbed")
    takedown(paths, named)
    before, after = (set(EmbeddingDataset(str(place / "emb")).keys()) for place in (tmp_path, whole))
    wanted = {output: data_files(whole / output) for output in outputs}
    reached = 0
    for operation in operations:
        place, paths = fresh("killed")
        if not killed_at(operation, lambda paths=paths: takedown(paths, named)):
            break
        reached += 1
        shards_then = EmbeddingDataset(paths[1]).manifests
        keys = set(EmbeddingDataset(paths[1]).keys())
        assert keys <= before
        missing = set(range(3)) - {entry.number for entry in shards_then}
        assert len(missing) <= 1  # the one that is changing places
        assert missing or after <= keys
        assert not [fault for path in paths for fault in verify(path, DEEP).faults if "retry" not in fault.what]
        report = takedown(paths, named)
        assert report.not_found == ()
        for output in outputs:
            found = data_files(place / output)
            assert found.keys() == wanted[output].keys()
            assert {name for name in found if found[name] != wanted[output][name]} <= {"takedowns/00001.parquet"}
            assert verify(str(place / output), DEEP).whole
            assert not (place / output / ".takedown").exists()
        shutil.rmtree(place)
    assert reached >= 3
