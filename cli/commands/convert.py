"""`embedpipe convert`"""

from __future__ import annotations

from pathlib import Path

import click

from ..options import debug_option, dry_run_option, json_option


@click.command()
@click.argument("checkpoint", type=click.Path(dir_okay=False))
@click.argument("out", type=click.Path(file_okay=False))
@click.option("--version", "told_version", help="DALLE2-pytorch's that trained it. Default: what the file says.")
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
@dry_run_option
@json_option
@debug_option
def command(
    checkpoint: str,
    out: str,
    told_version: str | None,
    weights: str,
    training_config: str | None,
    predicts: str | None,
    timesteps: int | None,
    beta_schedule: str | None,
    image_embed_scale: float | None,
    cond_drop_prob: float | None,
    self_cond: bool | None,
    emb: str | None,
    text_tokens: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Convert a prior of DALLE2-pytorch (0.16 and later) to a folder of the form used here.

    CHECKPOINT is what its trainer or tracker saved, or a state dict. Nothing in it is run. Sizes and the noise schedule
    are read off the weights; what no weight says is reported. OUT gets config.json, model.safetensors and
    conversion.json.

    \b
    embedpipe convert latest.pth prior
    embedpipe convert latest.pth prior --version 1.1.0 --training-config prior_config.json
    embedpipe convert latest.pth prior --for emb --text-tokens
    """
    from dalle2_core.convert import ConvertConfig, convert_prior, save_converted
    from embedpipe.unclip import convert

    from .. import display

    config = ConvertConfig(
        version=told_version,
        weights=weights,  # type: ignore[arg-type]  # click has checked the choice
        predicts=predicts,  # type: ignore[arg-type]
        timesteps=timesteps,
        beta_schedule=beta_schedule,
        image_embed_scale=image_embed_scale,
        cond_drop_prob=cond_drop_prob,
        self_cond=self_cond,
        training_config=None if training_config is None else Path(training_config),
    )
    converted = convert_prior(checkpoint, config)
    encoder = None if emb is None else convert.encoder_record(emb, converted.prior.image_embed_dim)
    if not dry_run:
        save_converted(converted, checkpoint, out)
        if encoder is not None:
            convert.write_converted_run(out, encoder, text_tokens)
    if as_json:
        display.print_json(converted.report())
        return
    network, diffusion = converted.prior.net.config, converted.prior.config
    parameters = sum(weight.numel() for weight in converted.prior.parameters())
    click.echo(
        f"{out}: prior of {parameters:,} parameters, {network.dim} wide, {network.depth} layers, "
        f"{network.heads} heads, {diffusion.timesteps} timesteps ({diffusion.beta_schedule}); the {converted.weights} "
        f"weights, read as those of DALLE2-pytorch {converted.version}{' (nothing written)' if dry_run else ''}"
    )
    for said in converted.assumed:
        click.echo(f"assumed: {said}")
