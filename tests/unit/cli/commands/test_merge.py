"""`embedpipe merge`: what it says, what it refuses."""

import json
import shutil

import pytest

from embedpipe.encode.job import encode
from tests import shards


@pytest.fixture
def twin(encoded, tmp_path):
    return shutil.copytree(encoded, tmp_path / "twin")


def test_it_merges_says_so_and_has_nothing_to_do_again(embedpipe, encoded, twin, tmp_path):
    out = tmp_path / "out"
    planned = json.loads(embedpipe("merge", encoded, twin, out, "--dry-run").stdout)
    assert len(planned["shards"]) == 6
    assert not out.exists()
    result = embedpipe("merge", encoded, twin, out)
    assert result.exit_code == 0, result.stderr
    assert f"the shards of {twin} are called twin/… in src_shard" in result.stdout
    assert f"{out}: 42 rows and 0 rejects in 6 shards" in result.stdout
    again = json.loads(embedpipe("merge", encoded, twin, out, "--json").stdout)
    assert (again["already"], again["report"]["tasks"]) == (6, 0)
    assert embedpipe("merge", encoded, twin, out).stdout == f"{out}: nothing to do, finished: 42 rows in 6 shards\n"
    assert embedpipe("verify", out, "--deep").exit_code == 0
    assert embedpipe("info", out).exit_code == 0


def test_an_unfinished_data_set_is_warned_of(embedpipe, encoded, twin, tmp_path):
    shards.forget(twin, 2)
    result = embedpipe("merge", encoded, twin, tmp_path / "out")
    assert result.exit_code == 0
    assert f"warning: {twin} is not finished; merge again when it is" in result.stderr
    assert "35 rows" in result.stdout


def test_all_columns_that_one_part_lacks_are_one_line(embedpipe, encode_config, tmp_path):
    shards.write_tar(tmp_path / "a.tar", shards.samples(2))
    shards.write_tar(tmp_path / "b.tar", shards.samples(1, metadata=False))
    for name in ("a", "b"):
        encode(str(tmp_path / f"{name}.tar"), str(tmp_path / name), encode_config())
    said = embedpipe("merge", tmp_path / "a", tmp_path / "b", tmp_path / "out").stdout
    assert f"columns number, label: absent in {tmp_path / 'b'}\n" in said
    assert said.count("absent") == 1


def test_what_cannot_be_is_one_line(embedpipe, encoded, tmp_path):
    assert embedpipe("merge", encoded, tmp_path / "out").exit_code == 2
    result = embedpipe("merge", encoded, tmp_path / "no", tmp_path / "out")
    assert result.exit_code == 1
    assert len(result.stderr.splitlines()) == 1
    assert "no such folder" in result.stderr
