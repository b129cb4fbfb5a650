"""`embedpipe info`: what is in an output, for people and for machines."""

import json


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
