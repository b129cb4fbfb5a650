"""Every command that is given the wrong kind of folder says what it got, and what to give."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from embedpipe.errors import RunMismatch
from embedpipe.folder_kind import (
    DECODER,
    EMBEDDINGS,
    EXPORT,
    IMAGE_SHARDS,
    NOTHING,
    OTHER,
    RUN,
    SELECTION,
    what_is,
)
from tests import shards
from tests.commands import run
from tests.embeddings import write_dataset


@pytest.fixture(scope="module")
def kinds(tmp_path_factory, encoded_once):
    """A folder of each kind, by its name."""
    root = tmp_path_factory.mktemp("kinds")
    rng = np.random.default_rng(0)
    emb = write_dataset(root / "emb", rng.normal(size=(60, 8)), rng.normal(size=(60, 8)))
    assert run("filter", emb, root / "filtered", "--where", "src_index < 9").exit_code == 0
    assert run("dedup", emb, root / "deduplicated").exit_code == 0
    assert run("train-prior", emb, root / "ridge", "--prior", "ridge", "--valid-share", "0.3").exit_code == 0
    small = [
        "--set",
        "train.batch_size=16",
        "--set",
        "network.dim=16",
        "--set",
        "network.depth=1",
        "--valid-share",
        "0.3",
    ]
    assert run("train-prior", emb, root / "prior", "--steps", "2", *small, "--device", "cpu").exit_code == 0
    assert run("export", emb, root / "exported", "--to", "parquet").exit_code == 0
    assert run("export", encoded_once[1], root / "shards", "--to", "images").exit_code == 0
    shutil.copytree(root / "prior", root / "begun")
    (root / "begun" / "run.json").unlink()
    shutil.copytree(root / "prior", root / "decoder" / "stage-1")
    (root / "empty").mkdir()
    return root


EXPECTED = {
    "emb": (EMBEDDINGS, "embeddings"),
    "filtered": (SELECTION, "a selection of rows by `embedpipe filter`"),
    "deduplicated": (SELECTION, "a selection of rows by `embedpipe dedup`"),
    "ridge": (RUN, "a prior run of `embedpipe train-prior`"),
    "prior": (RUN, "a prior run of `embedpipe train-prior`"),
    "begun": (RUN, "an unfinished training run"),
    "exported": (EXPORT, "an export of `embedpipe export` to parquet"),
    "shards": (IMAGE_SHARDS, "image shards"),
    "decoder": (DECODER, "a decoder of `embedpipe train-decoder`"),
    "empty": (OTHER, "no output of embedpipe"),
    "nowhere": (NOTHING, "no such folder"),
}
NOT_EMBEDDINGS = sorted(EXPECTED.keys() - {"emb", "empty", "nowhere", "exported"})


@pytest.mark.parametrize("name", EXPECTED)
def test_what_a_folder_is(kinds, name):
    found = what_is(str(kinds / name))
    assert (found.kind, found.said) == EXPECTED[name]
    if name in ("prior", "ridge", "filtered", "deduplicated"):
        assert found.of == str(kinds / "emb")


@pytest.mark.parametrize("name", NOT_EMBEDDINGS)
@pytest.mark.parametrize(
    "command", ["search", "dedup", "filter", "export", "index", "train-prior", "merge", "evaluate"]
)
def test_commands_that_want_embeddings_say_what_they_got(kinds, tmp_path, name, command):
    given, out = kinds / name, tmp_path / "out"
    words = {
        "search": [given, "--key", "000001"],
        "dedup": [given, out],
        "filter": [given, out, "--where", "src_index < 9"],
        "export": [given, out, "--to", "parquet"],
        "index": [given],
        "train-prior": [given, out],
        "merge": [kinds / "emb", given, out],
        "evaluate": [given],
    }[command]
    told = str(run(command, *words).exception)
    said = EXPECTED[name][1] if name != "shards" else "holds image shards"
    assert f"{given}: " in told
    assert said in told
    assert "not embeddings. Give" in told
    assert not out.exists()


def test_info_describes_runs_and_selections(kinds):
    told = json.loads(run("info", kinds / "prior", "--json").stdout)
    assert (told["kind"], told["steps"], told["checkpoints"]) == ("prior", 2, [2])
    assert told["data"] == str(kinds / "emb")
    assert told["losses"]["valid"]["loss"] > 0
    assert told["train_rows"] + told["valid_rows"] == 60
    people = run("info", kinds / "prior").stdout
    assert all(it in people for it in ("a prior run", "checkpoints", "valid at step 2", "to train"))
    assert "an unfinished training run" in run("info", kinds / "begun").stdout
    told = json.loads(run("info", kinds / "filtered", "--json").stdout)
    assert (told["made_by"], told["rows"], told["kept"], told["data"]) == ("filter", 60, 18, str(kinds / "emb"))
    people = run("info", kinds / "deduplicated").stdout
    assert "dropped.parquet" in people
    assert str(kinds / "emb") in people
    assert len(json.loads(run("info", kinds / "decoder", "--json").stdout)["stages"]) == 1
    assert "`html`" in str(run("info", kinds / "prior", "--html", kinds / "page.html").exception)


def test_verify_checks_the_checkpoints_of_a_run(kinds, tmp_path):
    done = run("verify", kinds / "prior", "--deep")
    assert done.exit_code == 0
    assert "training run, 1 checkpoint" in done.stdout
    copy = Path(shutil.copytree(kinds / "prior", tmp_path / "copy"))
    tensors = copy / "checkpoints" / "step-000000002" / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
    assert run("verify", copy).return_value is None or run("verify", copy).exit_code == 0
    found = json.loads(run("verify", copy, "--deep", "--json").stdout)
    assert not found["whole"]
    assert "step-000000002/model.safetensors: missing, or its bytes were changed" in found["faults"][0]["what"]
    tensors.unlink()
    assert not json.loads(run("verify", copy, "--json").stdout)["whole"]
    assert "goes on from the newest whole checkpoint" in str(run("verify", copy, "--repair").exception)
    assert "has no checksums to verify" in str(run("verify", kinds / "filtered").exception)


def test_encode_writes_neither_into_its_input_nor_into_what_is_no_embeddings(kinds, tmp_path, encode_config):
    from embedpipe.encode.job import encode, plan_encode

    source = shards.write_shards(tmp_path / "in", shards=2)
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for data, out in ((source, source), (source, str(tmp_path / "link")), (f"{source}/*.tar", source)):
        for job in (encode, plan_encode):
            with pytest.raises(RunMismatch, match="is the folder of the images themselves"):
                job(data, out, encode_config())
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["00000.tar", "00001.tar"]
    for name in ("prior", "begun", "filtered", "exported", "shards", "decoder"):
        copy = str(shutil.copytree(kinds / name, tmp_path / name))
        before = shards.tree(copy)
        for job in (encode, plan_encode):
            with pytest.raises(RunMismatch, match=f"{name}: holds {EXPECTED[name][1]}"):
                job(source, copy, encode_config())
        assert shards.tree(copy) == before


def test_encode_does_not_append_the_rows_of_another_data_set(tmp_path, encode_config):
    from embedpipe.encode.job import encode, plan_encode

    source, out = shards.write_shards(tmp_path / "in", shards=2), str(tmp_path / "emb")
    encode(source, out, encode_config())
    shards.write_tar(tmp_path / "other" / "x.tar", shards.samples(3, first=50))
    for job in (encode, plan_encode):
        with pytest.raises(RunMismatch, match=r"none of its 2 input shards \(00000.tar, 00001.tar"):
            job(str(tmp_path / "other"), out, encode_config())
    shutil.copy(tmp_path / "other" / "x.tar", tmp_path / "in" / "x.tar")
    (tmp_path / "in" / "00000.tar").unlink()
    assert encode(source, out, encode_config()).rows == 17  # one of them is enough: the data set has grown
