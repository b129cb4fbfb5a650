"""`embedpipe models`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..options import debug_option, json_option

if TYPE_CHECKING:
    from embedpipe.clip_model.architecture import ModelSpec

_COLUMNS = ("activation", "mean", "std", "interpolation", "resize mode", "weights")


@click.command()
@click.argument("name", required=False)
@click.argument("tag", required=False)
@json_option
@debug_option
def command(name: str | None, tag: str | None, as_json: bool) -> None:
    """List the models that `encode` knows and their pretrained tags, or show what the tags of one model mean.

    With the NAME of a model: its image size, embedding width and context length, and for each tag (or for TAG) the
    activation and preprocessing that the weights were trained with, and where the weights are. With part of a name:
    the models whose names contain it. encode also takes hf-hub:org/repo and folders written by train-clip.

    \b
    embedpipe models ViT-L
    embedpipe models ViT-L-14
    embedpipe models ViT-L-14 openai --json
    """
    from embedpipe.clip_model import open_clip_tables
    from embedpipe.errors import InputError, did_you_mean

    from .. import display

    model = open_clip_tables.known_name(name) if name is not None else None
    if model is not None:
        _show(model, tag, as_json)
        return
    if tag is not None:
        raise InputError(f"no model {name!r}", did_you_mean(str(name), open_clip_tables.model_configs()))
    known = {
        model: list(open_clip_tables.pretrained_tags().get(model, {})) for model in open_clip_tables.model_configs()
    }
    found = {model: tags for model, tags in known.items() if name is None or name.lower() in model.lower()}
    if not found:
        assert name is not None
        raise InputError(f"no model with {name!r} in its name", did_you_mean(name, known))
    if as_json:
        display.print_json(found)
    else:
        display.print_table(["model", "pretrained tags"], [(model, ", ".join(tags)) for model, tags in found.items()])


def _show(model: str, tag: str | None, as_json: bool) -> None:
    """What the tags of a model mean, or one of them."""
    from embedpipe.clip_model import open_clip_tables
    from embedpipe.clip_model.spec import RANDOM, resolve_spec
    from embedpipe.errors import ModelError, did_you_mean

    from .. import display

    tags = list(open_clip_tables.pretrained_tags().get(model, {}))
    if tag is not None and open_clip_tables.tag_of(model, tag) is None:
        raise ModelError(f"{model}: no pretrained tag {tag!r}", did_you_mean(tag, tags) if tags else "It has none")
    chosen = [tag.lower().replace("-", "_")] if tag is not None else tags
    found = {name: _facts(resolve_spec(model, name), open_clip_tables.tag_of(model, name) or {}) for name in chosen}
    architecture = _architecture(resolve_spec(model, RANDOM))
    if as_json:
        display.print_json({"model": model, **architecture, "tags": found})
        return
    said = architecture
    click.echo(
        f"{model}: images of {'×'.join(map(str, said['image_size']))}, embeddings of {said['dim']} values, captions up "
        f"to {said['context_length']} tokens, cleaned by {said['captions']}"
    )
    if not tags:
        click.echo("it has no tags: give a checkpoint file with --pretrained, or `random`")
        return
    cells = {column: [_cell(facts[column.replace(" ", "_")]) for facts in found.values()] for column in _COLUMNS}
    # What all tags have in common needs no column of its own: the weights' names need the room.
    shared = {column: values[0] for column, values in cells.items() if len(set(values)) == 1}
    if shared:
        which = "all tags" if len(found) > 1 else next(iter(found))
        click.echo(f"{which}: {', '.join(f'{column} {value}' for column, value in shared.items())}")
    columns = [column for column in _COLUMNS if column not in shared]
    if columns:
        display.print_table(["tag", *columns], list(zip(found, *(cells[column] for column in columns), strict=True)))
    if other := open_clip_tables.sibling_model(model):
        click.echo(f"see also {other}: the same architecture with the other activation")


def _architecture(spec: ModelSpec) -> dict[str, Any]:
    return {
        "image_size": list(spec.size),
        "dim": spec.dim,
        "context_length": spec.context_length,
        "captions": spec.text_preprocess.clean,
        "needs_extra": "hf" if spec.needs_transformers else None,
    }


def _facts(spec: ModelSpec, said: Any) -> dict[str, Any]:
    assert spec.preprocess is not None
    towers = {spec.image_tower.activation, spec.text_tower.activation} - {None}
    return {
        "activation": " and ".join(sorted(str(tower) for tower in towers)) or "of another library",
        "image_activation": spec.image_tower.activation,
        "text_activation": spec.text_tower.activation,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in spec.preprocess.items()},
        "weights": said.get("hf_hub", "").rstrip("/") or said.get("url", ""),
    }


def _cell(value: Any) -> str:
    from embedpipe.plural import in_full

    return in_full(value) if isinstance(value, list) else str(value)
