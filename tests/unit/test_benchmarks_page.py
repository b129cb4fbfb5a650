"""docs/benchmarks.md says what the pages of results say, and what was not measured."""

import pytest

from benchmarks import every, report
from benchmarks.every import CLAIMS, RUNS, Small, page, run_small
from benchmarks.pages import Claim, Page, newest, numbers


def test_the_page_is_that_of_the_results():
    assert every.PAGE.read_text() == page(report.RESULTS), "write it again: python -m benchmarks.every --page"


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.what)
def test_the_newest_page_of_each_benchmark_has_the_ratio(claim):
    found = newest(report.RESULTS, claim.benchmark)
    assert found is not None
    assert numbers(found.cell(claim.line, claim.column)) is not None
    assert "unknown" not in (found.fact("date"), found.fact("machine"), found.fact("load average at the start"))


def test_a_cell_is_read_as_it_was_written():
    assert numbers("1.57 (1.52–1.77)×") == (1.57, 1.52, 1.77)
    assert numbers("10.73") == (10.73, 10.73, 10.73)
    assert numbers("RR512, nprobe 4") is None
    text = report.table(("", "a", "b"), [("x", 1, "2.0 (1.0–3.0)"), ("y", 3, 4)])
    found = Page("p.md", f"# p\n\n{text}\n\n{report.table(('', ''), [('date', '2026-01-02 03:04, 5 minutes')])}\n")
    assert [found.cell("x"), found.cell("x", "b"), found.cell("y", "b"), found.cell("z"), found.cell("x", "c")] == [
        "1",
        "2.0 (1.0–3.0)",
        "4",
        None,
        None,
    ]
    claim = Claim("x", 2, "p", "x", "b")
    assert claim.row(found)[1:5] == ["≥ 2", "2.0 (1.0–3.0)", "yes", "2026-01-02"]
    assert Claim("x", 1.9, "p", "x", "b", at_most=True).row(found)[3] == "no"
    assert Claim("x", 2, "p", "gone").row(found)[2] == "not measured"
    assert claim.row(None)[2] == "not measured"


def test_the_newest_page_is_that_of_the_last_day(tmp_path):
    for name in ("a_2026-01-02", "a_2026-01-10", "a_b_2026-02-01"):
        (tmp_path / f"{name}.md").write_text(name)
    assert newest(tmp_path, "a").text == "a_2026-01-10"
    assert newest(tmp_path, "c") is None


def test_what_cannot_run_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(every, "_PEERS", tmp_path)
    said = run_small(Small("startup", "", "nobody"), tmp_path, 1)
    assert said == "not measured: peers not installed (`benchmarks/peers/setup.sh nobody`)"
    assert "not finished" in run_small(Small("load_vs_embedding_reader", ""), tmp_path, 0.01)
    assert "ended with 2" in run_small(Small("load_vs_embedding_reader", "--nothing"), tmp_path, 60)
    every.run_all([], tmp_path, 0)
    written = page(tmp_path)
    assert all(f"`{run.module} {run.options}`" in written for run in RUNS)
    assert written.count("the 0 minutes were over") == len(RUNS)
    assert written.count("no result") == len(CLAIMS)
    first = every.last_runs(tmp_path)
    monkeypatch.setattr(every, "run_small", lambda *_: "measured in 1 min")
    every.run_all(["startup"], tmp_path, 1)
    changed = {name for name, it in every.last_runs(tmp_path).items() if it != first[name]}
    assert {name.split()[0] for name in changed} == {"startup"}
