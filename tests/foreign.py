"""Data sets as others write them, from arrays a test makes up."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

DIM = 6
SIZES = (4, 3, 5)


def rows(seed=0, sizes=SIZES, dim=DIM):
    """{side: float16 [n, dim]} of norm 1, and captions."""
    generator = np.random.default_rng(seed)
    made = {side: generator.standard_normal((sum(sizes), dim)) for side in ("image", "text")}
    unit = {side: (a / np.linalg.norm(a, axis=1, keepdims=True)).astype(np.float16) for side, a in made.items()}
    return unit, [f"caption {i}" for i in range(sum(sizes))]


def _cuts(sizes):
    ends = np.cumsum(sizes)
    return [(number, int(end - size), int(end)) for number, (size, end) in enumerate(zip(sizes, ends, strict=True))]


def clip_retrieval(root, arrays, captions, sizes=SIZES, digits=1):
    """As clip-retrieval writes it: pandas tables, numbers padded to a width that depends on how many there are."""
    for number, first, last in _cuts(sizes):
        name = str(number).zfill(digits)
        for folder, side in (("img_emb", "image"), ("text_emb", "text")):
            (root / folder).mkdir(parents=True, exist_ok=True)
            np.save(root / folder / f"{folder}_{name}.npy", arrays[side][first:last])
        keys = [f"{i:09d}" for i in range(first, last)]
        table = pa.table(
            {
                "image_path": keys,
                "caption": captions[first:last],
                "width": pa.array([640.0 if i % 2 else None for i in range(first, last)], pa.float64()),
                "similarity": pa.array([i / 100 for i in range(first, last)], pa.float64()),
                "NSFW": ["UNLIKELY"] * (last - first),
            }
        )
        (root / "metadata").mkdir(exist_ok=True)
        pq.write_table(table, root / "metadata" / f"metadata_{name}.parquet")


def laion_400m(root, arrays, captions, sizes=SIZES):
    """The same files in the folders of the LAION-400M release."""
    clip_retrieval(root, arrays, captions, sizes)
    (root / "img_emb").rename(root / "images")
    (root / "text_emb").rename(root / "texts")


def npy(root, arrays, captions, sizes=SIZES):
    root.mkdir(parents=True, exist_ok=True)
    for number, first, last in _cuts(sizes):
        np.save(root / f"part-{number:03d}.npy", arrays["image"][first:last])


def parquet(root, arrays, captions, sizes=SIZES):
    """As Spark or pandas write it: variable lists of float32, several row groups."""
    root.mkdir(parents=True, exist_ok=True)
    for number, first, last in _cuts(sizes):
        lists = pa.array([row.astype(np.float32) for row in arrays["image"][first:last]], pa.list_(pa.float32()))
        table = pa.table({"id": list(range(first, last)), "embedding": lists, "caption": captions[first:last]})
        pq.write_table(table, root / f"part-{number:03d}.parquet", row_group_size=2)


def parquet_npy(root, arrays, captions, sizes=SIZES):
    """Two folders; names of arrays and tables have nothing in common."""
    for folder in ("emb", "meta"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number, first, last in _cuts(sizes):
        np.save(root / "emb" / f"{'abc'[number]}.npy", arrays["image"][first:last])
        table = pa.table({"url": [f"http://x/{i}" for i in range(first, last)], "caption": captions[first:last]})
        pq.write_table(table, root / "meta" / f"{'xyz'[number]}.parquet")


def datacomp(root, arrays, captions, sizes=SIZES):
    root.mkdir(parents=True, exist_ok=True)
    for number, first, last in _cuts(sizes):
        name = f"{(number * 7 + 3) % 10}f3a"  # hashes: in no order
        some = {side: array[first:last] for side, array in arrays.items()}
        np.savez(root / f"{name}.npz", l14_img=some["image"], l14_txt=some["text"], b32_img=-some["image"][:, :4])
        table = pa.table(
            {
                "uid": [f"{i:032x}" for i in range(first, last)],
                "url": [f"http://x/{i}" for i in range(first, last)],
                "text": captions[first:last],
                "original_width": pa.array(range(first, last), pa.int32()),
                "clip_b32_similarity_score": pa.array([0.1] * (last - first), pa.float32()),
                "clip_l14_similarity_score": pa.array([0.2] * (last - first), pa.float32()),
                "face_bboxes": pa.array([[[0.1, 0.2]]] * (last - first), pa.list_(pa.list_(pa.float64()))),
            }
        )
        pq.write_table(table, root / f"{name}.parquet")


# name → (writer, layout that should be found, sides)
LAYOUTS = {
    "clip-retrieval": (clip_retrieval, "clip-retrieval", ("image", "text")),
    "laion-400m": (laion_400m, "clip-retrieval", ("image", "text")),
    "npy": (npy, "npy", ("image",)),
    "parquet": (parquet, "parquet", ("image",)),
    "parquet_npy": (parquet_npy, "parquet_npy", ("image",)),
    "datacomp": (datacomp, "datacomp", ("image", "text")),
}


def order(name):
    """Numbers of the made-up rows, in the order in which the layout's shards come."""
    numbers = (1, 0, 2) if name == "datacomp" else (0, 1, 2)
    return np.concatenate([np.arange(*_cuts(SIZES)[number][1:]) for number in numbers])
