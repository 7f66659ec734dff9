"""Out of memory under all its names, and what a failed computation keeps."""

import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch

from raylth.core.memory import is_out_of_memory, release_memory

ALLOCATOR = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1 GiB is free"
NAMES = [
    torch.OutOfMemoryError(ALLOCATOR),
    torch.cuda.OutOfMemoryError(ALLOCATOR),
    torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    MemoryError(),
    OSError(12, "Cannot allocate memory"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    RuntimeError("CUDA error: CUSPARSE_STATUS_ALLOC_FAILED when calling `cusparseCreate(handle)`"),
    RuntimeError("CUDA error: CUSPARSE_STATUS_INSUFFICIENT_RESOURCES when calling `cusparseSpMM(handle)`"),
    RuntimeError("CUDA driver error: cudaErrorMemoryAllocation"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    RuntimeError("NCCL Error 1: unhandled cuda error: Cuda failure 2 'out of memory'"),
    torch.distributed.DistBackendError("ncclUnhandledCudaError\nLast error:\nFailed to CUDA calloc async 608 bytes"),
]
OTHERS = [
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    torch.AcceleratorError("CUDA error: device-side assert triggered"),
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`"),
    ValueError("the prompt says: out of memory"),
    OSError(28, "No space left on device"),
    KeyError("memory"),
]


@pytest.mark.parametrize("error", NAMES, ids=str)
def test_every_name_of_out_of_memory_is_known(error):
    assert is_out_of_memory(error)
    outer = ValueError("the stage could not continue")
    outer.__cause__ = error
    assert is_out_of_memory(outer), "what it was raised from counts"


@pytest.mark.parametrize("error", OTHERS, ids=str)
def test_other_errors_are_not_out_of_memory(error):
    assert not is_out_of_memory(error)
    error.__cause__ = error  # no endless loop
    assert not is_out_of_memory(error)


def test_what_really_runs_out_of_memory_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    with pytest.raises(MemoryError) as raised:
        np.empty(2**60, dtype=np.uint8)
    assert is_out_of_memory(raised.value)


def test_released_memory_is_free_while_the_error_is_kept():
    """What the frames hold that the error passed through, its own and those of what it came from."""
    held = []

    def fail(error, before=None):
        tensor = torch.ones(1000)
        tensor.itself = tensor  # a cycle
        held.append(weakref.ref(tensor))
        raise error from before

    def nested():
        mine = torch.zeros(1000)
        held.append(weakref.ref(mine))
        try:
            fail(RuntimeError("CUDA error: out of memory"))
        except RuntimeError as error:
            first = error
        try:
            fail(KeyError("another"))
        except KeyError:
            fail(ValueError("the last"), first)

    gc.disable()
    try:
        kept = None
        try:
            nested()
        except ValueError as error:
            kept = error
        assert [each() is None for each in held] == [False] * 4
        release_memory(kept)
        assert [each() is None for each in held] == [True] * 4
        assert str(kept) == "the last"
    finally:
        gc.enable()
    release_memory(None)


def test_torch_is_not_imported_for_it():
    code = """
import sys
from raylth.core.memory import is_out_of_memory, release_memory
assert is_out_of_memory(RuntimeError("CUDA out of memory")) and not is_out_of_memory(ValueError())
release_memory(MemoryError())
sys.exit("torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(("free", "expected"), [(1, True), (50, False)])
def test_cudnn_without_a_plan_is_out_of_memory_where_the_gpu_is_full(monkeypatch, free, expected):
    """It says the same of a convolution that it does not support."""
    error = RuntimeError("GET was unable to find an engine to execute this computation")
    assert not is_out_of_memory(error), "no GPU is in use"
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 100))
    assert is_out_of_memory(error) == expected
