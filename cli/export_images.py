"""`embedpipe export --images`"""

from __future__ import annotations

import click

from embedpipe.wording import counted


def run(emb: str, out: str, keys: str | None, data: str | None, dry_run: bool, as_json: bool) -> None:
    """Write the image shards of the rows of `emb` that `keys` names (None: all). data: where the input is now."""
    import numpy as np

    from embedpipe.curate import export_images, plan_images
    from embedpipe.load import EmbeddingDataset
    from embedpipe.subset import read_subset

    from . import display

    dataset = EmbeddingDataset(emb)
    rows = read_subset(dataset, keys) if keys is not None else np.arange(len(dataset))
    if dry_run:
        source = plan_images(dataset, rows, out, data)
        display.print_json({"rows": len(rows), "shards": len(dataset.manifests), "from": source})
        return
    with display.progress("export", "rows") as view:
        report = export_images(dataset, rows, out, data, view)
    if as_json:
        display.print_json(report)
        return
    already = f" ({report.already:,} of them were there already)" if report.already else ""
    size = f"{report.bytes / 1e6:,.1f} MB"
    click.echo(f"{out}: {counted(report.rows, 'sample')} in {counted(report.shards, 'shard')}{already}, {size}")
