"""`embedpipe verify`: 0 when whole, 1 with the bad shard named."""

import json

from tests import shards


def test_a_whole_output_is_exit_code_0(embedpipe, encoded):
    result = embedpipe("verify", encoded)
    assert result.exit_code == 0
    assert result.stdout.endswith("whole, by counts and sizes; --deep reads everything\n")
    assert "3 of 3 shards, 21 rows" in result.stdout
    deep = embedpipe("verify", encoded, "--deep", "--workers", 2)
    assert deep.exit_code == 0
    assert deep.stdout.endswith("whole\n")


def test_damage_is_exit_code_1_and_names_the_shard(embedpipe, encoded):
    (encoded / "text_emb" / "text_emb_00001.npy").write_bytes(b"")
    shards.forget(encoded, 2)
    result = embedpipe("verify", encoded)
    assert result.exit_code == 1
    assert "bad shard 1 (00001.tar): text_emb/text_emb_00001.npy: 0 bytes" in result.stdout
    assert "1 planned shard not made yet" in result.stdout
    machine = embedpipe("verify", encoded, "--json")
    assert machine.exit_code == 1
    told = json.loads(machine.stdout)
    assert told["whole"] is False
    assert [fault["number"] for fault in told["faults"]] == [1]


def test_repair_says_what_it_drops_and_is_exit_code_1(embedpipe, encoded):
    path = encoded / "text_emb" / "text_emb_00001.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert embedpipe("verify", encoded, "--repair").exit_code == 0, "counts and sizes are as they were"
    found = embedpipe("verify", encoded, "--deep")
    assert "bad shard 1 (00001.tar): text_emb/text_emb_00001.npy: the checksum does not match" in found.stdout
    assert "1 fault; --repair drops bad shards" in found.stdout
    result = embedpipe("verify", encoded, "--deep", "--repair")
    assert result.exit_code == 1
    assert "dropped shard 1 (00001.tar)" in result.stdout
    assert f"run the command that made {encoded} to make it again" in result.stdout
    again = embedpipe("verify", encoded, "--deep", "--json")
    assert again.exit_code == 0
    told = json.loads(again.stdout)
    assert (told["whole"], told["missing"], len(told["leftovers"])) == (True, 1, 3)


def test_what_is_no_output_is_one_line(embedpipe, tmp_path):
    for place in (tmp_path, tmp_path / "no"):
        result = embedpipe("verify", place)
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1
