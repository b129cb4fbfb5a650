"""`embedpipe encode`"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

import embedpipe
from embedpipe.plural import plural

from ..fields import with_options
from ..options import (
    debug_option,
    dialect_options,
    executor_options,
    json_option,
    max_rejects_option,
    max_sample_seconds_option,
    model_options,
    old_dry_run_option,
    refuse_missing,
    said_of_model,
    too_many_rejects,
    trust_model_option,
    trust_option,
    verbose_option,
)

if TYPE_CHECKING:
    from embedpipe.clip_model.spec import ModelOptions
    from embedpipe.encode.job import EncodeConfig


@click.command()
@click.argument("data")
@click.argument("out")
@click.option("--model", required=True, help="An open_clip name (`embedpipe models`), hf-hub:org/repo, or a folder.")
@click.option(
    "--pretrained", default="", help="A pretrained tag, a checkpoint file, or `random`. Not needed for a folder."
)
@model_options
@click.option("--gpus", type=click.IntRange(0), help="CUDA devices to use. Default: all there are.")
@click.option(
    "--workers-per-gpu",
    type=click.IntRange(1),
    help="Worker processes on each GPU. Default: 2 where it has 32 GiB and 8 cores or more, else 1.",
)
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="CPU workers, with --gpus 0.")
@click.option("--threads", type=click.IntRange(1), help="Threads per worker. Default: the cores, shared out evenly.")
@click.option(
    "--precision",
    default="auto",
    show_default=True,
    help="fp32, bf16, fp16, or auto: bf16 where the hardware multiplies it (CUDA; AVX512-BF16 or AMX), else fp32.",
)
@click.option(
    "--decode",
    type=click.Choice(["exact", "fast", "pillow"]),
    default="exact",
    show_default=True,
    help="exact: JPEGs within a rounding of Pillow; fast: large JPEGs decoded at a fraction; pillow: to the bit.",
)
@click.option(
    "--compile", "compile_model", is_flag=True, help="torch.compile the image tower: slower to start, then faster."
)
@click.option(
    "--batch-size", type=click.IntRange(1), help="Samples per model pass. Default: 512 on a GPU, 64 on the CPU."
)
@click.option("--no-image", is_flag=True, help="Encode captions only.")
@click.option("--no-text", is_flag=True, help="Encode images only; captions are not needed.")
@click.option(
    "--text-tokens",
    is_flag=True,
    help="Store the last hidden states of the captions' tokens, too: for priors and decoders that read them.",
)
@click.option(
    "--reject-cut-captions",
    is_flag=True,
    help="Reject samples whose caption is longer than the model's context length. Default: cut the caption.",
)
@click.option(
    "--caption-key",
    "--caption-col",
    help="The .json field with the caption, also where there is a .txt; of a table, the column. Default: the .txt, or "
    "else the field or column `caption`.",
)
@click.option(
    "--image-member",
    metavar="NAME",
    help="In a tar: which member of a sample is the image, by what follows the first dot, e.g. input.png. "
    "Default: the first image.",
)
@click.option(
    "--caption-member",
    metavar="NAME",
    help="In a tar: which member of a sample is the caption, e.g. outputs.txt. Default: the .txt.",
)
@click.option("--image-col", help="The column of a table that holds image bytes. Default: image.")
@click.option("--key-col", help="The column of a table that holds keys. Default: key, or else the row's number.")
@click.option(
    "--local-root",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="DATA is a table of local paths, relative to itself; read those that lead below DIR.",
)
@click.option(
    "--file-col", help="The column with the local paths. Default: file_name, file, path … whichever there is."
)
@dialect_options
@click.option(
    "--input",
    "input_format",
    default="auto",
    show_default=True,
    help="webdataset, folder (loose files), imagefolder (with metadata.csv), table (parquet), "
    "paths (see --local-root), or auto (detect).",
)
@click.option(
    "--samples-per-shard",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    help="How a folder of loose images, or a table of local paths, is cut into shards.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=100_000_000,
    show_default=True,
    help="Reject images with more pixels, before decoding.",
)
@click.option(
    "--max-sample-bytes",
    type=click.IntRange(1),
    default=1 << 29,
    show_default=True,
    help="Reject larger image files, before reading them.",
)
@max_sample_seconds_option
@click.option(
    "--background",
    metavar="COLOUR",
    help="Background of transparent images: a CSS colour (white, gray, '#ff8800'). Default: white, or as before "
    "where OUT is continued.",
)
@click.option(
    "--embedding-dtype",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="As stored.",
)
@click.option("--format", "storage", default="npy", show_default=True, help="npy, or parquet: one file for each shard.")
@executor_options
@click.option(
    "--shard-of",
    metavar="I/N|auto",
    help="Encode every Nth shard, from number I (0 to N-1) on, while other processes encode the others into the same "
    "OUT. auto: as torchrun, srun or a SLURM job array says.",
)
@click.option("--rate", type=float, help="With --dry-run: samples per second of a worker. Default: of earlier shards.")
@click.option("--price", type=float, help="With --dry-run: what a worker costs in an hour.")
@click.option(
    "--overwrite",
    is_flag=True,
    help="Remove the data set that an earlier run wrote to OUT, and begin again. Other files in OUT stay.",
)
@trust_option("Continue an output begun by version 0.1, building the model as version 0.1 did")
@max_rejects_option(
    "A run that is past hope stops between two shards, before its end: over a count, or over twice a share of at least "
    "1,000 samples. What is committed stays."
)
@verbose_option("A line for each finished shard: which worker, rows, rate, and where its time went.")
@old_dry_run_option
@trust_model_option
@json_option
@debug_option
@click.pass_context
def command(ctx: click.Context, /, data: str, out: str, **options: Any) -> None:
    """Image shards, tables or a folder of images → an embedding data set.

    DATA is a webdataset tar, a folder of tars, a pattern such as 'data/{00000..00099}.tar', the same of parquet tables
    with image bytes, a folder of images with captions (.txt) and metadata (.json) beside them, or with --local-root a
    table that names image files. OUT is made of one committed shard for each input shard; the same command again
    encodes what is missing.

    \b
    embedpipe encode shards emb --model ViT-L-14 --pretrained openai --gpus 8
    embedpipe encode shards emb --model clip-run --gpus 0 --workers 2
    embedpipe encode shards emb --model ViT-B-32 --pretrained laion.pt --like-tag laion2b_s34b_b79k
    embedpipe encode captions.csv emb --local-root photos --model ViT-B-32 --pretrained openai
    embedpipe encode stamps emb --model ViT-B-32 --pretrained openai --background '#202020'
    embedpipe encode s3://bucket/shards s3://bucket/emb --model ViT-L-14 --pretrained openai --executor ray \\
        --address head:6379 --gpus 64
    srun embedpipe encode shards emb --model ViT-L-14 --pretrained openai --shard-of auto
    """
    from embedpipe import manifest
    from embedpipe.clip_model.name import model_folder, refuse_unknown_model
    from embedpipe.clip_model.open_clip_tables import known_name
    from embedpipe.clip_model.spec import resolve_spec

    said = said_of_model(options)
    if options["executor"] != "ray":  # else both may lie on the cluster's machines alone
        refuse_unknown_model(options["model"])
        refuse_missing(data)
        in_tables = model_folder(options["model"]) is None and known_name(options["model"]) is not None
        before = None if options["overwrite"] else manifest.read_run(out)
        # What version 0.1 began goes on in its own way, or not at all: `encode` says which.
        if in_tables and not (before is not None and before.dated):
            resolve_spec(options["model"], options["pretrained"], said)

    from .. import display
    from ..main import EXIT_REJECTS

    config = _config(options, said)
    if options["dry_run"]:
        _print_plan(data, out, config, options["rate"], options["price"])
        return
    with display.progress("encode", verbose=options["verbose"]) as view:
        report = embedpipe.encode(data, out, config, view)
    if options["as_json"]:
        display.print_json(report)
    else:
        _print(out, report)
    # Over the whole output: a bad data set stays bad when the command is run again and finds nothing left to do.
    too_many = too_many_rejects(config.max_rejects, report.rejected, report.rows + report.rejected)
    if report.failed_tasks or too_many:
        ctx.exit(EXIT_REJECTS)


def _config(options: dict[str, Any], said: ModelOptions) -> EncodeConfig:
    return embedpipe.EncodeConfig(
        encoder=embedpipe.EncoderConfig(
            model=options["model"],
            pretrained=options["pretrained"],
            precision=options["precision"],
            dtype=options["embedding_dtype"],
            decode=options["decode"],
            compile=options["compile_model"],
            options=said,
            background=options["background"],
        ),
        stage=embedpipe.BatchingConfig(
            images=not options["no_image"],
            texts=not options["no_text"],
            text_tokens=options["text_tokens"],
            reject_cut_captions=options["reject_cut_captions"],
            batch_size=options["batch_size"],
            decode_threads=options["threads"],
            max_pixels=options["max_pixels"],
            max_sample_seconds=options["max_sample_seconds"],
        ),
        input=options["input_format"],
        caption_key=options["caption_key"],
        samples_per_shard=options["samples_per_shard"],
        format=options["storage"],
        executor=options["executor"],
        gpus=options["gpus"],
        workers_per_gpu=options["workers_per_gpu"],
        workers=options["workers"],
        threads_per_worker=options["threads"],
        image_member=options["image_member"],
        caption_member=options["caption_member"],
        max_sample_bytes=options["max_sample_bytes"],
        image_column=options["image_col"],
        local_root=options["local_root"],
        file_column=options["file_col"],
        quoting=options["quoting"],
        delimiter=options["delimiter"],
        encoding=options["encoding"],
        key_column=options["key_col"],
        overwrite=options["overwrite"],
        trust_old_card=options["trust_old_card"],
        max_rejects=options["max_rejects"],
        cluster=embedpipe.Cluster(options["address"]),
        part=None if options["shard_of"] is None else embedpipe.part_of(options["shard_of"], os.environ),
    )


def _print_plan(data: str, out: str, config: Any, rate: float | None, price: float | None) -> None:
    from .. import display

    change, todo = embedpipe.plan_encode(data, out, config)
    if config.gpus == 0:  # else it depends on the machine that encodes
        config = replace(config, stage=replace(config.stage, batch_size=config.stage.samples_at_once))
    workers = (config.gpus or 0) * (config.workers_per_gpu or 1) or config.workers
    ahead = embedpipe.forecast(data, out, [change.shards[number] for number in todo], workers, rate, price)
    display.print_json(
        {
            "shards": len(change.shards),
            "to_encode": todo,
            "forecast": display.plain(ahead),
            "config": display.plain(config),
        }
    )


def _print(out: str, report: Any) -> None:
    from embedpipe import manifest
    from embedpipe.clip_model.encoder_card import OPEN_CLIP_RULES, rules_in_words

    from .. import display

    run = manifest.read_run(out)
    if run is not None and run.encoder is not None and run.encoder.rules == OPEN_CLIP_RULES:
        click.echo(
            f"note: {out} was begun with other rules for images and keeps them: {rules_in_words(OPEN_CLIP_RULES)}",
            err=True,
        )

    done = report.report
    for name in report.redone:
        click.echo(f"warning: the files of {name} were missing or cut short; it was encoded again", err=True)
    for name in report.vanished:
        click.echo(f"warning: input shard {name} is no longer there; what was encoded of it is kept", err=True)
    for given_up in report.failed_tasks:
        click.echo(with_options(f"warning: {given_up.task.name} was set aside: {given_up.reason}"), err=True)
    if not done.tasks and not report.failed_tasks:
        click.echo(f"{out}: nothing to do, {plural(report.already, 'shard')} encoded already")
        return
    already = f" ({report.already:,} encoded before)" if report.already else ""
    rate = f"{report.samples_per_s:,.1f}/s"
    rows = f"{plural(done.rows, 'row')} in {plural(done.tasks, 'shard')}{already}"
    click.echo(f"{out}: {rows}, {display.seconds(report.seconds)}, {rate}")
    if report.time_share:
        click.echo(f"time: {display.shares(report.time_share)}")
    if done.rejects:
        display.print_table(["rejected because", "samples"], sorted(done.rejects.items(), key=lambda item: -item[1]))
    display.print_passed_over(report.listing, done.accounts)
    if done.cut.captions:
        click.echo(f"note: {done.cut.said(report.context_length)}; see the column text_tokens_cut", err=True)
    if torn := done.rejects.get("shard_truncated"):
        click.echo(
            f"warning: {plural(torn, 'input shard')} cut short or damaged; what came before is encoded, {out}/errors "
            "names them",
            err=True,
        )
    if done.rejects.get("caption_missing", 0) > done.rows:
        click.echo("note: most samples have no caption; --no-text encodes images without", err=True)
