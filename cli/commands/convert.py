"""`embedpipe convert`"""

from __future__ import annotations

from typing import Any

import click

import embedpipe

from ..options import debug_option, json_option, old_dry_run_option, refuse_missing


@click.command()
@click.argument("checkpoint", type=click.Path())
@click.argument("out", type=click.Path(file_okay=False))
@click.option("--version", help="DALLE2-pytorch's that trained it. Default: what the file says.")
@click.option(
    "--weights",
    type=click.Choice(("ema", "model")),
    default="ema",
    show_default=True,
    help="Averaged weights where the file has them, or the last ones.",
)
@click.option("--training-config", type=click.Path(dir_okay=False), help="DALLE2-pytorch's JSON of the training.")
@click.option("--predicts", type=click.Choice(("x0", "v", "noise")), help="What the network gives. Default: x0.")
@click.option("--timesteps", type=click.IntRange(2), help="Of the noise schedule, where the file has none.")
@click.option("--beta-schedule", help="cosine, linear, quadratic, sigmoid or jsd, where the file has none.")
@click.option("--image-embed-scale", type=float, help="What image embeddings were multiplied by. Default: √dim.")
@click.option("--cond-drop-prob", type=click.FloatRange(0, 1), help="Share trained without text. Default: 0.")
@click.option("--self-cond", is_flag=True, default=None, help="It was trained with self-conditioning.")
@click.option("--for", "emb", metavar="EMB", help="A data set of its encoder: evaluate and sample-prior then take OUT.")
@click.option("--text-tokens", is_flag=True, help="With --for: it reads the states of the captions' tokens, too.")
@click.option(
    "--to",
    type=click.Choice(("embedpipe", "diffusers")),
    default="embedpipe",
    show_default=True,
    help="`diffusers` writes an unclip prior (CHECKPOINT is its folder) as diffusers loads it.",
)
@old_dry_run_option
@json_option
@debug_option
def command(
    checkpoint: str,
    out: str,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Convert a prior of DALLE2-pytorch (0.16 and later) or of diffusers to a folder of the form used here.

    CHECKPOINT is what DALLE2-pytorch's trainer or tracker saved, or a state dict: sizes and the noise schedule are read
    off the weights; what no weight says is reported. Or it is a folder of diffusers, a pipeline's or its prior's
    (Karlo, Kandinsky 2, ECLIPSE), with weights as safetensors. Nothing in it is run. Or it is a run of train-prior
    --lora, whose adapters are merged with the weights they belong to. OUT gets config.json, model.safetensors and, of
    DALLE2-pytorch's, conversion.json.

    \b
    embedpipe convert latest.pth prior
    embedpipe convert latest.pth prior --version 1.1.0 --training-config prior_config.json
    embedpipe convert latest.pth prior --for emb --text-tokens
    embedpipe convert kandinsky-2-2-prior prior --for emb
    embedpipe convert lora-run merged
    embedpipe convert prior for-diffusers --to diffusers
    """
    refuse_missing(checkpoint)

    from .. import display

    converted = embedpipe.convert(checkpoint, None if dry_run else out, **options)
    if as_json:
        display.print_json(converted.report())
        return
    said = converted.report()
    network, diffusion = said["network"], said.get("diffusion", {})
    parameters = sum(weight.numel() for weight in converted.prior.parameters())
    if "unclip" in said:
        click.echo(
            f"{out}: unclip prior of {parameters:,} parameters, {network['num_layers']} layers of "
            f"{network['num_attention_heads']} heads, for embeddings of {network['embedding_dim']} values"
            f"{' (nothing written)' if dry_run else ''}"
        )
    else:
        click.echo(
            f"{out}: prior of {parameters:,} parameters, {network['dim']} wide, {network['depth']} layers, "
            f"{network['heads']} heads, {diffusion['timesteps']} timesteps ({diffusion['beta_schedule']}); the "
            f"{said['weights']} weights, read as those of DALLE2-pytorch {said['dalle2_pytorch']}"
            f"{' (nothing written)' if dry_run else ''}"
        )
    for sentence in converted.assumed:
        click.echo(f"assumed: {sentence}")
