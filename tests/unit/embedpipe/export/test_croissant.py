"""Croissant descriptions of exports, read and validated by mlcroissant, which then reads the rows they describe."""

import json
import logging

import numpy as np
import pandas
import pyarrow.parquet as pq
import pytest

from embedpipe.export import ExportConfig
from embedpipe.export.job import export
from tests.embeddings import write_dataset

ROWS = 12


@pytest.fixture(scope="module")
def emb(tmp_path_factory):
    """A data set with every kind of column."""
    rng = np.random.default_rng(0)
    columns = {
        "rights_creator": ["Ann", None] * (ROWS // 2),
        "has_c2pa": ("bool", [True, False] * (ROWS // 2)),
        "seen": ("int64", list(range(ROWS))),
        'odd "name"': ["x"] * ROWS,
    }
    tokens = [rng.normal(size=(1 + i % 3, 4)) for i in range(ROWS)]
    rows = rng.normal(size=(2, ROWS, 8))
    return write_dataset(tmp_path_factory.mktemp("emb") / "emb", *rows, columns=columns, tokens=tokens, rejects=(1,))


@pytest.mark.parametrize(
    ("to", "name", "options"),
    [
        ("hf", "croissant.json", {"splits": "valid=0.4"}),
        ("parquet", "_croissant.json", {"text_tokens": True}),
        ("parquet", "_croissant.json", {"dtype": "float32"}),
    ],
)
def test_mlcroissant_validates_it_and_reads_the_rows(emb, tmp_path, caplog, to, name, options):
    import mlcroissant

    out = tmp_path / "out"
    export(emb, str(out), ExportConfig(to, **options))
    with caplog.at_level(logging.WARNING):
        described = mlcroissant.Dataset(jsonld=out / name)
    issues = described.metadata.ctx.issues
    assert issues.errors == set()
    # What only who publishes the data can say is missing, and nothing else.
    missing = {
        word
        for word in ("license", "url", "version", "citeAs", "datePublished", "creator")
        for it in issues.warnings
        if word in it
    }
    assert len(missing) >= len(issues.warnings) > 0
    assert "not standard" not in caplog.text
    table = pandas.concat(pandas.read_parquet(path) for path in sorted(out.rglob("*.parquet")))
    names = {field.name for field in described.metadata.record_sets[0].fields}
    assert names == set(table.columns)
    if "text_tokens" not in options:  # lists of lists of any length: no array for it
        records = list(described.records("rows"))
        assert len(records) == ROWS
        found = {record["rows/key"]: record for record in records}
        for row in table.to_dict("records"):
            record = found[row["key"].encode()]
            assert record["rows/seen"] == row["seen"]
            assert np.array_equal(
                np.asarray(record["rows/image_embedding"], np.float32), row["image_embedding"].astype(np.float32)
            )


def test_it_lists_every_file_with_its_checksum_and_answers_what_it_knows(emb, tmp_path):
    import hashlib

    out = tmp_path / "out"
    export(emb, str(out), ExportConfig("hf"))
    document = json.loads((out / "croissant.json").read_text())
    said = {it["contentUrl"]: it["sha256"] for it in document["distribution"] if it["@type"] == "cr:FileObject"}
    there = {str(path.relative_to(out)): path.read_bytes() for path in (out / "data").iterdir()}
    assert said == {name: hashlib.sha256(data).hexdigest() for name, data in there.items()}
    assert document["rai:dataCollectionMissingData"].startswith("1 samples could not be read")
    assert "rights_creator" in " ".join(document["rai:dataLimitations"])
    assert {name for name in document if name.startswith("rai:")} >= {
        "rai:dataPreprocessingProtocol",
        "rai:dataUseCases",
    }


def test_an_edited_description_is_kept_and_folders_open_as_before(emb, tmp_path):
    out = tmp_path / "out"
    export(emb, str(out), ExportConfig("parquet"))
    assert len(pandas.read_parquet(out)) == len(pq.read_table(out)) == ROWS
    (out / "_croissant.json").write_text("mine now")
    export(emb, str(out), ExportConfig("parquet"))
    assert (out / "_croissant.json").read_text() == "mine now"
