import itertools
import threading

import pytest
import torch

from dalle2_core.training.ahead import ahead, on_device
from dalle2_core.types import PriorBatch


def test_what_is_made_ahead_comes_in_order_and_no_further_ahead_than_said():
    drawn, used = [], []

    def items():
        for number in itertools.count():
            drawn.append(number)
            yield number

    made = ahead(items(), lambda number: -number, 2)
    for found in itertools.islice(made, 50):
        assert len(drawn) <= len(used) + 2
        used.append(found)
    made.close()
    assert used == [-number for number in range(50)]
    assert not [it for it in threading.enumerate() if it.name == "batches ahead"]


def test_memory_that_a_stream_uses_again_is_copied_before_it_is():
    def items():
        held = torch.zeros(3)
        for number in range(20):
            held.fill_(number)
            yield held

    assert [float(it.sum()) for it in ahead(items(), torch.clone, 4)] == [3.0 * number for number in range(20)]


@pytest.mark.parametrize("where", ["stream", "make"])
def test_what_the_thread_raises_is_raised_where_batches_are_asked_for(where):
    def items():
        yield 1
        yield 2
        if where == "stream":
            raise ValueError("the disk is gone")
        yield 3

    def make(number):
        if number == 3:
            raise ValueError("the disk is gone")
        return number

    made, found = ahead(items(), make, 8), []
    with pytest.raises(ValueError, match="the disk is gone"):
        found.extend(iter(made))
    assert list(made) == []


def test_a_stream_that_ends_ends():
    assert list(ahead(iter("abc"), str.upper, 1)) == ["A", "B", "C"]


def test_on_the_cpu_no_batch_is_drawn_before_it_is_asked_for():
    drawn = []

    def stream():
        for number in range(3):
            drawn.append(number)
            yield PriorBatch(torch.full((2, 4), float(number)), torch.zeros(2, 4))

    batches = on_device(stream(), torch.device("cpu"))
    assert drawn == []
    assert float(next(batches).text_embed[0, 0]) == 0
    assert drawn == [0]
    batches.close()
