"""The thread that writes finished shards: it ends with the block, also where an interruption cost it a wake-up."""

import contextlib
import threading
import time

import pytest

from embedpipe.encode.background_writer import Writer


def lose_a_wake_up(writer):
    """As an interruption inside `notify` does: a waiter that was woken before is left and takes the next call."""
    stale = threading.Lock()
    stale.acquire()
    writer._waiting.not_empty._waiters.appendleft(stale)


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_wake_up_that_is_lost_does_not_hang_the_command(interrupted):
    written = []
    writer = Writer(written.append)

    def use():
        with contextlib.suppress(KeyboardInterrupt), writer:
            writer.take("first")
            while not written:
                time.sleep(0.001)
            lose_a_wake_up(writer)
            if interrupted:
                raise KeyboardInterrupt

    used = threading.Thread(target=use, daemon=True)
    used.start()
    used.join(30)
    assert not used.is_alive()
    assert written == ["first"]


def test_what_writing_raises_is_raised_by_the_next_call():
    def full(shard):
        raise OSError("no space")

    def use():
        with Writer(full) as writer:
            for shard in range(3):
                writer.take(shard)

    with pytest.raises(OSError, match="no space"):
        use()
