"""`embedpipe dedup`: what it prints, as a table and as JSON."""

import json

import numpy as np
from click.testing import CliRunner
from embedpipe_cli.main import cli

from tests import embeddings


def data_set(folder):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(30, 8))
    image[20] = image[3]
    return embeddings.write_dataset(folder, image, rng.normal(size=(30, 8)))


def test_it_says_what_stays_and_where_to_look(tmp_path):
    done = CliRunner().invoke(cli, ["dedup", data_set(tmp_path / "emb"), str(tmp_path / "out"), "--threshold", "0.999"])
    assert done.exit_code == 0, done.output
    assert "29 of 30 rows kept, 1 dropped at a cosine of 0.999" in done.output
    assert "pairs.html" in done.output
    assert "0.95" in done.output


def test_json_is_the_report(tmp_path):
    done = CliRunner().invoke(cli, ["dedup", data_set(tmp_path / "emb"), str(tmp_path / "out"), "--json"])
    report = json.loads(done.stdout)
    assert (report["rows"], report["kept"] + report["dropped"]) == (30, 30)
    kept = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report == {name: kept[name] for name in report}
