"""What was made is held as long as there is room."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from embedpipe.load.lru_cache import ByteLRUCache
from embedpipe.ragged import RaggedRows


def test_what_was_asked_for_last_is_held_and_no_more_than_there_is_room_for():
    made = []

    def ask(name, size=40):
        held.get(name, lambda: made.append(name) or np.zeros(size, np.uint8))

    held = ByteLRUCache(100)
    for name in ("a", "b", "a", "c", "a", "b"):  # c takes the room of b, b that of c
        ask(name)
    assert made == ["a", "b", "c", "b"]
    ask("large", 1000)
    ask("large", 1000)
    assert made[4:] == ["large"], "what is asked for again and again is held even where it is too large"
    ask("a")
    assert made[5:] == ["a"]
    ask("large", 1000)
    assert made[6:] == ["large"]


def test_ragged_rows_take_room_and_mapped_files_do_not(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(1000))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    held = ByteLRUCache(100)
    rows = RaggedRows.packed(np.zeros((20, 1), np.float32), np.array([20]))
    assert held.get(1, lambda: mapped) is mapped
    assert held.get(2, lambda: rows) is rows
    held.get(3, lambda: np.zeros(90, np.uint8))
    other = RaggedRows.packed(np.zeros((1, 1), np.float32), np.array([1]))
    assert held.get(2, lambda: other) is other
    assert held.get(1, lambda: rows) is mapped


def test_many_threads_may_ask_at_once():
    held = ByteLRUCache(500)

    def ask(number):
        name = number * 7 % 23
        return int(held.get(name, lambda: np.full(40, name, np.uint8))[0]) == name

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(3000)))
    assert held._bytes == sum(array.nbytes for array in held._kept.values()) <= 500
    assert pickle.loads(pickle.dumps(held)).get(1, lambda: np.zeros(3)).shape == (3,)
