"""Run cards and manifests: what is written is read back, damage is named, differences are told."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpipe import files, manifest
from embedpipe.clip_model.encoder_card import EncoderCard, PreprocessSpec
from embedpipe.errors import DatasetError, InputError, RunMismatch
from embedpipe.manifest import EMBEDDINGS, IMAGE_SHARDS, FileRecord, RunCard, ShardManifest
from embedpipe.types import SourceShard

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
count = st.integers(0, 2**40)
shard = st.builds(SourceShard, text, count, text, st.lists(text, max_size=3).map(tuple))
spec = st.builds(
    PreprocessSpec,
    st.tuples(st.integers(1, 999), st.integers(1, 999)),
    *(st.tuples(*[st.floats(0, 1)] * 3),) * 2,
    st.sampled_from(["bicubic", "bilinear"]),
    st.sampled_from(["shortest", "longest", "squash"]),
    st.integers(0, 255),
)
card = st.builds(EncoderCard, text, text, text, count, text, st.booleans(), text, text, spec, text, count)
options = st.dictionaries(text, st.none() | st.booleans() | count | text | st.lists(count, max_size=2), max_size=4)
run = st.builds(
    RunCard,
    format=st.sampled_from([EMBEDDINGS, IMAGE_SHARDS]),
    options=options,
    plan=st.lists(shard, max_size=3).map(tuple),
    columns=st.dictionaries(text, text, max_size=3),
    source=text,
    encoder=st.none() | card,
    versions=st.dictionaries(text, text, max_size=2),
)
entry = st.builds(
    ShardManifest,
    number=st.integers(0, 10**7),
    source=shard,
    source_sha256=text,
    rows_in=count,
    rows_out=count,
    rows_rejected=count,
    rejects=st.dictionaries(text, count, max_size=3),
    files=st.lists(st.builds(FileRecord, text, count, text), max_size=3).map(tuple),
    dim=st.none() | count,
    dtype=st.none() | text,
    fingerprint=text,
    timing_s=st.dictionaries(text, st.floats(0, 1e9), max_size=2),
)


@given(run)
def test_a_run_card_is_read_back_as_it_was(value):
    manifest.write_run("memory://runs/a", value)
    assert manifest.read_run("memory://runs/a") == value


@given(entry)
def test_a_manifest_is_read_back_as_it_was(value):
    manifest.commit("memory://runs/b", value, 5)
    try:
        assert manifest.read_manifest("memory://runs/b", value.number, 5) == value
        assert manifest.committed_numbers("memory://runs/b") == [value.number]
    finally:
        manifest.retract("memory://runs/b", value.number, 5)
    assert manifest.committed_numbers("memory://runs/b") == []


def _entry(number=3):
    return ShardManifest(number, SourceShard("a.tar", 1, "m"), "s", 2, 1, 1, {"image_empty": 1}, ())


def test_manifests_are_listed_by_number_and_strangers_are_passed_over(tmp_path):
    for number in (10, 2, 0):
        manifest.commit(str(tmp_path), _entry(number), 5)
    for stranger in ("00002.json.bak", "x.json", "².json", "00007.json.tmp-1-2", "-1.json"):
        (tmp_path / "manifest" / stranger).write_bytes(b"")
    assert manifest.committed_numbers(str(tmp_path)) == [0, 2, 10]
    (tmp_path / "manifest" / "2.json").write_bytes(b"")
    assert manifest.committed_numbers(str(tmp_path)) == [0, 2, 10]
    assert [found.number for found in manifest.read_manifests(str(tmp_path), 5)] == [0, 2, 10]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"\xff" + data,
        lambda data: b"[]",
        lambda data: b"null",
        lambda data: data.replace(b'"rows_in": 2', b'"rows_in": "two"'),
        lambda data: data.replace(b'"rows_in": 2,', b""),
        lambda data: data.replace(b'"number": 3', b'"number": 4'),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, damage):
    manifest.commit(str(tmp_path), _entry(), 5)
    place = tmp_path / "manifest" / "00003.json"
    place.write_bytes(damage(place.read_bytes()))
    with pytest.raises(DatasetError, match=r"manifest/00003\.json"):
        manifest.read_manifest(str(tmp_path), 3, 5)


def test_a_newer_format_asks_for_a_newer_embedpipe(tmp_path):
    manifest.commit(str(tmp_path), dataclasses.replace(_entry(), format_version=99), 5)
    with pytest.raises(DatasetError, match=r"00003\.json: format version 99.*Upgrade"):
        manifest.read_manifest(str(tmp_path), 3, 5)


def test_the_run_card_of_something_else_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        manifest.require_run(str(tmp_path / "no"), EMBEDDINGS)
    with pytest.raises(DatasetError, match=r"no embedpipe\.json.*embedpipe encode"):
        manifest.require_run(str(tmp_path), EMBEDDINGS)
    manifest.write_run(str(tmp_path), RunCard(IMAGE_SHARDS, {}, ()))
    with pytest.raises(DatasetError, match="holds embedpipe/image-shards"):
        manifest.require_run(str(tmp_path), EMBEDDINGS)
    files.write_bytes(str(tmp_path / "embedpipe.json"), json.dumps({"format": EMBEDDINGS}).encode())
    with pytest.raises(DatasetError, match=r"embedpipe\.json: damaged: options"):
        manifest.require_run(str(tmp_path), EMBEDDINGS)


def test_a_difference_names_each_entry_with_both_values():
    old = {"a": 1, "deep": {"x": (1, 2), "y": "same"}, "long": "p" * 60, "gone": True}
    new = {"a": 2, "deep": {"x": [1, 2], "y": "same"}, "long": "q" * 60, "fresh": None}
    with pytest.raises(RunMismatch) as caught:
        manifest.refuse_difference("out", old, new, "set of options")
    said = str(caught.value)
    assert said.startswith("out: was made with another set of options: ")
    assert "a was 1, now 2" in said
    assert "gone was true, now not set" in said
    assert "deep" not in said
    assert "pppp…pppp" in said
    manifest.refuse_difference("out", old, dict(old), "set of options")


@given(options, options)
def test_only_what_differs_is_refused(old, new):
    same = {k: v for k, v in old.items() if v is not None} == {k: v for k, v in new.items() if v is not None}
    if same:
        manifest.refuse_difference("out", old, new, "x")
    else:
        with pytest.raises(RunMismatch):
            manifest.refuse_difference("out", old, new, "x")


def test_nothing_is_said_in_words():
    said = [text for _, *texts in manifest.run_differences({"a": [], "b": None}, {"a": [1], "b": {}}) for text in texts]
    assert said == ["not set", "[1]", "not set", "not set"]
