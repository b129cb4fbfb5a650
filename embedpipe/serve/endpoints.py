"""All addresses of the server, in one table: the routes and the OpenAPI document are both made from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from starlette.responses import PlainTextResponse, Response

from ..errors import InputError
from . import clip_retrieval
from .messages import (
    CutRequest,
    KnnRequest,
    MetadataRequest,
    RowsRequest,
    SearchRequest,
    SelectionRequest,
)
from .service import NoSuchThing, Service

_DIGITS = 18  # of a number that fits into 64 bits


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, read: the parts of its address, its parameters and its body."""

    place: Mapping[str, str]
    parameters: Mapping[str, str]
    body: Any = None

    def row(self) -> int:
        """The row in the address. Raises NoSuchThing for what is no number."""
        text = self.place["row"]
        if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS):
            raise NoSuchThing(f"no row {text[:20]!r}", "Rows count from 0")
        return int(text)

    def whole_number(self, name: str, default: int, least: int, most: int) -> int:
        """A parameter. Raises InputError for one that is no number, or outside."""
        text = self.parameters.get(name, str(default))
        if not (text.isascii() and text.isdecimal()) or len(text) > _DIGITS or not least <= int(text) <= most:
            raise InputError(f"{name}: {text[:20]!r} is not a number from {least} to {most}")
        return int(text)

    def side(self) -> Any:
        """The parameter `modality`. Raises InputError for another than image and text."""
        text = self.parameters.get("modality", "image")
        if text not in ("image", "text"):
            raise InputError(f"modality: {text[:20]!r} is neither image nor text")
        return text


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One method of one address. body: the class of its JSON body. parameters: of the query string, with what they are.

    strict: the body must be declared as JSON.
    """

    method: str
    path: str
    name: str
    summary: str
    answer: Callable[[Service, Asked], Any]
    body: type[BaseModel] | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    media: str = "application/json"
    strict: bool = True


def _metrics(service: Service, asked: Asked) -> Response:
    return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")


_ONE = "/api/datasets/{dataset}"
_ROW = _ONE + "/rows/{row}"

ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(
        "GET", "/api/datasets", "datasets", "Data sets, their columns and what can be asked of them.",
        lambda service, asked: service.datasets(),
    ),
    Endpoint(
        "POST", f"{_ONE}/search", "search",
        "Rows nearest to a mix of texts, pictures, keys, rows and embeddings, positive and negative.",
        lambda service, asked: service.search(asked.place["dataset"], asked.body), SearchRequest,
    ),
    Endpoint(
        "POST", f"{_ONE}/rows", "rows", "A page of the rows that a cut keeps.",
        lambda service, asked: service.rows(asked.place["dataset"], asked.body), RowsRequest,
    ),
    Endpoint(
        "GET", _ROW, "row", "One row: all of its metadata, and where it lies.",
        lambda service, asked: service.row(asked.place["dataset"], asked.row()),
    ),
    Endpoint(
        "GET", f"{_ROW}/neighbours", "neighbours", "The rows nearest to one.",
        lambda service, asked: service.neighbours(
            asked.place["dataset"], asked.row(), asked.side(), asked.whole_number("limit", 12, 1, 200)
        ),
        parameters={"modality": "image or text", "limit": "how many, 1 to 200"},
    ),
    Endpoint(
        "GET", f"{_ROW}/picture", "picture", "The picture of a row as a JPEG; 404 where there is none.",
        lambda service, asked: service.picture(
            asked.place["dataset"], asked.row(), asked.whole_number("side", 256, 1, 4096)
        ),
        parameters={"side": "the longest side in pixels: 128, 256, 512 or 1024"}, media="image/jpeg",
    ),
    Endpoint(
        "POST", f"{_ONE}/cut", "cut",
        "How many rows a cut keeps and drops, with histograms of numbers and counts of categories, inside and in all.",
        lambda service, asked: service.cut(asked.place["dataset"], asked.body), CutRequest,
    ),
    Endpoint(
        "GET", f"{_ONE}/selections", "selections", "Saved selections.",
        lambda service, asked: service.selections(asked.place["dataset"]),
    ),
    Endpoint(
        "POST", f"{_ONE}/selections", "select", "Save a selection: rows by number, or all rows of a cut.",
        lambda service, asked: service.select(asked.place["dataset"], asked.body), SelectionRequest,
    ),
    Endpoint(
        "GET", f"{_ONE}/selections/{{selection}}", "selected", "The row numbers of a selection.",
        lambda service, asked: service.selected(asked.place["dataset"], asked.place["selection"]),
    ),
    Endpoint(
        "POST", "/knn-service", "knn_service", "clip-retrieval's search.",
        lambda service, asked: clip_retrieval.knn(service, asked.body), KnnRequest, strict=False,
    ),
    Endpoint(
        "GET", "/indices-list", "indices_list", "clip-retrieval's list of indices.",
        lambda service, asked: clip_retrieval.indices_list(service),
    ),
    Endpoint(
        "POST", "/metadata", "metadata", "clip-retrieval's metadata of some rows.",
        lambda service, asked: clip_retrieval.metadata_by_id(service, asked.body), MetadataRequest, strict=False,
    ),
    Endpoint("GET", "/metrics", "metrics", "Counts and times, for Prometheus.", _metrics, media="text/plain"),
)  # fmt: skip
