"""Pieces of rows that do not fit the memory are made by halves, and come out the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dalle2_core.chunking import is_out_of_memory, run_in_chunks
from dalle2_core.errors import ConfigError
from dalle2_core.rng import PerSampleRNG, normal

CPU = torch.device("cpu")


def drawn(start, stop):
    return normal((stop - start, 3), PerSampleRNG(5, start, stop - start, CPU), CPU)


@given(rows=st.integers(1, 70), at_once=st.none() | st.integers(1, 80), fits=st.integers(1, 80))
def test_whatever_fits_the_rows_are_the_same(rows, at_once, fits):
    tried, told = [], []

    def make(start, stop):
        tried.append(stop - start)
        if stop - start > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return drawn(start, stop)

    assert torch.equal(run_in_chunks(rows, at_once, make, told.append), drawn(0, rows))
    assert max(tried) <= min(at_once or rows, rows)
    assert told == sorted(told, reverse=True)
    assert all(size <= fits for size in tried[len(told) :])
    failures = [size for size in tried if size > fits]
    assert told == [size // 2 for size in failures]


def test_a_row_that_does_not_fit_is_an_error_and_so_is_anything_else():
    def full(start, stop):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def wrong(start, stop):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(torch.OutOfMemoryError):
        run_in_chunks(8, None, full, lambda size: None)
    with pytest.raises(RuntimeError, match="shapes cannot be"):
        run_in_chunks(8, None, wrong)
    with pytest.raises(ConfigError, match="max_batch_size is 0; it must be 1 or more"):
        run_in_chunks(8, 0, drawn)


def test_nobody_listening_it_is_a_warning():
    def make(start, stop):
        if stop - start > 2:
            raise MemoryError
        return drawn(start, stop)

    with pytest.warns(RuntimeWarning, match="out of memory: going on with 2 rows at once"):
        run_in_chunks(4, None, make)


def test_what_the_cpu_says_when_it_has_no_memory_is_known():
    with pytest.raises(RuntimeError) as problem:
        torch.empty(1 << 55)
    assert is_out_of_memory(problem.value)


@pytest.mark.parametrize(
    ("said", "known"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True),
        ("CUDA error: out of memory", True),
        ("CUDA error: device-side assert triggered", False),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED", False),
    ],
)
def test_libraries_of_cuda_that_have_no_memory_are_known(said, known):
    assert is_out_of_memory(RuntimeError(said)) == known
