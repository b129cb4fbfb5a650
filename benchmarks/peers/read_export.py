"""Opens an export with the program it is for, in that program's own environment, and compares every row by its key.

    <python of the environment> read_export.py READER OUT TRUTH.npz [IMAGES]

Prints one JSON object: what was checked, with which versions. It knows nothing of embedpipe; TRUTH.npz holds arrays
key, image, text and caption of the data set that was exported.
"""

import contextlib
import glob
import importlib.metadata
import io
import json
import os
import subprocess
import sys
import tempfile
import warnings

import numpy as np


class Truth:
    """What every row must be; `check` counts the rows that were compared."""

    def __init__(self, path):
        stored = np.load(path)
        self.keys = stored["key"].tolist()
        self.place = {key: i for i, key in enumerate(self.keys)}
        self.sides = {side: stored[side].astype(np.float32) for side in ("image", "text")}
        self.captions = stored["caption"].tolist()

    def check(self, keys, captions=None, every=True, **sides):
        keys = list(keys)
        assert len(set(keys)) == len(keys), "a key came twice"
        assert not every or sorted(keys) == sorted(self.keys), f"{len(keys)} of {len(self.keys)} keys"
        places = [self.place[key] for key in keys]
        for side, rows in sides.items():
            assert np.array_equal(np.asarray(rows, np.float32), self.sides[side][places]), side
        assert captions is None or list(captions) == [self.captions[place] for place in places]
        return len(keys)

    def check_in_order(self, **sides):
        for side, rows in sides.items():
            assert np.array_equal(np.asarray(rows, np.float32), self.sides[side]), side
        return len(self.keys)


def hugging_face(out, truth):
    import datasets

    with tempfile.TemporaryDirectory() as cache:
        found = datasets.load_dataset(out, cache_dir=cache)
        table = datasets.concatenate_datasets(list(found.values())).with_format("arrow")[:].to_pydict()
        return {
            "rows": truth.check(
                table["key"], table["caption"], image=table["image_embedding"], text=table["text_embedding"]
            ),
            "splits": {name: len(split) for name, split in found.items()},
            "feature": str(found["train"].features["image_embedding"]),
        }


def hugging_face_streaming(out, truth):
    import datasets

    rows = [row for split in datasets.load_dataset(out, streaming=True).values() for row in split]
    sides = {side: [row[f"{side}_embedding"] for row in rows] for side in ("image", "text")}
    return {"rows": truth.check([row["key"] for row in rows], [row["caption"] for row in rows], **sides)}


def lance(out, truth):
    import lance

    table = lance.dataset(f"{out}/embeddings.lance").to_table()
    columns = {side: table[f"{side}_embedding"].to_pylist() for side in ("image", "text")}
    return {"rows": truth.check(table["key"].to_pylist(), table["caption"].to_pylist(), **columns)}


def lancedb(out, truth):
    import lancedb

    table = lancedb.connect(out).open_table("embeddings")
    nearest = table.search(truth.sides["image"][5], vector_column_name="image_embedding").limit(1).to_list()
    assert nearest[0]["key"] == truth.keys[5], nearest
    stored = table.to_arrow()
    columns = {side: stored[f"{side}_embedding"].to_pylist() for side in ("image", "text")}
    return {"rows": truth.check(stored["key"].to_pylist(), stored["caption"].to_pylist(), **columns)}


def _read(**options):
    from embedding_reader import EmbeddingReader

    reader = EmbeddingReader(**options)
    batches = list(reader(batch_size=100, start=0, end=reader.count, show_progress=False))
    import pandas as pd

    return np.concatenate([rows for rows, _ in batches]), pd.concat([meta for _, meta in batches])


def embedding_reader_npy(out, truth):
    image, _ = _read(embeddings_folder=f"{out}/img_emb", file_format="npy")
    text, _ = _read(embeddings_folder=f"{out}/text_emb", file_format="npy")
    return {"rows": truth.check_in_order(image=image, text=text)}


def embedding_reader_parquet_npy(out, truth):
    options = {"file_format": "parquet_npy", "metadata_folder": f"{out}/metadata", "meta_columns": ["key", "caption"]}
    for side, folder in (("image", "img_emb"), ("text", "text_emb")):
        rows, meta = _read(embeddings_folder=f"{out}/{folder}", **options)
        checked = truth.check(meta["key"], meta["caption"], **{side: rows})
    return {"rows": checked}


def embedding_reader_parquet(out, truth):
    for side in ("image", "text"):
        options = {"embedding_column": f"{side}_embedding", "meta_columns": ["key", "caption"]}
        rows, meta = _read(embeddings_folder=out, file_format="parquet", **options)
        checked = truth.check(meta["key"], meta["caption"], **{side: rows})
    return {"rows": checked}


def pandas(out, truth):
    import pandas as pd

    table = pd.read_parquet(out)
    sides = {side: np.stack(table[f"{side}_embedding"]) for side in ("image", "text")}
    return {"rows": truth.check(table["key"], table["caption"], **sides)}


def duckdb(out, truth):
    import duckdb

    found = duckdb.sql(f"SELECT key, caption, image_embedding, text_embedding FROM '{out}/*.parquet'").fetchall()
    keys, captions, image, text = zip(*found, strict=True)
    return {"rows": truth.check(keys, captions, image=np.array(image), text=np.array(text))}


def spark(out, truth):
    from pyspark.sql import SparkSession

    session = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    rows = session.read.parquet(out).select("key", "caption", "image_embedding", "text_embedding").collect()
    keys, captions, image, text = zip(*rows, strict=True)
    session.stop()
    return {"rows": truth.check(keys, captions, image=np.array(image), text=np.array(text))}


def datacomp(out, truth):
    """Not DataComp's programs (no package): what they call, pandas and numpy, on the files and columns they name."""
    import pandas as pd

    rows, uids = 0, []
    for path in [path for path in sorted(glob.glob(f"{out}/*")) if ".parquet" in path]:
        table = pd.read_parquet(path)
        arrays = np.load(path.replace(".parquet", ".npz"))
        (image,), (text,) = ([name for name in arrays.files if name.endswith(end)] for end in ("_img", "_txt"))
        assert image.removesuffix("_img") == text.removesuffix("_txt")
        assert f"clip_{image.removesuffix('_img')}_similarity_score" in table
        assert {"uid", "url", "text", "original_width", "original_height"} <= set(table)
        rows += truth.check(table["key"], table["text"], every=False, image=arrays[image], text=arrays[text])
        uids += [(int(uid[:16], 16), int(uid[16:32], 16)) for uid in table["uid"]]
    assert len(np.unique(np.array(uids, "u8,u8"))) == len(truth.keys) == rows
    return {"rows": rows, "arrays": [image, text]}


def autofaiss(out, truth):
    from autofaiss import build_index

    found = {}
    for side, folder in (("image", "img_emb"), ("text", "text_emb")):
        index, _ = build_index(embeddings=f"{out}/{folder}", save_on_disk=False, nb_cores=1, verbose=40)
        found |= _index(index, side, truth)
    return {"rows": len(truth.keys), **found}


def _index(index, side, truth):
    """Row i of the index is the sample of row i, and a search returns rows with the scores that are theirs.

    How near to the nearest they are is the index's matter: its graph is approximate, and many of these rows are alike.
    """
    truth.check_in_order(**{side: index.reconstruct_n(0, index.ntotal)})
    rows = truth.sides[side]
    scores, places = index.search(rows, 1)
    assert np.allclose(scores[:, 0], (rows * rows[places[:, 0]]).sum(1), atol=1e-5)
    return {f"{side} index": type(index).__name__}


def clip_retrieval_index(out, truth):
    import faiss
    import pandas as pd

    with tempfile.TemporaryDirectory() as folder:
        command = [os.path.join(os.path.dirname(sys.executable), "clip-retrieval"), "index"]
        options = [f"--embeddings_folder={out}", f"--index_folder={folder}", "--nb_cores=1"]
        done = subprocess.run([*command, *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        meta = pd.concat([pd.read_parquet(path) for path in sorted(glob.glob(f"{folder}/metadata/*.parquet"))])
        assert meta["image_path"].tolist() == truth.keys
        assert meta["caption"].tolist() == truth.captions
        found = {}
        for side in ("image", "text"):
            found |= _index(faiss.read_index(f"{folder}/{side}.index"), side, truth)
        return {"rows": len(meta), **found}


def dalle2_prior(out, truth):
    """get_reader and make_splits, embeddings alone and with captions."""
    from clip import tokenize
    from dalle2_pytorch.dataloaders import get_reader, make_splits

    image, text = get_reader(False, img_url=f"{out}/img_emb", txt_url=f"{out}/text_emb")
    split = {"batch_size": 64, "num_data_points": image.count, "train_split": 0.8, "eval_split": 0.1}
    batches = [
        batch for loader in make_splits(False, image_reader=image, text_reader=text, **split) for batch in loader
    ]
    truth.check_in_order(image=np.concatenate([b[0] for b in batches]), text=np.concatenate([b[1] for b in batches]))
    reader = get_reader(True, img_url=f"{out}/img_emb", meta_url=f"{out}/metadata")
    batches = [batch for loader in make_splits(True, image_reader=reader, **split) for batch in loader]
    tokens = np.concatenate([b[1] for b in batches])
    assert np.array_equal(tokens, tokenize(truth.captions, truncate=True).numpy())
    return {"rows": truth.check_in_order(image=np.concatenate([b[0] for b in batches]))}


def dalle2_decoder(out, truth, images):
    """create_image_embedding_dataloader over the image tars, some samples of which have no embedding."""
    import webdataset
    from dalle2_pytorch.dataloaders import create_image_embedding_dataloader
    from torchvision.transforms import Compose, Resize, ToTensor

    tars = sorted(glob.glob(f"{images}/*.tar"))
    loader = create_image_embedding_dataloader(
        tars,
        num_workers=1,
        batch_size=32,
        img_embeddings_url=f"{out}/img_emb",
        text_embeddings_url=f"{out}/text_emb",
        index_width=4,
        shuffle_shards=False,
        img_preproc=Compose([Resize((8, 8)), ToTensor()]),
        extra_keys=["__key__"],
        handler=webdataset.handlers.warn_and_continue,
    )
    keys, image, text, pictures = [], [], [], 0
    for picture, both, key in loader:
        keys += key
        image.append(both["img"].numpy())
        text.append(both["text"].numpy())
        pictures += len(picture)
    checked = truth.check(keys, image=np.concatenate(image), text=np.concatenate(text))
    return {"rows": checked, "pictures": pictures}


READERS = {
    "datasets": (hugging_face, ("datasets",)),
    "datasets, streaming": (hugging_face_streaming, ("datasets",)),
    "lance": (lance, ("pylance",)),
    "lancedb": (lancedb, ("lancedb",)),
    "embedding-reader npy": (embedding_reader_npy, ("embedding-reader", "numpy")),
    "embedding-reader parquet_npy": (embedding_reader_parquet_npy, ("embedding-reader", "pyarrow")),
    "embedding-reader parquet": (embedding_reader_parquet, ("embedding-reader", "pyarrow")),
    "pandas": (pandas, ("pandas",)),
    "duckdb": (duckdb, ("duckdb",)),
    "spark": (spark, ("pyspark",)),
    "DataComp's calls": (datacomp, ("pandas", "numpy")),
    "autofaiss": (autofaiss, ("autofaiss", "faiss-cpu")),
    "clip-retrieval index": (clip_retrieval_index, ("clip-retrieval", "autofaiss")),
    "DALLE2-pytorch prior loader": (dalle2_prior, ("dalle2-pytorch", "embedding-reader")),
    "DALLE2-pytorch decoder loader": (dalle2_decoder, ("dalle2-pytorch", "webdataset")),
}


def main():
    warnings.simplefilter("ignore")
    os.environ.update(HF_HUB_OFFLINE="1", CUDA_VISIBLE_DEVICES="")
    name, out, truth, *images = sys.argv[1:]
    read, packages = READERS[name]
    with contextlib.redirect_stdout(io.StringIO()):
        found = read(out, Truth(truth), *images)
    versions = {package: importlib.metadata.version(package) for package in packages}
    print(json.dumps({**found, "versions": versions}))


if __name__ == "__main__":
    main()
