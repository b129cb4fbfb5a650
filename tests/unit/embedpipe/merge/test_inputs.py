"""Which data sets go together, and what their shards, options and columns are called in the merged one."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from embedpipe import manifest
from embedpipe.errors import DatasetError, InputError, RunMismatch
from embedpipe.manifest import IMAGE_SHARDS, MergedPart, RunCard
from embedpipe.merge import inputs
from embedpipe.merge.inputs import changed_columns, merged_options, open_inputs, unified_columns
from tests import shards
from tests.embeddings import write_dataset


def make(folder, first=0, seed=0, **options):
    rng = np.random.default_rng(seed)
    names = [f"{i:05d}.tar" for i in range(first, first + 2)]
    return write_dataset(folder, rng.normal(size=(4, 3)), rng.normal(size=(4, 3)), names=names, **options)


def states(width=2):
    return [np.ones((1 + row % 2, width)) for row in range(4)]


def named(path, *names):
    """What `_prefixes` looks at of a data set."""
    return SimpleNamespace(path=path, run=SimpleNamespace(plan=[SimpleNamespace(name=name) for name in names]))


def test_shards_keep_names_of_their_own(tmp_path):
    paths = [make(tmp_path / name, 2 * i) for i, name in enumerate("abc")]
    opened = open_inputs([paths[0], paths[1] + "/", paths[2]])
    assert [part.path for part in opened] == paths
    assert [part.prefix for part in opened] == ["", "", ""]
    assert [source.name for part in opened for source, _ in part.shards()] == [f"{i:05d}.tar" for i in range(6)]
    for part in opened:
        for source, entry in part.shards():
            assert source == entry.source
        assert part.record() == MergedPart(part.path, "", part.run.source, part.run.options, part.run.merged)


def test_names_that_clash_are_told_apart_by_folders(tmp_path):
    paths = [make(tmp_path / name) for name in "ab"]
    opened = open_inputs(paths)
    assert [part.prefix for part in opened] == ["a/", "b/"]
    assert [source.name for source, _ in opened[1].shards()] == ["b/00000.tar", "b/00001.tar"]
    assert [entry.source.name for _, entry in opened[1].shards()] == ["00000.tar", "00001.tar"]
    assert opened[1].record().prefix == "b/"


@pytest.mark.parametrize(
    ("paths", "prefixes"),
    [
        (("/x/a", "/x/b"), ["a/", "b/"]),
        (("/x/emb", "/y/emb"), ["x/emb/", "y/emb/"]),
        (("/emb", "/x/emb"), ["emb/", "x/emb/"]),
        (("s3://one/x/emb", "s3://two/x/emb"), ["one/x/emb/", "two/x/emb/"]),
        (("s3://one/emb", "/s3/two/emb"), ["one/emb/", "two/emb/"]),
    ],
)
def test_a_prefix_is_as_much_of_the_end_of_a_path_as_is_needed(paths, prefixes):
    assert inputs._prefixes([named(path, "0.tar") for path in paths]) == prefixes
    assert inputs._prefixes([named(path, f"{i}.tar") for i, path in enumerate(paths)]) == ["", ""]


def test_what_no_prefix_tells_apart_is_refused():
    with pytest.raises(InputError, match="the data sets' paths do not tell them apart. Give other paths"):
        inputs._prefixes([named("s3://x/emb", "0.tar"), named("/s3/x/emb", "0.tar")])


def test_names_of_one_data_set_that_clash_need_a_prefix_too():
    assert inputs._prefixes([named("/x/a", "0.tar", "0.tar"), named("/x/b", "1.tar")]) == ["a/", "b/"]


def test_a_data_set_given_twice_is_refused(tmp_path, monkeypatch):
    path = make(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    for twice in ([path, path], [path, "a/"], [make(tmp_path / "b", 2), "a", path]):
        with pytest.raises(InputError, match=rf"^{path}: given twice. Name each data set once"):
            open_inputs(twice)


@pytest.mark.parametrize("place", [1, 2])
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weights": "1" * 64}, "with another encoder than .*/a: weights_sha256 is "),
        ({"format": "parquet"}, 'with another set of options than .*/a: format is "parquet", not "npy"'),
        ({"tokens": states(3)}, "with another set of options than .*/a: token_width is 3, not 2"),
        ({"tokens": None}, "with another set of options than .*text_tokens is false, not true"),
    ],
)
def test_every_one_must_be_made_as_the_first(tmp_path, place, options, says):
    paths = [make(tmp_path / name, 2 * i, tokens=states()) for i, name in enumerate("ab")]
    other = make(tmp_path / "other", 6, **{"tokens": states(), **options})
    paths.insert(place, other)
    with pytest.raises(RunMismatch, match=rf"^{other}: was made {says}.*Only data sets of one encoder"):
        open_inputs(paths)


def test_options_without_tokens_say_nothing_of_them(tmp_path):
    (plain,) = open_inputs([make(tmp_path / "a")])
    (told,) = open_inputs([make(tmp_path / "b", tokens=states(), format="parquet")])
    assert merged_options(plain) == {"format": "npy", "images": True, "texts": True}
    assert merged_options(told) == {"format": "parquet", "images": True, "texts": True, "text_tokens": True}


def test_a_side_that_is_not_there_stays_away(tmp_path):
    path = make(tmp_path / "a")
    run = manifest.require_run(path, manifest.EMBEDDINGS)
    for options, images, texts in (({"images": False}, False, True), ({"texts": False}, True, False)):
        part = inputs.MergeInput(path, dataclasses.replace(run, options={**run.options, **options}), ())
        facts = merged_options(part)
        assert (facts["images"], facts["texts"]) == (images, texts)


def test_what_is_no_whole_data_set_is_refused(tmp_path):
    path = make(tmp_path / "a")
    shards.edit(tmp_path / "a" / "embedpipe.json", lambda run: run["plan"].reverse())
    with pytest.raises(DatasetError, match="a: shard 0 is not of this data set. Run `embedpipe verify` on it"):
        open_inputs([path])
    other = make(tmp_path / "b")
    shards.edit(tmp_path / "b" / "embedpipe.json", lambda run: run["encoder"].update(weights_sha256="2" * 64))
    with pytest.raises(DatasetError, match="b: shard 0 is not of this data set"):
        open_inputs([other])
    bare = make(tmp_path / "c")
    shards.edit(tmp_path / "c" / "embedpipe.json", lambda run: run.update(encoder=None))
    with pytest.raises(DatasetError, match="c: is not whole"):
        open_inputs([bare])


def test_image_shards_are_not_merged(tmp_path):
    run = manifest.require_run(make(tmp_path / "a"), manifest.EMBEDDINGS)
    manifest.write_run(str(tmp_path / "images"), dataclasses.replace(run, format=IMAGE_SHARDS))
    with pytest.raises(InputError, match="images: holds image shards, not embeddings"):
        open_inputs([str(tmp_path / "images")])


def test_columns_are_of_a_type_that_all_values_fit(tmp_path):
    def part(path, **columns):
        run = RunCard(manifest.EMBEDDINGS, {}, (), columns, "", None, pending=())
        return inputs.MergeInput(path, run, ())

    made = (part("/a", n="int64", kept="string", only="bool"), part("/b", kept="string", late="double", n="double"))
    columns = unified_columns(made)
    assert list(columns.items()) == [("n", "double"), ("kept", "string"), ("only", "bool"), ("late", "double")]
    assert changed_columns(made, columns) == {
        "n": "double; int64 in /a",
        "only": "absent in /b",
        "late": "absent in /a",
    }
