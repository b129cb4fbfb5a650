"""Token states from encoder to disk and back: what is refused, swept, found damaged, and told."""

import dataclasses
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

from embedpipe.encode import EncoderConfig, load_encoder
from embedpipe.encode.base import TextStates
from embedpipe.encode.batching import BatchingConfig
from embedpipe.encode.disk_space import _estimate as size_needed
from embedpipe.encode.job import encode
from embedpipe.errors import DatasetError, InputError, ModelError, RunMismatch
from embedpipe.execute import Task
from embedpipe.info import describe
from embedpipe.load import EmbeddingDataset
from embedpipe.manifest import read_manifests, read_run
from embedpipe.ragged import RaggedRows
from embedpipe.read import SampleRules, open_reader
from embedpipe.verify import verify
from tests import shards
from tests.unit.embedpipe.encode.test_encode import encode_alone

TOKENS = {"text_tokens": True}


@pytest.fixture(scope="module")
def once(tmp_path_factory, encode_config):
    """(shards, data set with token states), not to be written to."""
    root = tmp_path_factory.mktemp("tokens")
    source = shards.write_shards(root / "shards")
    encode(source, str(root / "emb"), encode_config(stage=TOKENS))
    return source, str(root / "emb")


@pytest.fixture
def mine(once, tmp_path):
    """A copy of the data set, of one's own."""
    return shutil.copytree(once[1], tmp_path / "emb")


def test_rows_are_the_encoders_and_all_files_say_the_same(once, tiny_encoder):
    dataset = EmbeddingDataset(once[1])
    expected = tiny_encoder.text_states([shards.caption(i) for i in range(21)])
    assert (len(dataset.text_tokens), dataset.text_tokens.width) == (21, 32)
    assert dataset.text_tokens.lengths().tolist() == expected.tokens.lengths.tolist()
    assert len(set(expected.tokens.lengths.tolist())) > 1
    for row in range(-21, 21):
        difference = dataset.text_tokens[row].astype(np.float32) - expected.tokens[row % 21]
        assert np.abs(difference).max() < 4e-3
    states = np.load(Path(once[1]) / "text_tokens" / "text_tokens_00001.npy")
    lengths = np.load(Path(once[1]) / "text_tokens" / "lengths_00001.npy")
    assert (states.dtype, lengths.dtype, len(lengths)) == (np.float16, np.int32, 7)
    assert len(states) == lengths.sum() == list(read_manifests(once[1], 5))[1].tokens
    assert np.array_equal(states[: lengths[0]], dataset.text_tokens[7])


@pytest.mark.parametrize("index", [slice(3, 17, 2), [20, 0, 8, 8, -1], slice(0, 0), np.arange(21) % 5 == 0])
def test_several_rows_come_padded_with_a_mask(once, index):
    column = EmbeddingDataset(once[1]).text_tokens
    padded, mask = column[index]
    rows = np.arange(21)[index].tolist()
    assert padded.shape == (len(rows), max((len(column[row]) for row in rows), default=0), 32)
    assert padded.dtype == np.float16
    assert mask.dtype == bool
    for place, row in enumerate(rows):
        assert np.array_equal(padded[place][mask[place]], column[row])
    assert not padded[~mask].any()


@pytest.mark.parametrize("index", [21, -22, [0, 21], [0.5], np.ones(3, bool)])
def test_rows_that_are_not_there_are_refused(once, index):
    with pytest.raises(IndexError):
        EmbeddingDataset(once[1]).text_tokens[index]


def test_a_data_set_without_them_has_none_and_says_how_to_get_them(encoded_once):
    dataset = EmbeddingDataset(encoded_once[1])
    assert dataset.text_tokens is None
    with pytest.raises(DatasetError, match="has no text tokens.*encode.text_tokens=True"):
        dataset.require_text_tokens()
    assert describe(encoded_once[1]).tokens is None


def test_embeddings_card_and_everything_else_are_as_without(once, encoded_once, encode_config, tmp_path):
    encode(once[0], str(tmp_path / "bare"), encode_config())
    bare, with_tokens = EmbeddingDataset(str(tmp_path / "bare")), EmbeddingDataset(once[1])
    assert np.array_equal(bare.text[:], with_tokens.text[:])
    assert np.array_equal(bare.image[:], with_tokens.image[:])
    assert bare.card == with_tokens.card
    assert not (tmp_path / "bare" / "text_tokens").exists()


def test_equal_captions_are_encoded_once(tmp_path, tiny_encoder):
    seen = []

    class Counting:
        card = tiny_encoder.card
        images = tiny_encoder.images
        prepare = tiny_encoder.prepare

        def text_states(self, captions):
            seen.extend(captions)
            return tiny_encoder.text_states(captions)

    reader = open_reader(shards.write_shards(tmp_path, shards=1, per_shard=40), SampleRules())
    _, made = encode_alone(reader, Counting(), BatchingConfig(batch_size=7, text_tokens=True))
    assert sorted(seen) == sorted({shards.caption(i) for i in range(40)})
    assert len(made.text_tokens) == 40
    assert len(made.text_tokens.values) < made.text_tokens.total, "equal captions share their states"


def test_states_that_are_not_finite_are_rejects(tmp_path, tiny_encoder):
    class Broken:
        card = tiny_encoder.card
        images = tiny_encoder.images
        prepare = tiny_encoder.prepare

        def text_states(self, captions):
            made = tiny_encoder.text_states(captions)
            tokens = RaggedRows.packed(made.tokens.flat(), made.tokens.lengths)
            tokens[captions.index(shards.caption(3))][-1, 5] = np.inf
            return TextStates(made.embeddings, tokens)

    reader = open_reader(shards.write_shards(tmp_path, shards=1, per_shard=6), SampleRules())
    _, made = encode_alone(reader, Broken(), BatchingConfig(text_tokens=True))
    assert made.metadata["key"] == ["00000", "00001", "00002", "00004", "00005"]
    assert [(r.key, r.error_class) for r in made.rejects] == [("00003", "embedding_nonfinite")]
    assert len(made.text_tokens) == 5
    assert made.text_tokens.finite().all()


def test_states_too_large_for_float16_are_not_finite_and_no_warning(tiny_model):
    encoder = load_encoder(EncoderConfig(tiny_model))
    encoder._texts._model.ln_final.weight.data.mul_(1e6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not encoder.text_states(["a cat", "a dog"]).tokens.finite().any()


# The same command again.


def test_half_a_shard_is_swept_and_made_again(once, mine, encode_config):
    (mine / "manifest" / "00001.json").unlink()
    (mine / "text_tokens" / "lengths_00001.npy").write_bytes(b"half of")
    (mine / "text_tokens" / "text_tokens_00001.npy.tmp-77-abc").write_bytes(b"left behind")
    assert encode(once[0], str(mine), encode_config(stage=TOKENS)).report.tasks == 1
    assert shards.tree(mine) == shards.tree(once[1])


def test_files_of_a_shard_that_is_not_committed_do_not_stay(once, mine, encode_config, tmp_path):
    source = tmp_path / "in"
    shutil.copytree(once[0], source)
    (mine / "manifest" / "00001.json").unlink()
    shards.write_tar(source / "00001.tar", [("x.jpg", b"bad"), ("x.txt", b"c")])
    (mine / "text_tokens" / "lengths.npy").write_bytes(b"somebody's")
    encode(str(source), str(mine), encode_config(stage=TOKENS))
    there = sorted(path.name for path in (mine / "text_tokens").iterdir())
    kept = [f"{stem}_0000{i}.npy" for stem in ("lengths", "text_tokens") for i in (0, 2)]
    assert there == sorted(["lengths.npy", *kept])
    encode(str(source), str(mine), encode_config(overwrite=True))
    assert [path.name for path in (mine / "text_tokens").iterdir()] == ["lengths.npy"]
    assert verify(str(mine), shards.DEEP).whole


def test_with_and_without_are_two_runs(once, mine, encode_config, encoded_once):
    with pytest.raises(RunMismatch, match="text_tokens was true, now not set"):
        encode(once[0], str(mine), encode_config())
    with pytest.raises(RunMismatch, match="text_tokens was not set, now true"):
        encode(encoded_once[0], encoded_once[1], encode_config(stage=TOKENS))


def test_outputs_of_before_are_read_and_go_on(encoded_once, encoded, encode_config):
    """As versions without this option wrote them: no word of it in any file."""
    newer = ("tokens", "token_width", "pending", "merged", "self_sha256")
    for path in (encoded / "embedpipe.json", *encoded.glob("manifest/*.json")):
        document = json.loads(path.read_text())
        assert "text_tokens" not in document.get("options", {})
        for record in document.get("files", ()):
            del record["ends_sha256"]
        path.write_text(json.dumps({k: v for k, v in document.items() if k not in newer}))
    assert len(EmbeddingDataset(str(encoded)).image[:]) == 21
    (encoded / "manifest" / "00002.json").unlink()
    assert encode(encoded_once[0], str(encoded), encode_config()).report.tasks == 1
    assert verify(str(encoded), shards.DEEP).whole
    assert EmbeddingDataset(str(encoded)).text_tokens is None


def test_what_cannot_be_is_refused_before_anything_is_removed(once, mine, encode_config, monkeypatch):
    before = shards.tree(mine)
    with pytest.raises(InputError, match="no text tokens without texts.*`text_tokens` or `texts=False`"):
        encode(once[0], str(mine), encode_config(stage={**TOKENS, "texts": False}))
    monkeypatch.setattr("embedpipe.encode.text_tower.TextTower.has_states", False)
    with pytest.raises(ModelError, match="no hidden states"):
        encode(once[0], str(mine), encode_config(stage=TOKENS, overwrite=True))
    assert shards.tree(mine) == before


# Damage.


def test_lengths_that_do_not_fit_are_a_fault_that_names_the_shard(mine):
    for damage in (lambda n: n + 1, lambda n: n[:-1], lambda n: n.astype(np.int64), lambda n: n * 0, lambda n: -n):
        path = mine / "text_tokens" / "lengths_00001.npy"
        whole = path.read_bytes()
        np.save(path, damage(np.load(path)))
        shards.record_anew(mine, 1, path)
        (fault,) = verify(str(mine), shards.DEEP).faults
        assert (fault.number, "lengths_00001.npy" in fault.what) == (1, True)
        with pytest.raises(DatasetError, match=r"lengths_00001\.npy"):
            EmbeddingDataset(str(mine)).text_tokens[7]
        path.write_bytes(whole)
        shards.record_anew(mine, 1, path)
    assert verify(str(mine), shards.DEEP).whole


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokens": 3}, "shape"),
        ({"token_width": 5}, "text tokens are 5 wide, but embedpipe.json says 32"),
        ({"files": []}, "text_tokens/text_tokens_00001.npy: not listed in the manifest"),
    ],
)
def test_a_manifest_that_says_otherwise_is_a_fault(change, said, mine):
    path = mine / "manifest" / "00001.json"
    shards.edit(path, **change)
    faults = verify(str(mine), shards.DEEP).faults
    assert {fault.number for fault in faults} == {1}
    assert any(said in fault.what for fault in faults)


@pytest.mark.parametrize("name", ["text_tokens", "lengths"])
@pytest.mark.parametrize("damage", ["cut", "gone", "flip"])
def test_damaged_files_are_found(name, damage, mine):
    path = mine / "text_tokens" / f"{name}_00002.npy"
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[:-1] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    (fault,) = verify(str(mine), shards.DEEP).faults
    assert (fault.number, path.name in fault.what) == (2, True)


def test_what_a_full_disk_still_needs_counts_them(once):
    """Before anything is written: rows of two embeddings and some metadata, and 16 token states."""
    run = read_run(once[1])
    tasks = [Task(number, shard.name, shard) for number, shard in enumerate(run.plan)]
    bare, needed = (
        size_needed("memory://nothing", dataclasses.replace(run, token_width=width), tasks, 7, 1)
        for width in (None, 32)
    )
    assert needed - bare == pytest.approx(21 * 16 * 32 * 2, rel=0.01)


def test_info_tells_of_them(once, embedpipe):
    lengths = EmbeddingDataset(once[1]).text_tokens.lengths()
    found = describe(once[1])
    assert (found.tokens, found.token_width) == (lengths.sum(), 32)
    assert f"{lengths.sum()} × 32, {lengths.mean():.1f} for each row" in embedpipe("info", once[1]).stdout
