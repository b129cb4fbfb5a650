"""The programs that exports are for, where they are installed here. All of them: `benchmarks.outside_readers`."""

import os

import pytest

from benchmarks import outside_readers
from benchmarks.peers import read_export
from tests import shards

os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="module")
def emb(tmp_path_factory, encode_config):
    """Embeddings of tars with broken pictures, one of them of nothing else."""
    from embedpipe.encode.job import encode

    root = tmp_path_factory.mktemp("outside")
    for tar in range(4):
        members = []
        for i in range(9):
            picture = b"no picture" if tar == 2 or i == 4 else None
            members += shards.sample(9 * tar + i, f"{tar:05d}{i:04d}", picture=picture)
        shards.write_tar(root / "images" / f"{tar:05d}.tar", members)
    encode(str(root / "images"), str(root / "emb"), encode_config())
    return root / "emb"


@pytest.mark.parametrize(
    ("reader", "export"), [(reader, export) for environment, reader, export in outside_readers.CASES if not environment]
)
def test_it_reads_every_row(reader, export, emb, embedpipe, tmp_path):
    assert outside_readers._truth(emb, tmp_path / "truth.npz") == 24
    done = embedpipe("export", emb, tmp_path / export, *outside_readers.EXPORTS[export])
    assert done.exit_code == 0, done.stderr
    read, _ = read_export.READERS[reader]
    assert read(str(tmp_path / export), read_export.Truth(tmp_path / "truth.npz"))["rows"] == 24
