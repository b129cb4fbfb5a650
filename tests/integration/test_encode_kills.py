"""Twenty SIGKILLs at random moments, with one worker and with two; `benchmarks/encode_kills.py` sends any number."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KILLS = 20


@pytest.mark.slow
def test_killed_again_and_again_every_output_is_the_undisturbed_one(tmp_path):
    ran = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.encode_kills", "--kills", str(KILLS)),
            *("--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    (result,) = (tmp_path / "results").iterdir()
    lines = re.findall(r"^\| ([12]) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|", result.read_text(), re.MULTILINE)
    assert [int(line[0]) for line in lines] == [1, 2]
    assert [int(line[1]) for line in lines] == [KILLS // 2, KILLS // 2]
    assert all(same == outputs and int(outputs) > 0 for *_, outputs, same in lines)
