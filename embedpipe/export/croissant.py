"""A Croissant description of an export (MLCommons, version 1.1, with its vocabulary of responsible AI).

Catalogues and `mlcroissant` read it: which files there are, with their checksums, and which columns they have. Of the
questions of responsible AI, those are answered that the data set itself answers; the others are for who publishes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .. import files
from ..load import EmbeddingDataset
from ..manifest import FileRecord, ShardManifest
from ..plural import in_full
from .dataset_card import public_name

_CONFORMS = ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
_PARQUET = "application/x-parquet"
_SET, _RECORDS = "parquet-files", "rows"
_RIGHTS = (
    "rights_creator", "rights_credit", "rights_copyright", "rights_licence", "rights_terms", "rights_data_mining",
    "digital_source_type", "has_c2pa",
)  # fmt: skip
_MEANINGS = {
    "image_embedding": "CLIP embedding of the image",
    "text_embedding": "CLIP embedding of the caption",
    "text_tokens": "states of the caption's tokens in the text encoder",
    "key": "of the sample, unique together with src_shard",
    "caption": "the text beside the image",
    "url": "where the image was found",
    "sha256": "of the stored image's bytes",
    "similarity": "cosine of image and text embedding",
    "rights_data_mining": "what the image file states of data mining, in the vocabulary of PLUS",
}
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def write_croissant(
    out: str, name: str, dataset: EmbeddingDataset, written: Sequence[ShardManifest], includes: str
) -> None:
    """Write the description `name` of the parts of an export, whose files `includes` matches.

    An existing one, possibly edited, is kept: the files of an export do not change.
    """
    location = files.join(out, name)
    records = [record for entry in written for record in entry.files]
    if files.exists(location) or not records:
        return
    with files.reading(files.join(out, records[0].path)) as stream:
        schema = pq.read_schema(stream)
    document = describe_export(dataset, schema, records, includes)
    files.write_bytes(location, (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())


def describe_export(
    dataset: EmbeddingDataset, schema: pa.Schema, records: Sequence[FileRecord], includes: str
) -> dict[str, Any]:
    """The description as JSON-LD."""
    card = dataset.card
    model = " ".join(map(public_name, (card.model, card.pretrained))).strip()
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": _CONFORMS,
        "name": f"embeddings-{dataset.card.fingerprint()[:12]}",
        "description": f"CLIP embeddings of images and captions, {card.dim} numbers each, made by {model}.",
        "distribution": [*map(_file_object, records), _file_set(includes)],
        "recordSet": [_record_set(schema)],
        **_responsible(dataset, schema, model),
    }


def _file_object(record: FileRecord) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": record.path,
        "name": record.path,
        "contentUrl": record.path,
        "contentSize": f"{record.bytes} B",
        "encodingFormat": _PARQUET,
        "sha256": record.sha256,
    }


def _file_set(includes: str) -> dict[str, Any]:
    """The same files, as one table. In no container: they lie in the folder of the description."""
    return {
        "@type": "cr:FileSet",
        "@id": _SET,
        "name": _SET,
        "encodingFormat": _PARQUET,
        "includes": includes,
    }


def _record_set(schema: pa.Schema) -> dict[str, Any]:
    return {"@type": "cr:RecordSet", "@id": _RECORDS, "name": _RECORDS, "field": list(_fields(schema))}


def _fields(schema: pa.Schema) -> Iterator[dict[str, Any]]:
    """Each column under an id of its own, without the characters that an id may not have."""
    taken: set[str] = set()
    for field in schema:
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", field.name) or "_"
        while plain in taken:
            plain += "_"
        taken.add(plain)
        yield _field(field, f"{_RECORDS}/{plain}")


def _field(field: pa.Field, identifier: str) -> dict[str, Any]:
    kind, shape = field.type, []
    while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        shape.append(str(kind.list_size) if pa.types.is_fixed_size_list(kind) else "-1")
        kind = kind.value_type
    array = {"isArray": True, "arrayShape": ",".join(shape)} if shape else {}
    meaning = {"description": _MEANINGS[field.name]} if field.name in _MEANINGS else {}
    return {
        "@type": "cr:Field",
        "@id": identifier,
        "name": field.name,
        **meaning,
        "dataType": _data_type(kind),
        **array,
        "source": {"fileSet": {"@id": _SET}, "extract": {"column": field.name}},
    }


def _data_type(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_integer(kind):
        return "sc:Integer"
    return "sc:Float" if pa.types.is_floating(kind) else "sc:Text"


def _responsible(dataset: EmbeddingDataset, schema: pa.Schema, model: str) -> dict[str, Any]:
    """What the data set itself can answer of the questions of responsible AI."""
    card, spec = dataset.card, dataset.card.preprocess
    rejected = sum(entry.rows_rejected for entry in dataset.manifests)
    dropped = sum(entry.rows_dropped for entry in dataset.manifests)
    stated = [name for name in _RIGHTS if name in schema.names]
    limits = [
        "Embeddings repeat what the encoder learnt from its own training data, its errors and biases among it.",
        f"Captions beyond {card.context_length} tokens are cut.",
    ]
    if stated:
        limits.append(
            f"What image files state of their rights is in {', '.join(stated)}; null says that a file states nothing, "
            "not that anything is allowed."
        )
    return {
        "rai:dataCollection": "Pairs of images and captions, each identified by src_shard and key, and by url where "
        "one is known. The licence of the images is not known.",
        "rai:dataCollectionMissingData": f"{rejected:,} samples could not be read, decoded or encoded; {dropped:,} "
        "were left out by a selection or taken down. Neither has a row.",
        "rai:dataPreprocessingProtocol": [
            f"Images: {spec.size[0]} × {spec.size[1]} px, {spec.resize_mode}, {spec.interpolation}, "
            f"mean {in_full(spec.mean)}, std {in_full(spec.std)}.",
            f"Encoded by {model} (sha256 of its weights {card.weights_sha256}) in {card.precision}, "
            f"{'L2-normalised' if card.normalised else 'not normalised'}, fingerprint {card.fingerprint()}.",
        ],
        "rai:dataLimitations": limits,
        "rai:dataUseCases": "Search by text or image, deduplication, filtering, training of models on embeddings.",
        "rai:personalSensitiveInformation": "Not looked for. Captions, urls and images may hold personal data, and "
        "embeddings of pictures of people can be used to find more pictures of them.",
    }
