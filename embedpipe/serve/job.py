"""Serve data sets until interrupted."""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .. import files
from ..clip_model.trusted import require_trusted
from ..errors import InputError, MissingExtra, OptionError
from ..index.query_model import query_encoder
from ..load import EmbeddingDataset
from ..load.images.source import sources_of
from .config import ServeConfig, is_loopback
from .query_encoder import SharedEncoder

if TYPE_CHECKING:
    from ..encode import Encoder
    from .service import Service

logger = logging.getLogger("embedpipe")

MOST_CONNECTIONS = 256


def serve(
    paths: str | Sequence[str], config: ServeConfig | None = None, ready: Callable[[str], None] = lambda address: None
) -> None:
    """Serve a page and an API over embedding data sets, until interrupted.

    paths: one data set or several. ready: is called with the address once requests are answered. Raises InputError (no
    such data set, an address that cannot be listened on), OptionError, DatasetError, UntrustedModel, MissingExtra.
    """
    config = config or ServeConfig()
    service = open_service([paths] if isinstance(paths, str) else list(paths), config)
    from .app import application
    from .server import run

    with contextlib.closing(_listening(config)) as listener:
        port = listener.getsockname()[1]
        with contextlib.suppress(KeyboardInterrupt):
            run(application(service, config), listener, lambda: ready(_address(config, port)))


def open_service(paths: Sequence[str], config: ServeConfig) -> Service:
    """Open data sets, their indexes and image shards; the model is loaded when a search needs it. Raises as `serve`."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as problem:
        raise MissingExtra("serving needs Starlette and uvicorn", 'pip install "embedpipe[serve]"') from problem
    from .metrics import Metrics
    from .selections import Selections
    from .served import ServedDataset
    from .service import Service, names_for
    from .thumbnails import Thumbnails

    if not paths:
        raise OptionError("no data set to serve", "Give the folders that `embedpipe encode` made")
    if config.images is not None and len(paths) > 1:
        raise OptionError("`images` goes with one data set", "Serve the others by themselves")
    encoders: dict[str, SharedEncoder] = {}
    served = []
    for name, path in zip(names_for(paths), paths, strict=True):
        dataset = EmbeddingDataset(path)
        dataset.require_rows()
        encoder = encoders.setdefault(_encoder_key(dataset), _encoder(dataset, config))
        pictures = Thumbnails(dataset, config.images, (config.thumbnail_mb << 20) // len(paths))
        selections = Selections(dataset, files.join(config.selections, name))
        served.append(ServedDataset(name, dataset, encoder, pictures, selections, config.exact))
        _warn(served[-1])
    return Service(served, Metrics())


def _encoder_key(dataset: EmbeddingDataset) -> str:
    return dataset.card.fingerprint() if dataset.card.known else dataset.path


def _encoder(dataset: EmbeddingDataset, config: ServeConfig) -> SharedEncoder:
    card = dataset.card.of_encoder()
    if config.no_model or (not card.known and config.model is None):
        return SharedEncoder(None)
    if config.model is None:  # asked now, at the terminal; a request later could ask nobody
        require_trusted(card.model, card.pretrained if config.pretrained is None else "", dataset.path)
    load: Callable[[], Encoder] = functools.partial(
        query_encoder, dataset, config.model, config.pretrained, options=config.options
    )
    return SharedEncoder(load)


def _warn(served: Any) -> None:
    path = served.dataset.path
    for why in served.unsearchable.values():
        if "has no" not in why:  # one side is all that some data sets have
            logger.warning("%s", why)
    refused = any(files.is_local(source) and files.exists(source) for source in sources_of(served.dataset))
    if not served.pictures.there and not refused:  # a place that was not opened was noted when it was not
        logger.warning("%s: its image shards are not where they were, so there are no pictures; see `images`", path)


def _listening(config: ServeConfig) -> socket.socket:
    host = config.host.strip("[]")
    try:
        family = socket.getaddrinfo(host, config.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, config.port), family=family, backlog=MOST_CONNECTIONS)
    except (OSError, OverflowError) as problem:
        said = getattr(problem, "strerror", None) or str(problem)
        raise InputError(
            f"{config.host}:{config.port} cannot be listened on: {said}", "Give another `port`; 0 is any free one"
        ) from problem


def _address(config: ServeConfig, port: int) -> str:
    """What to open in a browser. Without the token, which is the user's to add."""
    if not is_loopback(config.host) and config.allow_origin:
        return f"{config.allow_origin[0]}/"
    name = f"[{config.host.strip('[]')}]" if ":" in config.host else config.host
    return f"http://{name}:{port}/"
