"""encode killed at random moments, in every storage format and with token states: the same bytes in the end."""

import os
import random
import signal
import time

import pytest

from embedpipe.store import FORMATS
from embedpipe.verify import verify
from tests import shards
from tests.integration.test_encode_resume import command, ended, fork


@pytest.mark.parametrize("name", FORMATS)
def test_killed_and_run_again_it_gives_the_same_bytes(name, tiny_model, tmp_path):
    source = shards.write_shards(tmp_path / "shards", shards=5, per_shard=12)
    rng = random.Random(name)

    def arguments(out):
        return [*command(source, out, tiny_model, 1), "--format", name, "--text-tokens"]

    assert ended(fork(arguments(tmp_path / "undisturbed"))) == 0
    expected = shards.tree(tmp_path / "undisturbed")
    assert any("text_tokens/" in path for path in expected) == (name == "npy")
    for attempt in range(2):
        out = tmp_path / str(attempt)
        pid = fork(arguments(out))
        wanted = rng.randrange(1, 5)
        deadline = time.monotonic() + 600
        while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline:
            if len(list(out.glob("manifest/*.json"))) >= wanted:
                time.sleep(rng.uniform(0, 0.02))
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                break
            time.sleep(0.002)  # it may have this core
        assert verify(str(out), shards.DEEP).whole, "what is committed is whole at any moment"
        assert ended(fork(arguments(out))) == 0
        assert shards.tree(out) == expected
