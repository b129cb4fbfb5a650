"""The rules by which images were decoded stay with a data set: when it is continued, searched, merged and told of."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from embedpipe import checksummed_json, files
from embedpipe.clip_model.encoder_card import OPEN_CLIP_RULES
from embedpipe.encode.job import encode
from embedpipe.errors import RunMismatch
from embedpipe.images.rules import image_rules
from embedpipe.index.query_model import embed_image, query_encoder
from embedpipe.load import EmbeddingDataset
from embedpipe.merge import merge
from tests import shards
from tests.commands import result_of, run


def transparent(number):
    """The members of a sample whose picture is seen otherwise on another background."""
    data = shards.encoded(shards.pixels(number, mode="RGBA"), "PNG")
    return [(f"{number:03d}.png", data), (f"{number:03d}.txt", shards.caption(number).encode())]


def write_tar(folder, number):
    members = [member for i in range(4 * number, 4 * number + 4) for member in transparent(i)]
    return shards.write_tar(folder / f"{number:05d}.tar", members)


def with_rules(config, rules=None, background=None):
    encoder = dataclasses.replace(config.encoder, image_rules=rules, background=background)
    return dataclasses.replace(config, encoder=encoder)


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    write_tar(folder, 0)
    return folder


def as_before_there_were_rules(out):
    """Write the card again as it was written before there were other rules than open_clip's."""
    place = Path(out) / "embedpipe.json"
    document = json.loads(place.read_text())
    assert document["encoder"]["image_rules"].pop("depth") is None
    del document[checksummed_json.SEAL]
    place.write_bytes(checksummed_json.dump(document))


def embeddings(out):
    return EmbeddingDataset(out).image.read()


@pytest.mark.parametrize(
    ("rules", "background"),
    [(OPEN_CLIP_RULES, None), (None, "#204060"), (None, None)],
    ids=["open_clip", "blue", "white"],
)
def test_a_data_set_goes_on_under_its_own_rules(rules, background, source, tmp_path, encode_config):
    config = encode_config(dtype="float32")
    grown, at_once = str(tmp_path / "grown"), str(tmp_path / "at-once")
    encode(str(source), grown, with_rules(config, rules, background))
    write_tar(source, 1)
    encode(str(source), grown, config)
    encode(str(source), at_once, with_rules(config, rules, background))
    for name in ("img_emb/img_emb_00001.npy", "metadata/metadata_00001.parquet", "text_emb/text_emb_00001.npy"):
        assert files.read_bytes(files.join(grown, name)) == files.read_bytes(files.join(at_once, name))
    assert EmbeddingDataset(grown).card.rules == (rules or image_rules(background or "white"))


def test_backgrounds_make_other_embeddings_and_other_fingerprints(source, tmp_path, encode_config):
    cards, rows = [], []
    for name, rules, background in (("old", OPEN_CLIP_RULES, None), ("white", None, None), ("blue", None, "blue")):
        encode(str(source), str(tmp_path / name), with_rules(encode_config(), rules, background))
        cards.append(EmbeddingDataset(str(tmp_path / name)).card)
        rows.append(embeddings(str(tmp_path / name)))
    assert len({card.fingerprint() for card in cards}) == 3
    assert all(np.abs(one - other).max() > 1e-3 for one, other in ((rows[0], rows[1]), (rows[1], rows[2])))
    facts = cards[0].facts()
    assert facts["image_rules"] == dict.fromkeys(("transparency", "orientation", "colour_profile"), "ignored")


def test_another_background_is_refused_by_name(source, tmp_path, encode_config):
    out = str(tmp_path / "emb")
    encode(str(source), out, with_rules(encode_config(), OPEN_CLIP_RULES))
    write_tar(source, 1)
    with pytest.raises(RunMismatch, match="transparency ignored, .*`background` is white"):
        encode(str(source), out, with_rules(encode_config(), background="white"))


def test_a_query_is_decoded_by_the_rules_of_what_it_searches(source, tmp_path, encode_config):
    picture = tmp_path / "query.png"
    picture.write_bytes(transparent(2)[0][1])
    for name, rules, background in (("old", OPEN_CLIP_RULES, None), ("white", None, None), ("blue", None, "blue")):
        out = str(tmp_path / name)
        encode(str(source), out, with_rules(encode_config(dtype="float32"), rules, background))
        dataset = EmbeddingDataset(out)
        found = embed_image(query_encoder(dataset, precision="fp32"), str(picture))
        assert found @ dataset.image.read()[2] > 1 - 1e-6
        nearest = result_of("search", out, "--image", picture, "-k", "1")[0]
        assert nearest["key"] == "002"


def test_merge_names_the_rule_that_differs(source, tmp_path, encode_config):
    for name, background in (("white", None), ("blue", "blue")):
        encode(str(source), str(tmp_path / name), with_rules(encode_config(), background=background))
    with pytest.raises(RunMismatch, match='image_rules.transparency is "#0000ff", not "white"'):
        merge([str(tmp_path / "white"), str(tmp_path / "blue")], str(tmp_path / "both"))


def test_info_tells_the_rules_and_encode_tells_of_old_ones(source, tmp_path, tiny_model, encode_config):
    old, new = tmp_path / "old", tmp_path / "new"
    encode(str(source), str(old), with_rules(encode_config(), OPEN_CLIP_RULES))
    as_before_there_were_rules(old)
    write_tar(source, 1)
    options = ["--model", tiny_model, "--gpus", "0", "--precision", "fp32"]
    went_on = run("encode", source, old, *options)
    assert went_on.exit_code == 0, went_on.output
    assert "keeps them: transparency ignored, orientation ignored" in went_on.stderr
    begun = run("encode", source, new, *options, "--background", "gray")
    assert begun.exit_code == 0, begun.output
    assert "keeps them" not in begun.stderr
    assert "transparency ignored" in run("info", old).stdout
    assert "transparency over #808080" in " ".join(run("info", new).stdout.split())
    refused = run("encode", source, tmp_path / "none", *options, "--background", "see-through")
    assert "no colour without transparency" in str(refused.exception)
    assert not (tmp_path / "none").exists()
