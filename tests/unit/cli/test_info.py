"""`embedpipe info`: what is in an output, for people and for machines."""

import json

from tests import shards


def test_it_tells_counts_model_and_columns(embedpipe, encoded, tiny_model):
    (encoded / "manifest" / "00002.json").unlink()
    told = json.loads(embedpipe("info", encoded, "--json").stdout)
    assert (told["shards"], told["planned"], told["rows"], told["rejected"]) == (2, 3, 14, 0)
    assert told["encoder"]["model"] == tiny_model
    assert told["encoder"]["dim"] == 16
    assert {"key", "caption", "number", "label", "extra"} <= set(told["columns"])
    assert told["similarity"]["n"] == 14
    assert -1 <= told["similarity"]["p05"] <= told["similarity"]["p50"] <= told["similarity"]["p95"] <= 1
    people = embedpipe("info", encoded)
    assert people.exit_code == 0
    assert "2 of 3" in people.stdout


def test_damage_is_one_line(embedpipe, encoded, tmp_path):
    (encoded / "embedpipe.json").write_bytes(b"{")
    for place in (encoded, tmp_path / "no", tmp_path):
        result = embedpipe("info", place)
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1
        assert "internal error" not in result.stderr


def test_similarities_are_drawn_and_rejects_are_told_of_an_output_that_still_grows(embedpipe, encoded):
    (encoded / "manifest" / "00002.json").unlink()
    spread = json.loads(embedpipe("info", encoded, "--json").stdout)["similarity"]
    assert len(spread["bins"]) == 10
    assert sum(spread["bins"]) == 14
    assert spread["least"] <= spread["p05"] <= spread["p95"] <= spread["most"]
    shown = embedpipe("info", encoded).stdout
    bars = [line for line in shown.splitlines() if " to " in line]
    assert [int(line.split()[-1]) for line in bars] == spread["bins"]
    assert max(line.count("█") for line in bars) == 40
    assert "2 of 3, unfinished" in shown
    for path in (encoded / "manifest").iterdir():
        path.unlink()
    nothing_yet = embedpipe("info", encoded)
    assert nothing_yet.exit_code == 0
    assert "0 of 3, unfinished" in nothing_yet.stdout


def test_rejects_are_told_by_class(embedpipe, tmp_path, encode_config):
    from embedpipe.encode.job import encode

    members = [*shards.samples(3), ("bad.jpg", b"x"), ("bad.txt", b"c"), ("mute.jpg", shards.jpeg())]
    encode(shards.write_tar(tmp_path / "a.tar", members), str(tmp_path / "emb"), encode_config())
    told = embedpipe("info", tmp_path / "emb")
    assert "image_undecodable" in told.stdout
    assert "caption_missing" in told.stdout
    assert json.loads(embedpipe("info", tmp_path / "emb", "--json").stdout)["rejects"] == {
        "caption_missing": 1,
        "image_undecodable": 1,
    }
