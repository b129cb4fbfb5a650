"""`embedpipe encode`"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from .options import debug_option, dry_run_option, json_option, max_rejects_option


@click.command()
@click.argument("data")
@click.argument("out")
@click.option("--model", required=True, help="An open_clip name (`embedpipe models`), hf-hub:org/repo, or a folder.")
@click.option(
    "--pretrained", default="", help="A pretrained tag, a checkpoint file, or `random`. Not needed for a folder."
)
@click.option("--gpus", type=click.IntRange(0), help="CUDA devices, one worker each. Default: all there are.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="CPU workers, with --gpus 0.")
@click.option("--threads", type=click.IntRange(1), help="Threads per worker. Default: the cores, shared out evenly.")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Samples per model pass.")
@click.option("--no-image", is_flag=True, help="Encode captions only.")
@click.option("--no-text", is_flag=True, help="Encode images only; captions are not needed.")
@click.option(
    "--caption-key", default="caption", show_default=True, help="The .json field with the caption if no .txt is there."
)
@click.option(
    "--input", "input_format", default="auto", show_default=True, help="webdataset, folder, or auto to find out."
)
@click.option(
    "--samples-per-shard",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    help="How a folder of loose images is cut into shards.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=100_000_000,
    show_default=True,
    help="Images with more are rejected, before decoding.",
)
@click.option(
    "--embedding-dtype",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="As stored.",
)
@click.option("--format", "storage", default="npy", show_default=True, help="Storage format.")
@click.option("--executor", default="auto", show_default=True, help="inline, processes, or auto.")
@max_rejects_option
@dry_run_option
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context,
    data: str,
    out: str,
    model: str,
    pretrained: str,
    gpus: int | None,
    workers: int,
    threads: int | None,
    batch_size: int,
    no_image: bool,
    no_text: bool,
    caption_key: str,
    input_format: str,
    samples_per_shard: int,
    max_pixels: int,
    embedding_dtype: str,
    storage: str,
    executor: str,
    max_rejects: Callable[[int, int], bool] | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Image shards or a folder of images → an embedding data set.

    DATA is a webdataset tar, a folder of tars, a pattern such as 'data/{00000..00099}.tar', or a folder of images with
    captions (.txt) and metadata (.json) beside them. OUT is made of one committed shard for each input shard; the same
    command again encodes what is missing.

    \b
    embedpipe encode shards emb --model ViT-L-14 --pretrained openai --gpus 8
    embedpipe encode shards emb --model clip-run --gpus 0 --workers 2
    """
    from embedpipe.encode.base import EncoderConfig
    from embedpipe.encode.job import EncodeConfig, encode, plan_encode
    from embedpipe.encode.stage import StageConfig

    from . import display
    from .main import EXIT_REJECTS

    config = EncodeConfig(
        encoder=EncoderConfig(model=model, pretrained=pretrained, dtype=embedding_dtype),
        stage=StageConfig(
            images=not no_image,
            texts=not no_text,
            batch_size=batch_size,
            decode_threads=threads or 2,
            max_pixels=max_pixels,
        ),
        input=input_format,
        caption_key=caption_key,
        samples_per_shard=samples_per_shard,
        format=storage,
        executor=executor,
        gpus=gpus,
        workers=workers,
        threads_per_worker=threads,
    )
    if dry_run:
        change, todo = plan_encode(data, out, config)
        display.print_json({"shards": len(change.shards), "to_encode": todo, "config": display.plain(config)})
        return
    with display.progress("encode") as view:
        report = encode(data, out, config, view)
    if as_json:
        display.print_json(report)
    else:
        _print(out, report)
    # Over the whole output: a bad data set stays bad when the command is run again and finds nothing left to do.
    if report.set_aside or (max_rejects is not None and max_rejects(report.rejected, report.rows + report.rejected)):
        ctx.exit(EXIT_REJECTS)


def _print(out: str, report: Any) -> None:
    from . import display

    done = report.report
    for name in report.redone:
        click.echo(f"warning: the files of {name} were missing or cut short; it was encoded again", err=True)
    for name in report.vanished:
        click.echo(f"warning: input shard {name} is no longer there; what was encoded of it is kept", err=True)
    for given_up in report.set_aside:
        click.echo(f"warning: {given_up.task.name} was set aside: {given_up.reason}", err=True)
    if not done.tasks and not report.set_aside:
        click.echo(f"{out}: nothing to do, all {report.already} shards are encoded")
        return
    already = f" ({report.already} shards were there already)" if report.already else ""
    rate = f"{(done.rows + done.rejected) / max(report.seconds, 1e-9):,.1f}/s"
    click.echo(f"{out}: {done.rows:,} rows in {done.tasks} shards{already}, {display.seconds(report.seconds)}, {rate}")
    if done.rejects:
        display.table(["rejected because", "samples"], sorted(done.rejects.items(), key=lambda item: -item[1]))
