"""The garbage collector while libraries are loaded."""

import gc

import pytest

from embedpipe.imports import uncollected


def test_the_collector_rests_in_the_block_and_works_after_it():
    with uncollected():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ImportError), uncollected():
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_somebody_stopped_stays_so():
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
