"""Tables of text and parquet, row by row: csv, tsv, txt, json, jsonl, parquet."""
