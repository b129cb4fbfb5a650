"""The programs that exports are for, each in its own environment where there is one (`benchmarks/peers/setup.sh`)."""

import sys

import pytest

from benchmarks import outside_readers


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_program_reads_every_row(tmp_path, monkeypatch, capsys):
    options = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", ["outside_readers", *options])
    with pytest.raises(SystemExit) as ended:
        outside_readers.main()
    said = capsys.readouterr().out
    assert ended.value.code == 0, said
    assert said.count(" rows equal") >= 2 * sum(environment == "" for environment, _, _ in outside_readers.CASES)
