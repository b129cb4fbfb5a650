"""The bodies of requests, and their limits. The OpenAPI document is written from these classes."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

DEEPEST = 10_000  # results of a search that can be paged through
MOST_ROWS = 1_000_000  # of a selection by row numbers
LONGEST_CONDITION = 4_000

Side = Literal["image", "text"]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Term(_Body):
    """One part of a query; exactly one of text, image, key, row and embedding. The query is the sum of all terms."""

    text: str | None = Field(default=None, max_length=10_000)
    image: str | None = Field(default=None, description="An image file, base64.")
    key: str | None = Field(default=None, max_length=10_000)
    shard: str | None = Field(default=None, max_length=10_000, description="The source shard of the key.")
    row: int | None = Field(default=None, ge=0)
    embedding: list[float] | None = Field(default=None, max_length=65_536)
    weight: float = Field(default=1.0, ge=-10, le=10, description="Of its unit embedding; negative for less like this.")

    @model_validator(mode="after")
    def _one(self) -> Term:
        if sum(it is not None for it in (self.text, self.image, self.key, self.row, self.embedding)) != 1:
            raise ValueError("give one of text, image, key, row and embedding")
        return self


class Cut(_Body):
    """The rows that meet a condition, and are in a saved selection, if they are given."""

    where: str = Field(
        default="", max_length=LONGEST_CONDITION, description="As `embedpipe filter` takes it: width >= 256"
    )
    selection: str | None = Field(default=None, max_length=200)


class SearchRequest(_Body):
    """Nearest rows of one side. limit of them from `offset` on."""

    terms: list[Term] = Field(min_length=1, max_length=32)
    modality: Side = "image"
    cut: Cut = Cut()
    min_score: float | None = Field(default=None, ge=-1, le=1)
    offset: int = Field(default=0, ge=0, le=DEEPEST)
    limit: int = Field(default=60, ge=1, le=200)


class RowsRequest(_Body):
    """Rows of a cut, in the order of a column of numbers, or in theirs."""

    cut: Cut = Cut()
    sort: str | None = Field(default=None, max_length=1_000)
    descending: bool = False
    offset: int = Field(default=0, ge=0)
    limit: int = Field(default=60, ge=1, le=200)


class CutRequest(_Body):
    """What a cut keeps and drops, and how the values of some columns are spread in it and in all rows."""

    cut: Cut = Cut()
    columns: list[str] = Field(default_factory=list, max_length=32)
    bins: int = Field(default=40, ge=1, le=200)


class SelectionRequest(_Body):
    """A selection to save: rows by number, or all rows of a cut."""

    name: str = Field(max_length=200)
    rows: list[int] | None = Field(default=None, max_length=MOST_ROWS)
    cut: Cut | None = None
    replace: bool = Field(default=False, description="Write over a selection of that name.")

    @model_validator(mode="after")
    def _one(self) -> SelectionRequest:
        if (self.rows is None) == (self.cut is None):
            raise ValueError("give either rows or cut")
        return self


class KnnRequest(BaseModel):
    """As clip-retrieval's clients send it; what else they send is ignored."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    indice_name: str | None = None
    text: str | None = Field(default=None, max_length=10_000)
    image: str | None = None
    image_url: str | None = None
    embedding_input: list[float] | None = Field(default=None, max_length=65_536)
    modality: Side = "image"
    num_images: int = Field(default=100, ge=1, le=3_000)
    num_result_ids: int | None = Field(default=None, ge=1, le=3_000)
    deduplicate: bool = False
    use_mclip: bool = False


class MetadataRequest(BaseModel):
    """As clip-retrieval's clients send it."""

    model_config = ConfigDict(extra="ignore")

    ids: list[int] = Field(max_length=10_000)
    indice_name: str
