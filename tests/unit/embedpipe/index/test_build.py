"""An index is built part by part, goes on where it stopped, takes what is new, and forgets what is gone."""

import itertools
import json
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedpipe import files
from embedpipe.errors import DatasetError, InputError, OptionError, OutputBusy, OutputUnwritable
from embedpipe.index import (
    IndexConfig,
    Searcher,
    add,
    build,
    build_index,
    check_index,
    in_memory,
    plan_index,
    read_card,
    recall,
)
from embedpipe.index.card import IndexedShard, card_path, indexed_shards
from embedpipe.index.inverted_lists import ListPart, part_name
from embedpipe.load import EmbeddingDataset
from embedpipe.lock import exclusive
from tests import clusters
from tests.shards import record_anew

SIZES = {0: 300, 1: 250, 2: 280}
IVF = IndexConfig(kind="ivf")
FLAT = IndexConfig(kind="flat")


@pytest.fixture(autouse=True)
def few_queries(monkeypatch):
    """Recall is measured with fewer than usual."""
    monkeypatch.setattr(recall, "QUERIES", 120)


@pytest.fixture
def root(tmp_path):
    return clusters.write(tmp_path / "emb", SIZES)


@pytest.fixture
def small_parts(monkeypatch):
    """A commit after every shard."""
    monkeypatch.setattr("embedpipe.index.plan._PART_ROWS", 1)


def index_bytes(root, modality="image"):
    return (Path(root) / "index" / read_card(root, modality).file).read_bytes()


def found(root, queries, k=10, modality="image"):
    searcher = Searcher(EmbeddingDataset(root), modality)
    assert searcher.card is not None
    return [[hit.key for hit in hits] for hits in searcher.hits(queries, k)]


def share_found(root, queries, k=10, modality="image"):
    true = clusters.truth(EmbeddingDataset(root), queries, k, modality)
    return np.mean([len(set(a) & set(b)) / k for a, b in zip(found(root, queries, k, modality), true, strict=True)])


def queries(count=60, seed=99):
    image, text = clusters.rows(seed, count)
    return np.float32(np.concatenate([image, text]))


@pytest.mark.parametrize("modality", ["image", "text"])
def test_the_recall_in_the_card_is_what_a_search_finds(tmp_path, modality):
    root = clusters.write(tmp_path / "emb", {0: 1500, 1: 1000})
    card = build_index(root, IndexConfig(modality=modality, kind="ivf"))
    assert card.kind == "RR32,IVF64,RaBitQ"
    assert (card.rows, card.dim, card.trained_on) == (2500, 32, 2500)
    assert card.recall.keys() == {"image", "text"}
    assert min(card.recall.values()) >= 0.95
    image, text = clusters.rows(99, 200)
    for side, vectors in (("image", image), ("text", text)):
        assert share_found(root, np.float32(vectors), modality=modality) == pytest.approx(card.recall[side], abs=0.05)


def test_a_target_is_reached_by_looking_harder_and_no_harder_than_needed(tmp_path):
    root = clusters.write(tmp_path / "emb", {0: 2000})
    cards = [build_index(root, IndexConfig(kind="ivf", recall=target)) for target in (0.5, 0.9, 0.97)]
    assert [min(card.recall.values()) >= card.recall_target for card in cards] == [True] * 3
    work = [card.nprobe * 2000 / 32 + 50 * card.candidates for card in cards]
    assert work == sorted(work)
    assert work[0] < work[2]
    assert build_index(root, IVF) == cards[-1], "what was asked for is kept"
    assert len({card.sha256 for card in cards}) == 1, "only the setting is chosen again"
    assert len({card.file for card in cards}) == 1


def test_the_file_is_what_faiss_would_have_written(root, small_parts):
    card = build_index(root, IVF)
    data = index_bytes(root)
    ours = faiss.deserialize_index(np.frombuffer(data, np.uint8))
    lists = faiss.extract_index_ivf(ours).invlists
    ids = np.concatenate([faiss.rev_swig_ptr(lists.get_ids(i), lists.list_size(i)) for i in range(32)])
    assert sorted(ids) == [number << 32 | row for number, size in SIZES.items() for row in range(size)]
    theirs = faiss.deserialize_index(np.frombuffer(data, np.uint8))
    theirs.reset()
    for number, size in SIZES.items():
        theirs.add_with_ids(np.float32(clusters.rows(number, size)[0]), (number << 32) + np.arange(size))
    assert faiss.serialize_index(theirs).tobytes() == data
    assert card.bytes == len(data)


class Interrupted(Exception):
    pass


def interrupt(monkeypatch, module, name, after):
    """Let the function raise at its call number `after` (counted from 0), before it does anything."""
    real, count = getattr(module, name), itertools.count()

    def stand_in(*arguments, **options):
        if next(count) == after:
            raise Interrupted
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, stand_in)


STOPS = [
    ("trained_index", 0),
    ("write_part", 0),
    ("write_part", 2),
    ("merge_parts", 0),
    ("write_card", 0),
    ("_sweep", 0),
]


@pytest.mark.parametrize(("name", "after"), STOPS)
def test_a_build_that_was_interrupted_goes_on_and_gives_the_same_bytes(root, small_parts, monkeypatch, name, after):
    build_index(root, IVF)
    undisturbed = index_bytes(root)
    for left in (Path(root) / "index").iterdir():
        left.unlink()
    with monkeypatch.context() as patched:
        interrupt(patched, add if name == "write_part" else build, name, after)
        with pytest.raises(Interrupted):
            build_index(root, IVF)
    if name == "merge_parts":  # all parts are there: nothing is trained or encoded again
        monkeypatch.setattr(build, "trained_index", None)
        monkeypatch.setattr(add, "encode_rows", None)
    card = build_index(root, IVF)
    assert index_bytes(root) == undisturbed
    assert card.recall == read_card(root, "image").recall
    left = {path.name for path in (Path(root) / "index").iterdir()}
    assert left == {".lock", "image.json", card.file, card.file.replace(".faiss", ".npz")}


@given(data=st.data())
def test_parts_are_of_neighbours_and_what_is_done_is_kept(data):
    """In whatever order parts were made before a build was killed, rows come in the order of shards."""
    shards = tuple(
        IndexedShard(n, rows, "") for n, rows in enumerate(data.draw(st.lists(st.integers(1, 9), max_size=9)))
    )
    cut = st.tuples(st.integers(0, 8), st.integers(1, 3))
    done = [shards[first : first + count] for first, count in data.draw(st.lists(cut)) if shards[first : first + count]]
    gone = (*shards[:1], IndexedShard(99, 1, ""))  # of a shard that is there no more
    stale = [ListPart("part-of-another-index", part, ()) for part in done[:1]]
    parts = [ListPart(part_name("a", part), part, ()) for part in (*done, gone)]
    most = data.draw(st.integers(1, 20))
    groups = list(add._groups(shards, [*stale, *parts], "a", most))
    assert sum(groups, ()) == shards
    assert all(len(group) == 1 or group in done or sum(shard.rows for shard in group) <= most for group in groups)
    if len({shard for part in done for shard in part}) == sum(map(len, done)):
        assert set(done) <= set(groups)


def test_a_part_of_shards_that_are_gone_does_not_hide_a_done_one():
    first, second = IndexedShard(0, 3, ""), IndexedShard(1, 3, "")
    done = [(first, second), (first,), (first, IndexedShard(99, 1, ""))]
    parts = [ListPart(part_name("a", shards), shards, ()) for shards in done]
    for some in itertools.permutations(parts):
        assert list(add._groups((first, second), some, "a", 1)) == [(first, second)]
    assert list(add._groups((first,), parts, "a", 1)) == [(first,)]


def test_a_worker_that_does_not_see_the_build_says_so(root, tmp_path):
    trained = add.Trained(str(tmp_path / "trained.faiss"), "", full=False)
    with pytest.raises(OutputUnwritable, match="does not see the build"):
        add.AddWork(root, "image", str(tmp_path / "elsewhere"), trained, 4, 1).start(0)


def test_parts_of_shards_that_changed_since_are_made_again(tmp_path, small_parts, monkeypatch):
    root = clusters.write(tmp_path / "emb", SIZES)
    with monkeypatch.context() as patched:
        interrupt(patched, build, "merge_parts", 0)
        with pytest.raises(Interrupted):
            build_index(root, IVF)
    clusters.write(root, SIZES, {1: 5})
    build_index(root, IVF)
    assert share_found(root, queries()) >= 0.95
    keys = {key for keys in found(root, queries(), 800) for key in keys}
    assert {key.partition("-")[2][0] for key in keys if key[0] == "1"} == {"5"}


def test_new_shards_are_added_without_touching_what_is_there(root, small_parts, monkeypatch):
    before = build_index(root, IVF)
    grown = {**SIZES, 3: 200, 4: 220}
    clusters.write(root, grown)
    plan = plan_index(root, IVF)
    assert (plan.action, plan.why) == ("add", "2 shards to add")
    with monkeypatch.context() as patched:
        patched.setattr(build, "trained_index", None)  # it is not trained again
        encoded = []
        real = add.encode_rows
        patched.setattr(add, "encode_rows", lambda index, rows: encoded.append(len(rows)) or real(index, rows))
        card = build_index(root, IVF)
    assert sum(encoded) == 420
    assert card.rows == 1250
    assert card.rows_then == before.rows_then == 830
    assert card.shards == indexed_shards(EmbeddingDataset(root))
    assert share_found(root, queries()) >= 0.95
    fresh = clusters.write(Path(root).with_name("fresh"), grown)
    whole_truth = build._queries(EmbeddingDataset(fresh), fresh, "image", plan_index(fresh, IVF), True, lambda _: None)
    added = np.load(Path(root) / "index" / card.file.replace(".faiss", ".npz"))
    kept_truth = clusters.truth(EmbeddingDataset(root), added["text_vectors"], 10)
    ids = [[f"{i >> 32}-0-{i & 0xFFFFFFFF}" for i in row] for row in added["text_ids"].tolist()]
    assert ids == kept_truth, "the truth is that of all rows, the new ones too"
    assert len(whole_truth[0].vectors) == 120


def test_a_shard_that_comes_late_moves_no_result(tmp_path):
    root = clusters.write(tmp_path / "emb", {0: 300, 2: 280, 3: 150})
    build_index(root, IVF)
    alone = clusters.rows(3, 150)[0][:20]
    assert [keys[0] for keys in found(root, np.float32(alone), 1)] == [f"3-0-{row}" for row in range(20)]
    clusters.write(root, {0: 300, 1: 250, 2: 280, 3: 150})
    with pytest.raises(
        DatasetError, match=r"is of other data.*\(1 shards are not in the index, 0 in it .*embedpipe.build_index"
    ):
        Searcher(EmbeddingDataset(root))
    card = build_index(root, IVF)
    assert [shard.number for shard in card.shards] == [0, 1, 2, 3]
    hits = [hits[0] for hits in Searcher(EmbeddingDataset(root)).hits(np.float32(alone), 1)]
    assert [hit.key for hit in hits] == [f"3-0-{row}" for row in range(20)]
    assert [hit.row for hit in hits] == [830 + row for row in range(20)]


@pytest.mark.parametrize("config", [IVF, FLAT, IndexConfig(kind="hnsw")], ids=lambda config: config.kind)
def test_a_shard_that_was_made_again_is_replaced_and_one_that_is_gone_forgotten(root, config):
    first = build_index(root, config)
    clusters.write(root, {0: 300, 1: 240}, {1: 6})
    plan = plan_index(root, config)
    assert plan.action == ("add" if config is IVF else "build")
    if config is IVF:
        assert (plan.why, plan.gone) == ("1 shard to add, shards 1, 2 to forget", (1, 2))
    else:
        assert plan.why == f"shards 1, 2 were made again or are gone, and {first.kind} cannot forget rows"
    card = build_index(root, config)
    assert card.rows == 540
    assert share_found(root, queries(), 10) >= 0.95
    everything = found(root, queries(2), 1000)
    assert [sorted(keys) for keys in everything] == [sorted(EmbeddingDataset(root).keys())] * 4


def test_rows_with_other_metadata_and_numbers_are_told_by_the_data_set(root):
    """Ids are places: keys come from the data set as it is, so a result is never that of another row."""
    build_index(root, IVF)
    everything = Searcher(EmbeddingDataset(root)).hits(queries(1), 830)
    stored, keys = EmbeddingDataset(root).image.read(), EmbeddingDataset(root).keys()
    for hits, query in zip(everything, queries(1) / np.linalg.norm(queries(1), axis=1, keepdims=True), strict=True):
        assert [hit.score for hit in hits] == pytest.approx([float(stored[hit.row] @ query) for hit in hits], abs=1e-5)
        assert [hit.key for hit in hits] == [keys[hit.row] for hit in hits]


@pytest.mark.parametrize("kind", ["flat", "hnsw", "HNSW8,SQ8"])
def test_an_index_that_is_held_in_memory_goes_on_too(root, kind, monkeypatch):
    monkeypatch.setattr(in_memory, "CHECKPOINT_EVERY_S", 0.0)
    config = IndexConfig(kind=kind)
    with monkeypatch.context() as patched:
        interrupt(patched, in_memory, "row_blocks", 2)
        with pytest.raises(Interrupted):
            build_index(root, config)
    with monkeypatch.context() as patched:
        read = []
        real = in_memory.row_blocks
        patched.setattr(in_memory, "row_blocks", lambda *arguments: read.append(arguments[1]) or real(*arguments))
        build_index(root, config)
    assert read == [2]
    assert share_found(root, queries()) >= (1 if kind == "flat" else 0.9)
    clusters.write(root, {**SIZES, 3: 50})
    with monkeypatch.context() as patched:
        patched.setattr(in_memory, "trained_index", None)
        assert build_index(root, config).rows == 880
    assert share_found(root, queries()) >= (1 if kind == "flat" else 0.9)


@pytest.mark.parametrize(
    "kind",
    ["IVF16,SQ8", "IVF16,Flat", "RR32,IVF16,SQ8", "IVF16_HNSW8,SQfp16", "ivf-sq8", "ivf-pq", "RR32,IVF16_HNSW8,RaBitQ"],
)
def test_types_by_name(root, kind):
    card = build_index(root, IndexConfig(kind=kind))
    assert card.kind == kind or kind in ("ivf-sq8", "ivf-pq")
    assert not card.chosen
    assert share_found(root, queries()) >= 0.93
    assert build_index(root, IndexConfig(kind=kind)) == card
    assert build_index(root) == card, "auto keeps what was asked for"


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("flann", "no such index type.*Did you mean flat"),
        ("IVF16,Nonsense", "faiss does not know it"),
        ("IVF16,PQ7", "faiss does not know it"),
        ("IVF16,PQ8x4fs", "cannot be merged on disk.*fast-scan"),
        ("IVF16,SQ8,RFlat", "cannot be merged on disk"),
        ("IVF4096,SQ8", "4,096 lists cannot be trained on 830 rows"),
    ],
)
def test_types_that_cannot_be(root, kind, said):
    with pytest.raises(InputError, match=said):
        build_index(root, IndexConfig(kind=kind))


def test_another_type_another_model_or_a_damaged_file_mean_a_new_index(root):
    build_index(root, FLAT)
    assert plan_index(root, IVF).why == "ivf is asked for, the one there is Flat"
    card = build_index(root, IVF)
    assert plan_index(root, IndexConfig(kind="ivf", rebuild=True)).action == "build"
    place = Path(root) / "index" / card.file
    place.write_bytes(place.read_bytes()[:-1])
    assert plan_index(root, IVF).action == "build"
    assert "damaged" in plan_index(root, IVF).why
    assert build_index(root, IVF).sha256 == card.sha256
    clusters.write(root, SIZES, weights="1" * 64)
    with pytest.raises(DatasetError, match="of another model's embeddings.*embedpipe.build_index"):
        Searcher(EmbeddingDataset(root))
    assert plan_index(root, IVF).why == "the one there is of another model's embeddings"
    assert build_index(root, IVF).fingerprint != card.fingerprint


def test_a_small_index_that_was_outgrown_is_made_anew(root, monkeypatch):
    assert build_index(root).kind == "Flat"
    assert plan_index(root).action == "nothing"
    monkeypatch.setattr("embedpipe.index.index_types.FLAT_ROWS", 500)
    clusters.write(root, {**SIZES, 3: 10})
    assert plan_index(root).why == "the data have outgrown Flat"
    assert build_index(root).kind == "RR32,IVF32,RaBitQ"


def test_a_row_that_is_not_finite_is_named(root):
    place = Path(root) / "img_emb" / "img_emb_00001.npy"
    rows = np.load(place)
    rows[17, 3] = np.nan
    np.save(place, rows)
    record_anew(root, 1, place)
    for kind in ("ivf", "flat"):
        with pytest.raises(DatasetError, match=r"row 317 \(00001.tar 1-0-17\) is not finite.*embedpipe verify"):
            build_index(root, IndexConfig(kind=kind))
    with pytest.raises(DatasetError, match="row 317"):
        next(Searcher(EmbeddingDataset(root), exact=True).hits(queries(1)))


def test_one_builder_at_a_time(root):
    with exclusive(str(Path(root) / "index")), pytest.raises(OutputBusy, match="in use by process"):
        build_index(root)


def test_a_place_that_cannot_be_written_is_named(root):
    (Path(root) / "index").write_text("a file")
    with pytest.raises(OutputUnwritable, match="a file is there"):
        build_index(root)


def test_an_index_that_is_up_to_date_needs_no_lock(root):
    card = build_index(root, IVF)
    with exclusive(str(Path(root) / "index")):  # as on a disk that cannot be written
        assert build_index(root, IVF) == card


def test_every_damage_is_found(root):
    assert check_index(root, "image") == []
    card = build_index(root, IVF)
    place = Path(root) / "index" / card.file
    data = place.read_bytes()
    assert check_index(root, "image", deep=True) == []
    middle = len(data) // 2
    place.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    assert "checksum does not match" in check_index(root, "image", deep=True)[0]
    place.unlink()
    assert "missing, though its card is there" in check_index(root, "image")[0]
    place.write_bytes(data)
    Path(card_path(root, "image")).write_text(json.dumps({"format_version": 2, "modality": "image"}))
    assert "damaged" in check_index(root, "image")[0]
    with pytest.raises(DatasetError, match=r"image\.json: damaged.*Remove it.*embedpipe.build_index"):
        Searcher(EmbeddingDataset(root))
    Path(card_path(root, "image")).write_text('{"format_version": 99}')
    with pytest.raises(DatasetError, match="Upgrade embedpipe"):
        build_index(root)
    Path(card_path(root, "image")).write_text('{"format_version": 1, "kind": "Flat"}')
    assert build_index(root, IVF).rows == 830, "an index of an older version is made again"


def test_a_card_that_was_mixed_up_with_another_is_found(root, tmp_path):
    card = build_index(root, IVF)
    other = clusters.write(tmp_path / "other", {0: 900})
    theirs = build_index(other, IVF)
    (Path(root) / "index" / card.file).write_bytes(index_bytes(other))
    with pytest.raises(DatasetError, match="damaged"):
        Searcher(EmbeddingDataset(root))
    assert theirs.fingerprint == card.fingerprint
    Path(card_path(root, "image")).write_bytes(Path(card_path(other, "image")).read_bytes())
    with pytest.raises(DatasetError, match="is of other data"):
        Searcher(EmbeddingDataset(root))


def test_where_rows_cannot_be_looked_up_the_index_holds_more_of_them(tmp_path):
    root = clusters.write(tmp_path / "emb", {0: 900, 1: 700}, fmt="parquet")
    card = build_index(root, IndexConfig(kind="ivf-sq8"))
    assert card.candidates == 0
    assert share_found(root, queries()) >= 0.93
    assert plan_index(root, IndexConfig(kind="auto")).kind.factory == card.kind


def test_in_an_object_store_it_is_the_index_of_a_disk(tmp_path):
    root = clusters.write("memory://index-test", {0: 30})
    here = clusters.write(tmp_path / "emb", {0: 30})
    assert Searcher(EmbeddingDataset(root)).card is None
    assert build_index(root) == build_index(here)
    for name in ("image.json", "image-00001.faiss", "image-00001.npz"):
        assert files.read_bytes(f"{root}/index/{name}") == (Path(here) / "index" / name).read_bytes()
    searcher = Searcher(EmbeddingDataset(root))
    assert searcher.card == build_index(root)
    assert next(searcher.hits(np.float32(clusters.rows(0, 30)[0][4:5]), 1))[0].key == "0-0-4"


def test_one_that_looks_rows_up_is_searched_where_it_was_copied_to(tmp_path):
    here = Path(clusters.write(tmp_path / "emb", {0: 900, 1: 700}))
    card = build_index(str(here), IVF)
    assert card.candidates > 0
    for path in here.rglob("*"):
        if path.is_file():
            files.write_bytes(f"memory://copied/{path.relative_to(here)}", path.read_bytes())
    one, other = (
        Searcher(EmbeddingDataset(place)).nearest(queries()[:4], 10) for place in (str(here), "memory://copied")
    )
    assert np.array_equal(one.ids, other.ids)
    assert "compares found rows again" in plan_index("memory://copied", IVF).why


def test_copies_of_a_row_do_not_count_against_recall(tmp_path):
    root = clusters.write(tmp_path / "emb", {0: 120, 1: 700})
    same = np.load(Path(root) / "img_emb" / "img_emb_00000.npy")
    same[:] = same[0]
    np.save(Path(root) / "img_emb" / "img_emb_00000.npy", same)
    record_anew(root, 0, Path(root) / "img_emb" / "img_emb_00000.npy")
    card = build_index(root, IVF)
    assert min(card.recall.values()) >= 0.95


@pytest.mark.parametrize("exact", [True, False])
def test_no_results_cannot_be_asked_for(root, exact):
    build_index(root, IndexConfig(kind="flat"))
    with pytest.raises(OptionError, match="`k=0`: must be at least 1"):
        next(Searcher(EmbeddingDataset(root), exact=exact).hits(queries(1), k=0))
