"""`embedpipe verify`: 0 when whole, 1 with the bad shard named."""

import json


def test_a_whole_output_is_exit_code_0(embedpipe, encoded):
    result = embedpipe("verify", encoded)
    assert result.exit_code == 0
    assert result.stdout.endswith("whole\n")
    assert "3 of 3 shards, 21 rows" in result.stdout


def test_damage_is_exit_code_1_and_names_the_shard(embedpipe, encoded):
    (encoded / "text_emb" / "text_emb_00001.npy").write_bytes(b"")
    (encoded / "manifest" / "00002.json").unlink()
    result = embedpipe("verify", encoded)
    assert result.exit_code == 1
    assert "bad shard 1 (00001.tar): text_emb/text_emb_00001.npy: 0 bytes" in result.stdout
    assert "1 planned shards are not made yet" in result.stdout
    machine = embedpipe("verify", encoded, "--json")
    assert machine.exit_code == 1
    told = json.loads(machine.stdout)
    assert told["whole"] is False
    assert [fault["number"] for fault in told["faults"]] == [1]


def test_what_is_no_output_is_one_line(embedpipe, tmp_path):
    for place in (tmp_path, tmp_path / "no"):
        result = embedpipe("verify", place)
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1
