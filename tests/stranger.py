"""A data set as a stranger might hand it over: its card names what the stranger likes."""

import dataclasses

from embedpipe import manifest


def names(emb, model=None, pretrained=None, **changes):
    """Have the card of a data set name another model or source. The data set's path, as a string."""
    run = manifest.read_run(str(emb))
    said = {"model": model, "pretrained": pretrained}
    encoder = dataclasses.replace(run.encoder, **{name: value for name, value in said.items() if value is not None})
    manifest.write_run(str(emb), dataclasses.replace(run, encoder=encoder, **changes))
    return str(emb)
