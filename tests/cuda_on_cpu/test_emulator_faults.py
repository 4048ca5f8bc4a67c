"""What the emulator must refuse: one small wrong kernel for each mistake, beside a right one where it is close."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cuda_on_cpu import emulator, toolchain
from tests.cuda_on_cpu.emulator import EmulatorError, Module

pytestmark = pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))
ROOT = Path(__file__).parents[2]


def catches_faults() -> bool:
    """Return whether a fault becomes an error; ASan and TSan report it themselves, and end the process."""
    return emulator.sanitizer() in ("none", "ubsan")


def sees_undefined_behaviour() -> bool:
    return emulator.sanitizer() in ("ubsan", "asan") and bool(toolchain.sanitizer_flags("ubsan"))


faults = pytest.mark.skipif(not catches_faults(), reason="the sanitizer reports it, and ends the process")
undefined = pytest.mark.skipif(not sees_undefined_behaviour(), reason="no UBSan")


def kernel(body: str, parameters: str = "int *a", before: str = "") -> emulator.Function:
    code = f"{before}\n__global__ void wrong({parameters}) {{\n{textwrap.dedent(body)}\n}}"
    return Module(code, name_expressions=["wrong"], filename="wrong.cu").get_function("wrong")


def refuse(function: emulator.Function, message: str, *args: Any, block: int = 1, shared_mem: int = 0) -> None:
    """Require that a launch fails with the message in every order."""
    for order in emulator.SCHEDULES:
        with emulator.schedule(order), pytest.raises(EmulatorError, match=message):
            function((1,), (block,), args, shared_mem=shared_mem)


def zeros(count: int, dtype: Any = np.int32) -> np.ndarray:
    return np.zeros(count, dtype)


# ---- memory ----


@faults
@pytest.mark.parametrize("count", [4, 1024, 1 << 18])
def test_a_read_of_one_element_too_many(count: int) -> None:
    function = kernel("*a = b[n];", "int *a, const int *b, int n")
    function((1,), (1,), (zeros(1), zeros(count), np.int32(count - 1)))
    refuse(function, rf"access outside argument 1, at byte {4 * count} of {4 * count}; block \(0,0,0\) thread \(0,0,0\)"
           r" at wrong.cu:3", zeros(1), zeros(count), np.int32(count))  # fmt: skip


@faults
def test_a_read_of_one_element_too_many_of_an_odd_number_needs_exact_ends() -> None:
    function = kernel("*a = b[n];", "int *a, const int *b, int n")
    function((1,), (1,), (zeros(1), zeros(5), np.int32(5)))
    with emulator.exact_ends():
        refuse(function, "access outside argument 1", zeros(1), zeros(5), np.int32(5))


@faults
@pytest.mark.parametrize(("place", "message"), [(5, "written past its end, at byte 20 of 20"), (8, "access outside"),
                                                (-1, "written before its start, at byte -1")])  # fmt: skip
def test_a_write_outside_leaves_the_results_alone(place: int, message: str) -> None:
    a = zeros(5)
    refuse(
        kernel("a[0] = 1; a[n] = 1;", "int *a, int n"),
        f"argument 0.*{message}|{message}.*argument 0",
        a,
        np.int32(place),
    )
    assert a.tolist() == [0] * 5


@faults
def test_a_write_to_a_const_argument() -> None:
    message = r"write to the const argument 1 at byte 8 of 16.* at wrong\.cu:3"
    refuse(kernel("((int *)b)[2] = *a;", "int *a, const int *b"), message, zeros(4), zeros(4))


@faults
def test_a_read_of_memory_that_is_no_argument() -> None:
    refuse(kernel("*a = *(volatile int *)4096;"), "access to 0x1000, which is no argument", zeros(1))
    refuse(kernel("*a = f(*a);", before="__noinline__ __device__ int f(int i) { volatile int v[64]; v[0] = i; "
                  "return f(i + 1) + v[0]; }"), "the stack of a thread is full", zeros(1))  # fmt: skip


@faults
def test_shared_memory_has_ends() -> None:
    body = "__shared__ int held[3]; int *p = held; p[threadIdx.x] = 1; *a = p[n];"
    function = kernel(body, "int *a, int n")
    function((1,), (3,), (zeros(1), np.int32(2)))
    refuse(function, "access outside shared memory held, at byte 12 of 12", zeros(1), np.int32(3))
    refuse(
        kernel("extern __shared__ int held[]; *a = held[4];"),
        "access outside shared memory held",
        zeros(1),
        shared_mem=16,
    )


def test_shared_memory_is_limited() -> None:
    refuse(kernel("__shared__ int held[12289]; *a = held[0];"), "49156 bytes of static shared memory", zeros(1))
    function = kernel("__shared__ int held[4]; *a = held[0];")
    refuse(function, "49168 bytes of shared memory", zeros(1), shared_mem=48 << 10)
    refuse(function, "shared_mem is 49153", zeros(1), shared_mem=(48 << 10) + 1)
    function.max_dynamic_shared_size_bytes = 64 << 10
    function((1,), (1,), (zeros(1),), shared_mem=64 << 10)


# ---- undefined behaviour ----


@undefined
def test_a_misaligned_vector_load() -> None:
    function = kernel("*a = ((const int4 *)(b + n))->x;", "int *a, const int *b, int n")
    function((1,), (1,), (zeros(1), zeros(8), np.int32(4)))
    message = r"wrong\.cu:3: misaligned address 0x[0-9a-f]+ for 'const struct int4', which needs a multiple of 16"
    refuse(function, message, zeros(1), zeros(8), np.int32(1))
    # and where the argument itself is: the copy lies as the memory does
    refuse(function, "misaligned address", zeros(1), zeros(9)[1:], np.int32(0))


@undefined
@pytest.mark.parametrize(
    ("body", "value", "message"),
    [
        ("*a = *a + 1;", 2**31 - 1, r"signed overflow in \+"),
        ("*a = *a - 2;", -(2**31) + 1, "signed overflow in -"),
        ("*a = *a * 2;", 2**30, r"signed overflow in \*"),
        ("*a = -*a;", -(2**31), "signed overflow in a negation"),
        ("*a = 1u << *a;", 32, "shift by an amount"),
        ("*a = 1 >> *a;", -1, "shift by an amount"),
        ("*a = 1 / *a;", 0, "division by zero"),
        ("*a = (int)(*a * 1e9f);", 3, "conversion to an integer type that cannot hold the value"),
        ("int b[3] = {1, 2, 3}; *a = b[*a];", 3, r"index 3 out of bounds of 'int \[3\]'"),
        ("__shared__ int b[3]; b[0] = 0; *a = b[*a];", 3, r"index 3 out of bounds of 'emu_type_of_b'|'int \[3\]'"),
        ("*a = f(*a);", 3, "ended without"),
    ],
)
def test_undefined_behaviour(body: str, value: int, message: str) -> None:
    function = kernel(body, before="__device__ int f(int i) { if (i < 3) return i; }")
    refuse(function, rf"wrong\.cu:[13]: .*({message}).*block \(0,0,0\) thread \(0,0,0\)", np.array([value], np.int32))


@undefined
def test_a_null_pointer() -> None:
    refuse(kernel("*a = *b;", "int *a, const int *b"), r"wrong\.cu:3: access through a null pointer", zeros(1), None)


# ---- synchronization ----


def test_a_warp_operation_without_one_of_its_lanes() -> None:
    body = "if (threadIdx.x != 3) a[threadIdx.x] = __ballot_sync(0xffffffffu, 1); else __syncthreads();"
    refuse(kernel(body), r"deadlock.*t0:__ballot_sync@3/0xffffffff.*t3:__syncthreads@3", zeros(32), block=32)


def test_a_warp_operation_by_a_lane_outside_its_mask() -> None:
    message = "__shfl.*_sync at line 3: mask 0x7 does not name the calling lane 3"
    refuse(kernel("a[threadIdx.x] = __shfl_sync(0x7u, 1, 0);"), message, zeros(4), block=4)


def test_a_mask_that_names_lanes_the_warp_does_not_have() -> None:
    message = "names lanes that this warp of 4 does not have"
    refuse(kernel("a[threadIdx.x] = __ballot_sync(0xffu, 1);"), message, zeros(4), block=4)


def test_lanes_that_meet_at_different_warp_operations() -> None:
    body = """\
        if (threadIdx.x & 1) a[threadIdx.x] = __any_sync(0xffffffffu, 1);
        else a[threadIdx.x] = __all_sync(0xffffffffu, 1);"""
    refuse(
        kernel(body),
        "lanes . and .* meet at different warp operations: __a.. ?.*line [34], .*line [34]",
        zeros(32),
        block=32,
    )


def test_masks_that_overlap() -> None:
    body = "const unsigned masks[] = {3u, 6u, 5u}; a[threadIdx.x] = __any_sync(masks[threadIdx.x], 1);"
    refuse(kernel(body), "lane . uses mask 0x., lane . uses the overlapping mask 0x.", zeros(4), block=3)


def test_a_barrier_in_both_branches() -> None:
    body = """\
        if (threadIdx.x < 16)
          __syncthreads();
        else
          __syncthreads();"""
    refuse(
        kernel(body),
        r"threads 0 and 16 of one block wait at different __syncthreads\(\): lines 4 and 6",
        zeros(1),
        block=32,
    )


def test_a_barrier_that_some_threads_wait_for_in_a_warp_operation() -> None:
    body = "if (threadIdx.x < 32) __syncthreads(); else { __syncwarp(); if (threadIdx.x == 32) __ballot_sync(~0u, 1); }"
    function = kernel(body)
    function((1,), (33,), (zeros(1),))  # those that have returned are not waited for
    refuse(kernel("if (threadIdx.x) __syncthreads(); else __shfl_sync(3u, 1, 1);"), "deadlock", zeros(1), block=64)


@faults
def test_a_thread_that_waits_in_a_loop_for_another() -> None:
    body = "volatile int *flag = a; if (threadIdx.x == 0) while (!*flag) {} else *flag = 1;"
    function = kernel(body)
    with emulator.schedule("reverse"):
        function((1,), (2,), (zeros(1),))
    with emulator.cpu_limit(0.2), pytest.raises(EmulatorError, match=r"still running after 0\.2 s of CPU time"):
        function((1,), (2,), (zeros(1),))


def test_a_block_larger_than_its_launch_bounds() -> None:
    code = "template <int N> __global__ void __launch_bounds__(N, 4) few(int *a) {}"
    function = Module(code, name_expressions=["few<32>"]).get_function("few<32>")
    function((1,), (32,), (zeros(1),))
    refuse(function, "a block of 33 threads, __launch_bounds__ says 32", zeros(1), block=33)


def test_an_assertion_and_an_atomic_on_a_misaligned_address() -> None:
    refuse(kernel("assert(*a == 1);"), r"assert\(\*a == 1\) at line 3", zeros(1))
    refuse(kernel("atomicAdd((unsigned *)((char *)a + 2), 1u);"), "atomic on the misaligned address", zeros(4))


def test_after_an_error_the_next_launch_is_right() -> None:
    wrong = kernel(
        "__shared__ int held[64]; held[threadIdx.x] = 0; if (threadIdx.x) __syncthreads(); else __shfl_sync(3u, 1, 1);"
    )
    for _ in range(3):
        refuse(wrong, "deadlock", zeros(1), block=64)
        a = zeros(64)
        kernel("__syncthreads(); a[threadIdx.x] = __ballot_sync(~0u, 1);")((1,), (64,), (a,))
        assert set(a.tolist()) == {-1}


@pytest.mark.parametrize("line", ['asm("bar.sync 0;");', "wrong<<<1, 1>>>();", "__shared__ int a = 3;"])
def test_what_the_emulator_does_not_have_is_said(line: str) -> None:
    with pytest.raises(EmulatorError, match=r"wrong\.cu:3: the emulator does not have this form of|not understood"):
        kernel(line)


@pytest.mark.parametrize("type_", ["short", "long long", "unsigned char"])
def test_atomics_that_cuda_does_not_have_do_not_compile(type_: str) -> None:
    with pytest.raises(EmulatorError, match="CUDA has no such atomic for this type"):
        kernel("atomicAdd(a, 1);", f"{type_} *a")


# ---- what only ASan and TSan see: sanitize.sh runs these ----

RACE = """
    from tests.cuda_on_cpu.emulator import Module
    import numpy as np
    code = '''__global__ void exchange(int *out) {{
      __shared__ int held[64];
      held[threadIdx.x] = threadIdx.x;
      {barrier}
      out[threadIdx.x] = held[63 - threadIdx.x];
    }}'''
    Module(code, name_expressions=["exchange"]).get_function("exchange")((1,), (64,), (np.zeros(64, np.int32),))
    print("done")
"""
OVER_READ = """
    from tests.cuda_on_cpu.emulator import Module
    import numpy as np
    code = "__global__ void read(const int *a, int *out, int i) {{ *out = a[i]; }}"
    arguments = (np.zeros(5, np.int32), np.zeros(1, np.int32), np.int32({index}))
    Module(code, name_expressions=["read"]).get_function("read")((1,), (1,), arguments)
    print("done")
"""


def run(program: str, **values: Any) -> subprocess.CompletedProcess[str]:
    program = textwrap.dedent(program).format(**values)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)


@pytest.mark.skipif(emulator.sanitizer() != "tsan", reason="sanitize.sh runs it under TSan")
@pytest.mark.parametrize(("barrier", "races"), [("", True), ("__syncthreads();", False), ("__syncwarp();", True)])
def test_tsan_reports_a_missing_barrier(barrier: str, races: bool) -> None:
    done = run(RACE, barrier=barrier)
    assert ("data race" in done.stderr) == races, done.stderr
    assert ("done" in done.stdout) != races, done.stderr


@pytest.mark.skipif(emulator.sanitizer() != "asan", reason="sanitize.sh runs it under ASan")
@pytest.mark.parametrize("index", [4, 5])
def test_asan_reports_a_read_of_one_element_too_many(index: int) -> None:
    done = run(OVER_READ, index=index)
    assert ("heap-buffer-overflow" in done.stderr) == (index == 5), done.stderr
    assert ("done" in done.stdout) == (index == 4), done.stderr
