"""merge: every row of every data set is there once, beside what it was beside before; what does not fit is refused."""

import contextlib
import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from embedpipe import files, manifest
from embedpipe.encode.job import encode
from embedpipe.errors import DatasetError, DiskFull, InputError, OutputBusy, RunMismatch
from embedpipe.load import EmbeddingDataset
from embedpipe.load.images.source import source_images
from embedpipe.lock import exclusive
from embedpipe.merge import MergeConfig, merge, plan_merge
from embedpipe.verify import VerifyConfig, verify
from tests import shards
from tests.embeddings import write_dataset

DIM = 8


def make(folder, rows, first=0, seed=0, tokens=True, **options):
    """A data set of `rows` rows in two shards, the first of which ends with a reject."""
    rng = np.random.default_rng(seed)
    image, text = rng.normal(size=(rows, DIM)), rng.normal(size=(rows, DIM))
    states = [rng.normal(size=(1 + row % 3, 4)) for row in range(rows)] if tokens else None
    names = [f"{i:05d}.tar" for i in range(first, first + 2)]
    return write_dataset(folder, image, text, tokens=states, rejects=(0,), names=names, **options)


def told(path, prefix=""):
    """What a data set says of each row, by (source shard, key)."""
    data = EmbeddingDataset(path)
    rows = {}
    for i, row in enumerate(data.rows(range(len(data)))):
        identity = (prefix + row.pop("src_shard"), row["key"])
        assert identity not in rows
        states = data.text_tokens[i].tobytes() if data.text_tokens is not None else b""
        rows[identity] = (data.image[i].tobytes(), data.text[i].tobytes(), states, row)
    return rows


@pytest.fixture(params=["npy", "parquet"])
def pair(request, tmp_path):
    """Two data sets whose input shards have names of their own."""
    a = make(tmp_path / "a", 10, format=request.param)
    b = make(tmp_path / "b", 6, first=2, seed=1, format=request.param)
    return a, b


def test_all_rows_are_there_beside_what_they_were_beside(pair, tmp_path):
    out = str(tmp_path / "out")
    report = merge(pair, out)
    assert (report.planned, report.already, report.rows, report.rejected) == (4, 0, 16, 2)
    assert set(report.prefixes.values()) == {""}
    assert told(out) == {**told(pair[0]), **told(pair[1])}
    assert verify(out, shards.DEEP).whole
    assert [entry.source.name for entry in manifest.read_manifests(out, 5)] == [f"{i:05d}.tar" for i in range(4)]
    of = {"a": pair[0], "b": pair[1]}
    for number, (name, old) in enumerate(itertools.product("ab", (0, 1))):
        for record in manifest.read_manifest(of[name], old, 5).files:
            renamed = record.path.replace(f"{old:05d}", f"{number:05d}")
            assert (tmp_path / "out" / renamed).read_bytes() == (Path(of[name]) / record.path).read_bytes()


def test_names_that_are_there_twice_get_as_much_of_the_path_as_tells_them_apart(tmp_path):
    paths = [make(tmp_path / "x" / "emb", 6), make(tmp_path / "y" / "emb", 8, seed=1)]
    out = str(tmp_path / "out")
    assert merge(paths, out).prefixes == {paths[0]: "x/emb/", paths[1]: "y/emb/"}
    assert told(out) == {**told(paths[0], "x/emb/"), **told(paths[1], "y/emb/")}
    assert verify(out, shards.DEEP).whole
    assert {row["src_shard"] for row in EmbeddingDataset(out).rows([0, 13])} == {"x/emb/00000.tar", "y/emb/00001.tar"}
    with pytest.raises(InputError, match="given twice"):
        merge([paths[0], f"{paths[0]}/"], out)


def test_columns_become_what_one_encode_would_have_made_of_them(tmp_path):
    a = make(
        tmp_path / "a",
        4,
        columns={
            "n": ("int64", [1, 2, 2**53 + 1, None]),
            "kept": list("wxyz"),
            "flag": ("bool", [True, None, False, True]),
            "only_a": ("double", [0.5, 1.5, None, 2.5]),
            "extra": [None, json.dumps({"late": "yes", "other": 1}), None, None],
        },
    )
    b = make(
        tmp_path / "b",
        2,
        first=2,
        columns={"late": list("pq"), "flag": ["no", "maybe"], "n": ("double", [0.25, 3.0]), "kept": ["u", "v"]},
    )
    for path in (a, b):  # the builder takes `extra` for a passed-through column
        shards.edit(Path(path) / "embedpipe.json", lambda run: run["columns"].pop("extra", None))
    out = str(tmp_path / "out")
    said = merge([a, b], out).columns
    assert said == {
        "n": f"double; int64 in {a}",
        "flag": f"string; bool in {a}",
        "only_a": f"absent in {b}",
        "late": f"absent in {a}",
    }
    data = EmbeddingDataset(out)
    assert data.run.columns == {"n": "double", "kept": "string", "flag": "string", "only_a": "double", "late": "string"}
    assert data.column("n").to_pylist() == [1.0, 2.0, None, None, 0.25, 3.0]
    assert data.column("flag").to_pylist() == ["true", None, "false", "true", "no", "maybe"]
    assert data.column("only_a").to_pylist() == [0.5, 1.5, None, 2.5, None, None]
    assert data.column("late").to_pylist() == [None, "yes", None, None, "p", "q"]
    assert data.column("kept").to_pylist() == list("wxyzuv")
    assert [json.loads(x) if x else None for x in data.column("extra").to_pylist()] == [
        None,
        {"other": 1},
        {"n": 2**53 + 1},
        None,
        None,
        None,
    ]
    assert verify(out, shards.DEEP).whole


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": "1" * 64}, 'another encoder than .*/a: weights_sha256 is "1111.*, not "0000'),
        ({"format": "parquet"}, 'another set of options than .*/a: format is "parquet", not "npy"'),
        ({"tokens": False}, "text_tokens is false, not true; token_width is not set, not 4"),
    ],
)
def test_what_does_not_belong_together_is_refused_with_what_differs(options, said, tmp_path):
    paths = [make(tmp_path / "a", 4), make(tmp_path / "b", 4, first=2, **options)]
    with pytest.raises(RunMismatch, match=said):
        merge(paths, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_merged_says_so(pair, tmp_path):
    from embedpipe.manifest import IMAGE_SHARDS, RunCard

    manifest.write_run(str(tmp_path / "images"), RunCard(IMAGE_SHARDS, {}, ()))
    for paths, out, problem, said in (
        ([pair[0], str(tmp_path / "images")], "out", InputError, "holds image shards, not embeddings"),
        ([pair[0], str(tmp_path / "no")], "out", InputError, "no such folder"),
        (pair, "a", InputError, "is one of the data sets to merge"),
        (pair, "images", RunMismatch, "holds something that merge did not make"),
        (pair[:1], "out", InputError, "two data sets or more"),
    ):
        with pytest.raises(problem, match=said):
            merge(paths, str(tmp_path / out))
    (Path(pair[1]) / "manifest" / "00001.json").unlink()
    with pytest.raises(DatasetError, match="/b: is not whole. Run `embedpipe verify`"):
        merge(pair, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with exclusive(str(tmp_path / "held")), pytest.raises(OutputBusy):
        merge(
            [pair[0], make(tmp_path / "c", 4, first=2, format=json.loads(_card(pair[0]))["options"]["format"])],
            str(tmp_path / "held"),
        )


def _card(path):
    return (Path(path) / "embedpipe.json").read_text()


@pytest.mark.parametrize("collide", [False, True])
def test_a_damaged_shard_is_never_taken_over(collide, tmp_path):
    paths = [make(tmp_path / "a", 4), make(tmp_path / "b", 4, first=0 if collide else 2)]
    victim = tmp_path / "b" / "img_emb" / "img_emb_00001.npy"
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    out = tmp_path / "out"
    with pytest.raises(DatasetError, match=r"b/img_emb/img_emb_00001\.npy: the checksum does not match.*repair=True"):
        merge(paths, str(out))
    assert [entry.number for entry in manifest.read_manifests(str(out), 5)] == [0, 1, 2]
    assert not (out / "img_emb" / "img_emb_00003.npy").exists()
    assert verify(str(out), shards.DEEP).whole
    victim.write_bytes(whole)
    assert merge(paths, str(out)).report.tasks == 1
    assert verify(str(out), shards.DEEP).whole


def test_a_data_set_that_grows_and_one_that_comes_later_are_appended(tmp_path):
    paths = [make(tmp_path / "a", 6), make(tmp_path / "b", 4, first=2, seed=1)]
    shards.forget(paths[0], 1)
    out = str(tmp_path / "out")
    report = merge(paths, out)
    assert (report.planned, report.unfinished) == (3, (paths[0],))
    before = shards.tree(out, ["embedpipe.json"])
    whole = make(tmp_path / "again", 6)
    shutil.copy(Path(whole) / "manifest" / "00001.json", tmp_path / "a" / "manifest" / "00001.json")
    later = make(tmp_path / "c", 2, first=4, seed=2)
    report = merge([later, *paths], out)
    assert (report.planned, report.already, report.report.tasks, report.unfinished) == (6, 3, 3, ())
    assert {name: data for name, data in shards.tree(out).items() if name in before} == before
    assert told(out) == {**told(paths[0]), **told(paths[1]), **told(later)}
    assert verify(out, shards.DEEP).whole
    assert merge([*paths, later], out).report.tasks == 0
    with pytest.raises(RunMismatch, match="was merged of .*/c, too.*Give it as well"):
        merge(paths, out)
    twin = make(tmp_path / "d", 2, first=0)
    with pytest.raises(RunMismatch, match="shards of .*/a are called as they were there.*would be called a/"):
        merge([*paths, later, twin], out)


def test_a_shard_that_changed_since_is_refused(pair, tmp_path):
    out = str(tmp_path / "out")
    merge(pair, out)
    shards.edit(Path(pair[1]) / "manifest" / "00000.json", source_sha256="other")
    with pytest.raises(RunMismatch, match="00002.tar changed in .*/b since it was merged"):
        merge(pair, out)


def test_encode_does_not_go_on_with_it_and_repair_and_merge_do(encoded_once, encode_config, tmp_path):
    source, first = encoded_once
    shards.write_tar(tmp_path / "more" / "extra.tar", shards.samples(4, first=90))
    second = str(tmp_path / "second")
    encode(str(tmp_path / "more"), second, encode_config())
    out = tmp_path / "out"
    merge([first, second], str(out), MergeConfig(workers=2))
    expected = shards.tree(out)
    with pytest.raises(RunMismatch, match="was put together by `embedpipe merge`. Encode into one of .*/emb, .*second"):
        encode(source, str(out), encode_config())
    (out / "metadata" / "metadata_00003.parquet").write_bytes(b"")
    (out / "manifest" / "00000.json").write_bytes(b"{")
    assert verify(str(out), VerifyConfig(repair=True)).dropped == (0, 3)
    assert merge([first, second], str(out)).report.tasks == 2
    assert shards.tree(out) == expected
    data = EmbeddingDataset(str(out))
    wanted = [(row["src_shard"], row["key"]) for row in data.rows([0, 20, 24])]
    assert wanted[-1] == ("extra.tar", "00093")
    pictures = source_images(data, wanted)
    assert [pictures[each] for each in wanted] == [shards.jpeg(0), shards.jpeg(20), shards.jpeg(93)]


def test_pictures_are_found_through_prefixes_and_merges_of_merges(encode_config, tmp_path):
    paths = []
    for i, name in enumerate(("x", "y", "z")):
        shards.write_tar(tmp_path / name / "in" / "0.tar", shards.samples(3, first=10 * i))
        encode(str(tmp_path / name / "in"), str(tmp_path / name / "emb"), encode_config())
        paths.append(str(tmp_path / name / "emb"))
    merge(paths[:2], str(tmp_path / "two"))
    merge([str(tmp_path / "two"), paths[2]], str(tmp_path / "three"))
    data = EmbeddingDataset(str(tmp_path / "three"))
    wanted = [(row["src_shard"], row["key"]) for row in data.rows([0, 3, 6])]
    assert wanted == [("x/emb/0.tar", "00000"), ("y/emb/0.tar", "00010"), ("0.tar", "00020")]
    assert source_images(data, wanted) == {each: shards.jpeg(i) for each, i in zip(wanted, (0, 10, 20), strict=True)}
    assert verify(data.path, shards.DEEP).whole


def test_a_run_that_ends_anywhere_goes_on_to_the_same_bytes(pair, tmp_path, monkeypatch):
    expected_at, out = str(tmp_path / "expected"), str(tmp_path / "out")
    merge(pair, expected_at)
    writing, rng = files._writing_beside, random.Random(0)

    def fails_after(count):
        left = iter(range(count))

        def write(path):
            if next(left, None) is None:
                raise OSError(28, "No space left on device")
            return writing(path)

        return write

    for _ in range(12):
        monkeypatch.setattr(files, "_writing_beside", fails_after(rng.randrange(9)))
        with contextlib.suppress(DiskFull):
            merge(pair, out)
        monkeypatch.setattr(files, "_writing_beside", writing)
        if (tmp_path / "out" / "embedpipe.json").exists():
            assert verify(out, shards.DEEP).whole
    merge(pair, out)
    assert shards.tree(out) == shards.tree(expected_at)


def killed_merge(paths, out, left):
    """Merge in a fork of this process, which is killed in the midst of the file after so many; its exit code."""
    writing = files._writing_beside

    def dies(path):
        nonlocal left
        left -= 1
        if left < 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(path.name + ".tmp-1-2").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return writing(path)

    pid = os.fork()
    if pid == 0:
        try:
            files._writing_beside = dies
            merge(paths, out)
            os._exit(0)
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_run_killed_at_any_file_goes_on_to_the_same_bytes(pair, tmp_path):
    expected = str(tmp_path / "expected")
    merge(pair, expected)
    codes = []
    for written in range(0, 30, 3):
        out = str(tmp_path / "out")
        codes.append(killed_merge(pair, out, written))
        if (tmp_path / "out" / "embedpipe.json").exists():
            assert verify(out, shards.DEEP).whole
        merge(pair, out)
        assert shards.tree(out) == shards.tree(expected)
        shutil.rmtree(out)
    assert set(codes) <= {0, -signal.SIGKILL}
    assert codes.count(-signal.SIGKILL) > 2


def test_the_plan_says_what_would_be_done_and_does_nothing(pair, tmp_path):
    plan = plan_merge(pair, str(tmp_path / "out"))
    assert [task.name for task in plan.tasks] == [f"{i:05d}.tar" for i in range(4)]
    assert not (tmp_path / "out").exists()


def test_empty_and_rejected_shards_are_taken_over(tmp_path, encode_config):
    for name in ("a", "b"):
        shards.write_tar(tmp_path / name / f"{name}0.tar", shards.samples(2))
        shards.write_tar(tmp_path / name / f"{name}1.tar", [("x.jpg", b"bad"), ("x.txt", b"c")])
        encode(str(tmp_path / name), str(tmp_path / f"emb-{name}"), encode_config(stage={"text_tokens": True}))
    paths = [str(tmp_path / f"emb-{name}") for name in ("a", "b")]
    for place in (paths, [str(tmp_path / "emb-a"), str(shutil.copytree(paths[0], tmp_path / "twin"))]):
        out = str(tmp_path / f"out{len(place[1])}")
        report = merge(place, out)
        assert (report.rows, report.rejected, report.planned) == (4, 2, 4)
        assert verify(out, shards.DEEP).whole
        errors = EmbeddingDataset(out).manifests[3]
        assert dataclasses.asdict(errors)["rejects"] == {"image_undecodable": 1}
