"""What version 0.1 wrote opens, is told apart, answers queries as it was made, and mixes where somebody says so."""

import dataclasses
import json
import shutil
import threading

import numpy as np
import pytest

from embedpipe import manifest
from embedpipe.clip_model.encoder_card import BEFORE_ACTIVATION, Likeness
from embedpipe.clip_model.spec import ModelOptions
from embedpipe.encode import EncoderConfig, load_encoder
from embedpipe.encode.job import encode, plan_encode
from embedpipe.errors import RunMismatch
from embedpipe.index import query_encoder
from embedpipe.load import EmbeddingDataset
from embedpipe.lock import Part
from embedpipe.merge import MergeConfig, merge
from tests import version_0_1
from tests.shards import tree
from tests.version_0_1 import MODEL

FINGERPRINT = "1a2aaddd"
# A decoder of one stage, trained in a second.
SMALL = ["--sizes", "8", "--dims", "8", "--timesteps", "4", "--steps", "1", "--batch-size", "4", "--valid-share", "0.3"]
SMALL += ["--device", "cpu", "--set", "stages.1.network.dim_mults=[1]", "--score-rows", "2"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of what version 0.1 wrote; its model is known to open_clip. Not to be written to."""
    folder = version_0_1.unpack(tmp_path_factory.mktemp("0.1"))
    with version_0_1.registered(folder):
        yield folder


@pytest.fixture
def old(written, tmp_path):
    """A copy of the data set to write to."""
    return shutil.copytree(written / "emb", tmp_path / "old")


@pytest.fixture
def config(encode_config):
    """Makes the EncodeConfig of the model with a tag."""
    return lambda tag="openai", model=MODEL, **options: encode_config(model, pretrained=tag, **options)


@pytest.fixture
def new(written, config, tmp_path):
    """The same shards, encoded now."""
    encode(str(written / "shards"), str(tmp_path / "new"), config())
    return tmp_path / "new"


def grown(written, folder):
    """The shards and a third one, in `folder`."""
    shutil.copytree(written / "shards", folder)
    shutil.copy(folder / "00000.tar", folder / "00002.tar")
    return str(folder)


def cosines(one, other):
    one, other = (rows.astype(np.float64) / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (one, other))
    return (one * other).sum(1)


def image_rows(path):
    return np.asarray(EmbeddingDataset(str(path)).image[:], np.float32)


def test_an_old_card_keeps_its_fingerprint_and_a_new_one_of_the_same_model_is_told_apart(written):
    old = EmbeddingDataset(str(written / "emb")).card
    assert old.fingerprint().startswith(FINGERPRINT)
    assert (old.fingerprint_version, old.dated) == (1, True)
    now = load_encoder(EncoderConfig(MODEL, "openai", precision="fp32")).card
    assert (now.fingerprint_version, now.dated) == (2, False)
    assert now.as_version_0_1().fingerprint() == old.fingerprint() != now.fingerprint()
    assert old.compare(now) is now.compare(old) is Likeness.UNRECORDED
    other = dataclasses.replace(now, weights_sha256="0" * 64)
    assert old.compare(other) is Likeness.OTHER
    assert old.compare(old) is now.compare(now) is Likeness.SAME


def test_cards_differ_where_activations_do(written):
    def card(model, tag):
        return load_encoder(EncoderConfig(model, tag, precision="fp32")).card

    quick, gelu = card(MODEL, "openai"), card(MODEL, "gelu")
    assert quick.fingerprint() == card(f"{MODEL}-quickgelu", "openai").fingerprint()
    assert quick.fingerprint() != gelu.fingerprint()
    assert quick.as_version_0_1().fingerprint() == gelu.as_version_0_1().fingerprint()  # what version 0.1 mixed up
    assert (quick.image_tower.activation, gelu.text_tower.activation) == ("quick_gelu", "gelu")


def test_a_query_is_embedded_as_the_rows_were(written):
    dataset = EmbeddingDataset(str(written / "emb"))
    encoder = query_encoder(dataset, precision="fp32")
    captions = dataset.metadata(0, ("caption",)).column(0).to_pylist()
    stored = np.asarray(dataset.array(0, "text"), np.float32)
    assert cosines(encoder.texts(captions).rows, stored).min() > 1 - 1e-6
    # The tag's own activation gives other vectors: that is what the card did not say.
    now = load_encoder(EncoderConfig(MODEL, "openai", precision="fp32"))
    assert cosines(now.texts(captions).rows, stored).max() < 1 - 1e-5


def test_a_query_under_the_name_of_the_other_activation_is_refused(written):
    dataset = EmbeddingDataset(str(written / "emb"))
    with pytest.raises(RunMismatch, match="computed .*-tiny with GELU, and .*-quickgelu with QuickGELU"):
        query_encoder(dataset, f"{MODEL}-quickgelu", "openai")


def test_the_old_index_is_used(written, embedpipe):
    found = embedpipe(
        "search", written / "emb", "a cat", "--model", MODEL, "--pretrained", "openai", "-k", "3", "--json"
    )
    assert found.exit_code == 0, found.stderr
    assert len(json.loads(found.stdout)) == 3
    assert f"note: {written / 'emb'}: {BEFORE_ACTIVATION}: queries are embedded as version 0.1" in found.stderr
    assert "no image index" not in found.stderr


def test_commands_say_what_it_is(written, embedpipe):
    assert BEFORE_ACTIVATION in embedpipe("info", written / "emb").stdout
    told = json.loads(embedpipe("info", written / "emb", "--json").stdout)
    assert (told["fingerprint_version"], told["dated"]) == (1, True)
    checked = embedpipe("verify", written / "emb", "--deep")
    assert (checked.exit_code, BEFORE_ACTIVATION in checked.stdout) == (0, True)


@pytest.mark.parametrize(
    "command",
    [
        ("train-prior", "EMB", "OUT", "--prior", "ridge", "--valid-share", "0.3", "--device", "cpu"),
        ("train-decoder", "SHARDS", "EMB", "OUT", *SMALL),
        ("export", "EMB", "OUT", "--to", "hf"),
        ("export", "EMB", "OUT", "--images", "--data", "SHARDS"),
        ("filter", "EMB", "OUT", "--min-similarity", "-1", "--examples", "0"),
        ("dedup", "EMB", "OUT", "--confirm", "none", "--pairs", "0", "--threshold", "0.9"),
        ("index", "EMB"),
        ("evaluate", "EMB", "--split", "train", "--device", "cpu"),
        ("merge", "EMB", "EMB", "OUT"),
        ("sample-prior", "EMB", "OUT", "--prior", "PRIOR", "--gpus", "0", "--trust-old-card"),
    ],
    ids=lambda command: command[0],
)
def test_whatever_reads_it_says_once_what_it_is(command, written, old, new, embedpipe, tmp_path):
    places = {"SHARDS": written / "shards", "PRIOR": written / "prior"}
    for emb in old, new:
        twin = shutil.copytree(emb, tmp_path / f"{emb.name}-too") if command[0] == "merge" else None
        data = iter((emb, twin))
        words = [
            next(data) if word == "EMB" else places.get(word, f"{emb}-out" if word == "OUT" else word)
            for word in command
        ]
        dry = ("--dry-run",) * (command[0] != "evaluate")
        for more in dry, ("--json",):
            done = embedpipe(*words, *more)
            assert done.exit_code == 0, done.stderr
            said = [f"note: {path}: {BEFORE_ACTIVATION}" for path in (emb, twin) if path and emb is old]
            assert [line for line in done.stderr.splitlines() if BEFORE_ACTIVATION in line] == said
            assert BEFORE_ACTIVATION not in done.stdout


def test_new_ones_do_not_say_it(new, embedpipe):
    for command in ("info", "verify"):
        assert BEFORE_ACTIVATION not in embedpipe(command, new).stdout
    assert "quick_gelu" in embedpipe("info", new).stdout
    found = json.loads(embedpipe("info", new, "--json").stdout)
    assert (found["fingerprint_version"], found["dated"]) == (2, False)
    assert found["encoder"]["text_tower"]["activation"] == "quick_gelu"
    assert "note" not in embedpipe("search", new, "a cat", "--exact").stderr


def test_an_encode_goes_on_as_it_was_begun_where_somebody_says_so(written, old, config, tmp_path):
    shards = grown(written, tmp_path / "shards")
    before = image_rows(old)
    with pytest.raises(RunMismatch, match=f"{BEFORE_ACTIVATION}.*`trust_old_card=True`"):
        encode(shards, str(old), config())
    with pytest.raises(RunMismatch, match=BEFORE_ACTIVATION):
        plan_encode(shards, str(old), config())
    assert np.array_equal(image_rows(old), before)
    assert encode(str(written / "shards"), str(old), config()).report.tasks == 0, "finished: there is nothing to trust"
    report = encode(shards, str(old), config(trust_old_card=True))
    assert (report.already, report.report.tasks) == (2, 1)
    dataset = EmbeddingDataset(str(old))
    assert dataset.card.fingerprint().startswith(FINGERPRINT)
    rows = image_rows(old)
    assert len(rows) == 18
    # The third shard holds the images of the first: computed the same way, by the same activation.
    assert cosines(rows[:6], rows[12:]).min() > 1 - 1e-6


def test_two_parts_at_once_go_on_with_it_as_it_was_begun(written, old, config, tmp_path):
    shards = tmp_path / "shards"
    shutil.copytree(written / "shards", shards)
    for number in range(2, 6):
        shutil.copy(shards / f"0000{number % 2}.tar", shards / f"0000{number}.tar")
    whole = shutil.copytree(old, tmp_path / "whole")
    encode(str(shards), str(whole), config(trust_old_card=True))
    raised = []

    def part(number):
        try:
            encode(str(shards), str(old), config(part=Part(number, 2), trust_old_card=True))
        except Exception as problem:
            raised.append(problem)

    threads = [threading.Thread(target=part, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert raised == []
    assert tree(old) == tree(whole)
    run = manifest.read_run(str(old))
    assert (run.dated, run.pending, len(run.plan)) == (True, (), 6)
    assert not list(old.glob(".lock-*-of-*"))
    # The last four shards hold the images of the first two, which version 0.1 encoded.
    rows = image_rows(old)
    assert cosines(rows[:12], rows[12:24]).min() > 1 - 1e-6
    shutil.copy(shards / "00000.tar", shards / "00006.tar")
    with pytest.raises(RunMismatch, match=BEFORE_ACTIVATION):
        encode(str(shards), str(old), config(part=Part(0, 2)))


def test_what_an_output_is_comes_before_what_a_checkpoint_file_does_not_say(written, old, embedpipe, tmp_path):
    """Version 0.1 asked of no file what it was trained with: naming an option would lead to the next error."""
    command = (
        old,
        "--model",
        MODEL,
        "--pretrained",
        written / "tiny.safetensors",
        "--gpus",
        "0",
        "--precision",
        "fp32",
    )
    shards = grown(written, tmp_path / "shards")
    trust = "give --trust-old-card to go on with the model as version 0.1 built it"
    for more, said in ((), trust), (("--gelu",), f"{trust}, without options of activation and preprocessing"):
        for dry in (), ("--dry-run",), ("--trust-old-card",) * bool(more):
            refused = embedpipe("encode", shards, *command, *more, *dry)
            assert refused.exit_code == 1
            assert refused.stderr.splitlines() == [
                f"error: {old}: {BEFORE_ACTIVATION}. Encode into another folder, or {said}"
            ]
    done = embedpipe("encode", shards, *command, "--trust-old-card")
    assert done.exit_code == 0, done.stderr
    again = embedpipe("encode", shards, *command)
    assert "nothing to do" in again.stdout, again.stderr
    # Begun again, it is an output of today's.
    refused = embedpipe("encode", shards, *command, "--overwrite", "--trust-old-card")
    assert "a checkpoint file does not record how it was trained" in refused.stderr


def test_old_and_new_merge_only_where_somebody_says_so(old, new, tmp_path):
    out = str(tmp_path / "merged")
    with pytest.raises(RunMismatch, match=r"old: written before.*version 0.1 computed .* with GELU.*QuickGELU"):
        merge([str(old), str(new)], out)
    with pytest.raises(RunMismatch, match="old: written before"):
        merge([str(new), str(old)], out)
    merge([str(new), str(old)], out, MergeConfig(trust_old_card=True))
    dataset = EmbeddingDataset(out)
    assert len(dataset) == 24
    assert dataset.card.fingerprint().startswith(FINGERPRINT)  # it says no more than is known of all


def test_two_of_version_0_1_whose_names_say_that_they_differ_do_not_mix(written, old, config, tmp_path):
    settings = config("openai", f"{MODEL}-quickgelu")
    encoder = dataclasses.replace(settings.encoder, as_version_0_1=True)  # as it wrote such a data set
    encode(str(written / "shards"), str(tmp_path / "quick"), dataclasses.replace(settings, encoder=encoder))
    assert EmbeddingDataset(str(tmp_path / "quick")).card.fingerprint().startswith(FINGERPRINT)
    said = "version 0.1 computed .*-tiny with GELU, and .*-tiny-quickgelu with QuickGELU"
    with pytest.raises(RunMismatch, match=said):
        merge([str(old), str(tmp_path / "quick")], str(tmp_path / "out"), MergeConfig(trust_old_card=True))
    shards = grown(written, tmp_path / "more")
    with pytest.raises(RunMismatch, match=said):
        encode(shards, str(old), config("openai", f"{MODEL}-quickgelu", trust_old_card=True))


def test_two_old_ones_do_not_mix_through_a_new_one(written, old, new, config, tmp_path):
    settings = config("openai", f"{MODEL}-quickgelu")
    encoder = dataclasses.replace(settings.encoder, as_version_0_1=True)
    encode(str(written / "shards"), str(tmp_path / "quick"), dataclasses.replace(settings, encoder=encoder))
    with pytest.raises(RunMismatch, match="version 0.1 computed"):
        merge([str(new), str(old), str(tmp_path / "quick")], str(tmp_path / "out"), MergeConfig(trust_old_card=True))


def test_two_that_an_old_card_does_not_tell_apart_do_not_merge_through_it(written, old, new, config, tmp_path):
    encode(str(written / "shards"), str(tmp_path / "gelu"), config("gelu"))
    with pytest.raises(RunMismatch, match='another encoder.*activation is "gelu", not "quick_gelu"'):
        merge([str(old), str(new), str(tmp_path / "gelu")], str(tmp_path / "out"), MergeConfig(trust_old_card=True))


def test_a_merged_set_that_says_more_takes_no_old_one(old, new, written, config, tmp_path):
    encode(str(written / "shards"), str(tmp_path / "again"), config())
    out = str(tmp_path / "merged")
    merge([str(new), str(tmp_path / "again")], out)
    with pytest.raises(RunMismatch, match="this merge records the activation"):
        merge([str(new), str(tmp_path / "again"), str(old)], out, MergeConfig(trust_old_card=True))


def test_a_prior_of_then_and_embeddings_of_now_are_compared_only_where_somebody_says_so(written, new, embedpipe):
    evaluate = ("evaluate", written / "prior", new, "--device", "cpu")
    refused = embedpipe(*evaluate)
    assert refused.exit_code == 1
    assert f"prior: {BEFORE_ACTIVATION}" in refused.stderr
    assert embedpipe(*evaluate, "--trust-old-card").exit_code == 0
    assert embedpipe("evaluate", written / "prior", written / "emb", "--device", "cpu").exit_code == 0


def test_a_prior_of_then_samples_for_embeddings_of_now_only_where_somebody_says_so(written, new, embedpipe, tmp_path):
    sample = ("sample-prior", new, tmp_path / "out", "--prior", written / "prior", "--gpus", "0")
    assert BEFORE_ACTIVATION in embedpipe(*sample).stderr
    assert embedpipe(*sample, "--trust-old-card").exit_code == 0
    assert EmbeddingDataset(str(tmp_path / "out")).card.fingerprint_version == 2


def test_a_score_head_scores_only_what_was_computed_as_it_was_trained(written, new, config, embedpipe, tmp_path):
    def score(emb, *more):
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        return embedpipe("filter", emb, out, "--head", written / "head.safetensors", "--min-score", "-9", *more)

    assert score(new).exit_code == 0
    refused = score(written / "emb")
    assert refused.exit_code == 1
    assert "a head for embeddings computed with QuickGELU" in refused.stderr
    assert f"{BEFORE_ACTIVATION}; version 0.1 computed {MODEL} with GELU" in refused.stderr
    assert score(written / "emb", "--trust-old-card").exit_code == 0
    # The same weights under the other activation: names do not tell, the card does.
    encode(str(written / "shards"), str(tmp_path / "gelu"), config("gelu"))
    claimed = score(tmp_path / "gelu", "--head-model", f"{MODEL}/gelu")
    assert claimed.exit_code == 0, claimed.stderr
    head = tmp_path / "head.safetensors"
    shutil.copy(written / "head.safetensors", head)
    head.with_suffix(".json").write_text(json.dumps({"model": MODEL, "pretrained": "gelu", "quick_gelu": True}))
    wrong = embedpipe("filter", tmp_path / "gelu", tmp_path / "o", "--head", head, "--min-score", "-9")
    assert "these were computed with GELU" in wrong.stderr


def test_a_file_is_queried_as_it_was_used(written, config, tmp_path):
    file = str(written / "tiny.safetensors")
    settings = config(file)
    encoder = dataclasses.replace(settings.encoder, options=ModelOptions(like_tag="squashed"))
    encode(str(written / "shards"), str(tmp_path / "file"), dataclasses.replace(settings, encoder=encoder))
    dataset = EmbeddingDataset(str(tmp_path / "file"))
    assert dataset.card.preprocess.resize_mode == "squash"
    assert query_encoder(dataset, precision="fp32").card.fingerprint() == dataset.card.fingerprint()


def test_a_page_and_an_exported_card_say_it_too(written, new, embedpipe, tmp_path):
    for name, data, said in (("old", written / "emb", BEFORE_ACTIVATION), ("new", new, "image quick_gelu, pooled by")):
        assert embedpipe("info", data, "--html", tmp_path / f"{name}.html").exit_code == 0
        assert said in (tmp_path / f"{name}.html").read_text()
        assert embedpipe("export", data, tmp_path / f"hf-{name}", "--to", "hf").exit_code == 0
        assert said in (tmp_path / f"hf-{name}" / "README.md").read_text()
