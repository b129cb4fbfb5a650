"""`embedpipe models`"""

from __future__ import annotations

import click

from .options import debug_option, json_option


@click.command()
@click.argument("name", required=False)
@json_option
@debug_option
def command(name: str | None, as_json: bool) -> None:
    """List the models `encode` knows, and their pretrained tags.

    With NAME: those whose name holds it. Besides these, encode takes hf-hub:org/repo and a folder of train-clip.

    \b
    embedpipe models ViT-L
    """
    from embedpipe.encode.open_clip import known_models
    from embedpipe.errors import InputError, did_you_mean

    from . import display

    known = known_models()
    found = {model: tags for model, tags in known.items() if name is None or name.lower() in model.lower()}
    if not found:
        assert name is not None
        raise InputError(f"no model with {name!r} in its name", did_you_mean(name, known))
    if as_json:
        display.print_json(found)
    else:
        display.table(["model", "pretrained tags"], [(model, ", ".join(tags)) for model, tags in found.items()])
