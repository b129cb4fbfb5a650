"""Measurements of embedpipe: one script, one question. `benchmarks/README.md` says how to run them."""
