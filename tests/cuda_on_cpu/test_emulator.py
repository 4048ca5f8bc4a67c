"""What the emulator computes, and which arguments it takes; test_emulator_faults.py has what it refuses in a kernel."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch

from tests.cuda_on_cpu import emulator
from tests.cuda_on_cpu.emulator import EmulatorError, Module

pytestmark = pytest.mark.skipif(emulator.missing() is not None, reason=str(emulator.missing()))
schedules = pytest.mark.parametrize(("order", "seed"), [("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)])

COPY = (
    'extern "C" __global__ void copy(const int *from, int *to, int n) { for (int i = 0; i < n; i++) to[i] = from[i]; }'
)


def one(code: str, name: str, **options: Any) -> emulator.Function:
    """Return the one kernel of a source."""
    return Module(code, name_expressions=[name], **options).get_function(name)


def numbers(count: int) -> np.ndarray:
    return np.arange(count, dtype=np.int32)


@schedules
def test_a_template_with_shared_memory_gives_the_same_in_every_order(order: str, seed: int) -> None:
    code = """
    #define SIZE 64   // __shared__ in a comment is no declaration
    template <class T, int N> struct Pair { T values[N]; };
    template <class T, int N> __global__ void __launch_bounds__(N, 2) turn(const T *__restrict__ from, T *to, int n) {
      __shared__ T held[N];
      __shared__ Pair<T, 2> ends[1], unused;
      extern __shared__ __align__(16) unsigned char raw[];
      T *copies = reinterpret_cast<T *>(raw);
      const int i = blockIdx.x * N + threadIdx.x, j = N - 1 - threadIdx.x;
      held[threadIdx.x] = i < n ? from[i] : T(0);
      copies[threadIdx.x] = held[threadIdx.x];
      if (threadIdx.x == 0) ends[0].values[1] = held[0];
      __syncthreads();
      if (i < n) to[i] = held[j] + copies[j] + ends[0].values[1];
    }"""
    kernel = one(code, "turn<float, 64>")
    values = np.arange(192, dtype=np.float32)
    got = np.zeros_like(values)
    with emulator.schedule(order, seed):
        kernel((3,), (64,), (values, got, np.int32(192)), shared_mem=256)
    blocks = values.reshape(3, 64)
    np.testing.assert_array_equal(got.reshape(3, 64), 2 * blocks[:, ::-1] + blocks[:, :1])


@schedules
def test_warp_operations_agree_with_numpy(order: str, seed: int) -> None:
    code = """
    __global__ void warp(const int *v, long long *out) {
      const unsigned all = 0xffffffffu;
      const int lane = threadIdx.x & 31, x = v[threadIdx.x];
      long long *o = out + threadIdx.x * 14;
      o[0] = __ballot_sync(all, x & 1);
      o[1] = __any_sync(all, x > 60);
      o[2] = __all_sync(all, x < 60);
      o[3] = __shfl_sync(all, x, 5);
      o[4] = __shfl_xor_sync(all, (unsigned long long)x << 40, 3) >> 40;
      o[5] = (long long)__shfl_down_sync(all, x * 0.5f, 4);
      o[6] = __shfl_up_sync(all, (unsigned)x, 1, 8);
      o[7] = __shfl_sync(all, (long long)-x, 1, 16);
      o[8] = __reduce_add_sync(all, (unsigned)x);
      o[9] = __reduce_max_sync(all, -x);
      o[10] = __reduce_min_sync(all, (unsigned)x);
      o[11] = __match_any_sync(all, x / 4);
      o[12] = __syncthreads_count(x > 40);
      o[13] = lane < 16 ? __ballot_sync(0xffffu, x & 2) : __ballot_sync(0xffff0000u, x & 2);
    }"""
    values = np.random.default_rng(0).integers(0, 64, 64).astype(np.int32)
    got = np.zeros((64, 14), np.int64)
    with emulator.schedule(order, seed):
        one(code, "warp")((1,), (64,), (values, got))
    for start in (0, 32):
        v = values[start : start + 32].astype(np.int64)
        lanes = np.arange(32)
        bits = 1 << lanes

        def ballot(chosen: np.ndarray, bits: np.ndarray = bits) -> int:
            return int((bits * chosen).sum())

        down, up = np.where(lanes < 28, lanes + 4, lanes), np.where(lanes % 8 >= 1, lanes - 1, lanes)
        low = bits < 1 << 16
        expected = [
            ballot(v & 1), np.any(v > 60), np.all(v < 60), v[5], v[lanes ^ 3], v[down] // 2, v[up],
            -v[lanes // 16 * 16 + 1], v.sum(), (-v).max(), v.min(),
            [ballot(v // 4 == x // 4) for x in v], (values > 40).sum(),
            np.where(low, ballot((v & 2 > 0) & low), ballot((v & 2 > 0) & ~low)),
        ]  # fmt: skip
        for column, want in enumerate(expected):
            np.testing.assert_array_equal(got[start : start + 32, column], want, err_msg=f"o[{column}]")


def test_bit_and_number_intrinsics_agree_with_the_cuda_manual() -> None:
    code = """
    __global__ void numbers(long long *o, float *f) {
      o[0] = __popc(0xf0f0u); o[1] = __popcll(~0ull); o[2] = __clz(1); o[3] = __clz(0); o[4] = __clzll(1);
      o[5] = __clzll(0); o[6] = __ffs(8); o[7] = __ffs(0); o[8] = __umulhi(0x80000000u, 6u); o[9] = __brev(1u);
      o[10] = __byte_perm(0x33221100u, 0x77665544u, 0x7302u); o[11] = __funnelshift_r(1u, 1u, 1u);
      o[12] = __float_as_uint(1.0f); o[13] = __float2int_rz(3e9f); o[14] = __float2int_rn(2.5f);
      o[15] = max(3, 4u); o[16] = min(-1LL, 2); o[17] = isnan(__uint_as_float(0x7fc00000u));
      o[18] = (long long)__umul64hi(1ull << 63, 4ull);
      const uint4 q = make_uint4(1, 2, 3, 4); const float2 h = make_float2(0.5f, 1.5f);
      o[19] = q.x + q.y + q.z + q.w + sizeof(uint4) + alignof(uint4) + sizeof(int2) + sizeof(float4);
      f[0] = __fdiv_rn(1.0f, 3.0f); f[1] = __fsqrt_rn(2.0f); f[2] = fminf(NAN, 1.0f); f[3] = fmaxf(h.x, h.y);
      f[4] = copysignf(2.0f, -0.0f); f[5] = truncf(-1.5f); f[6] = fabsf(-3.0f);
      f[7] = __fadd_rn(__fmul_rn(1.0f + 0x1p-12f, 1.0f + 0x1p-12f), -1.0f); f[8] = (float)(1.0 / 3.0);
      f[9] = sqrtf(9.0f);
    }"""
    o, f = np.zeros(20, np.int64), np.zeros(10, np.float32)
    one(code, "numbers")((1,), (1,), (o, f))
    perm = 0x77330022
    assert o[:11].tolist() == [8, 64, 31, 32, 63, 64, 4, 0, 3, 1 << 31, perm]
    assert o[11:].tolist() == [1 << 31, 0x3F800000, 2**31 - 1, 2, 4, -1, 1, 2, 10 + 16 + 16 + 8 + 16]
    third, root = np.float32(1) / np.float32(3), np.sqrt(np.float32(2))
    assert f.tolist() == [third, root, 1, 1.5, -2, -1, 3, np.float32(2**-11), np.float32(1 / 3), 3]


@schedules
def test_atomics_count_every_thread_and_wrap_around(order: str, seed: int) -> None:
    code = """
    __global__ void count(int *i, unsigned *u, unsigned long long *w, float *f) {
      const int t = blockIdx.x * blockDim.x + threadIdx.x;
      atomicAdd(i, 1); atomicMin(i + 1, -t); atomicMax(i + 2, t); atomicCAS(i + 3, 0, t + 1); atomicAdd(i + 4, 1);
      atomicOr(u, 1u << (t % 32)); atomicExch(u + 1, 7u); atomicAdd(w, 1ull << 32);
      atomicMin(w + 1, (unsigned long long)t); atomicCAS(w + 2, 0ull, 9ull); atomicAdd(f, 0.5f);
      for (bool done = false; !done;) {      // a lock, whose holder may be set aside
        if (atomicCAS(u + 2, 0u, 1u)) continue;
        __threadfence();
        volatile unsigned *held = u + 3;
        *held = *held + 1;
        __threadfence();
        atomicExch(u + 2, 0u);
        done = true;
      }
    }"""
    i = np.array([0, 0, 0, 0, 2**31 - 1], np.int32)
    u, w, f = np.zeros(4, np.uint32), np.array([0, 99, 0], np.uint64), np.zeros(1, np.float32)
    with emulator.schedule(order, seed):
        one(code, "count")((3,), (40,), (i, u, w, f))
    assert i[:3].tolist() == [120, -119, 119]
    assert 1 <= i[3] <= 120
    assert i[4] == -(2**31) + 119
    assert u.tolist() == [2**32 - 1, 7, 0, 120]
    assert w.tolist() == [120 << 32, 0, 9]
    assert f[0] == 60


def test_a_multiply_and_an_add_round_separately() -> None:
    code = "__global__ void both(const float *v, float *out) { out[0] = v[0] * v[1] + v[2]; }"
    v = np.array([1 + 2**-12, 1 + 2**-12, -1], np.float32)
    out = np.zeros(1, np.float32)
    one(code, "both")((1,), (1,), (v, out))
    assert out[0] == np.float32(2**-11)  # a fused one would keep 2**-24


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.bool, torch.int8, torch.int16, torch.int64, torch.uint16, torch.uint32],
)
def test_tensors_of_every_type_are_taken_and_written_back(dtype: torch.dtype) -> None:
    size = torch.empty(0, dtype=dtype).element_size()
    word = {1: "unsigned char", 2: "unsigned short", 4: "unsigned", 8: "unsigned long long"}[size]
    code = f"__global__ void copy(const {word} *from, {word} *to, int n) {{ to[threadIdx.x] = from[threadIdx.x]; }}"
    given = torch.tensor([0, 1, 1, 0, 1]).to(dtype)
    got, through_addresses = torch.zeros(5, dtype=dtype), torch.zeros(5, dtype=dtype)
    kernel = one(code, "copy")
    kernel((1,), (5,), (given, got, np.int32(5)))
    kernel((1,), (5,), (emulator.remember(given), emulator.remember(through_addresses), np.int32(5)))
    assert got.tolist() == given.tolist() == through_addresses.tolist()


def test_shared_memory_starts_as_garbage_in_every_block() -> None:
    code = """__global__ void peek(unsigned *out) {
      __shared__ unsigned held[2];
      out[blockIdx.x] = held[0];
      held[0] = 0;
    }"""
    out = np.zeros(3, np.uint32)
    one(code, "peek")((3,), (1,), (out,))
    assert out.tolist() == [0xCDCDCDCD] * 3


def test_an_exchange_without_a_barrier_differs_between_orders() -> None:
    code = """__global__ void exchange(int *out) {
      __shared__ int held[32];
      held[threadIdx.x] = threadIdx.x;
      BARRIER
      out[threadIdx.x] = held[31 - threadIdx.x];
    }"""

    def results(barrier: str) -> set[tuple[int, ...]]:
        kernel, seen = one(code.replace("BARRIER", barrier), "exchange"), set()
        for order in emulator.SCHEDULES:
            out = np.zeros(32, np.int32)
            with emulator.schedule(order):
                kernel((1,), (32,), (out,))
            seen.add(tuple(out.tolist()))
        return seen

    assert results("__syncthreads();") == {tuple(range(31, -1, -1))}
    if emulator.sanitizer() != "tsan":  # which would end the process
        assert len(results("")) > 1


def test_architectures_before_80_have_no_reduce() -> None:
    code = "__global__ void sum(unsigned *v) { v[0] = __reduce_add_sync(0xffffffffu, v[threadIdx.x]); }"
    one(code, "sum", arch=800)
    with pytest.raises(EmulatorError, match="__reduce_add_sync"):
        one(code, "sum", arch=750)


def test_extern_c_kernels_need_no_name_expression() -> None:
    to = np.zeros(4, np.int32)
    Module(COPY).get_function("copy")((1,), (1,), (numbers(4), to, np.int32(4)))
    assert to.tolist() == [0, 1, 2, 3]


def test_includes_and_defines_come_from_the_options(tmp_path: Any) -> None:
    (tmp_path / "one.cuh").write_text("#pragma once\n__device__ int one() { __shared__ int v; v = ONE; return v; }\n")
    code = '#include "one.cuh"\n#include "one.cuh"\n__global__ void put(int *out) { *out = one() + __LINE__; }'
    out = np.zeros(1, np.int32)
    one(code, "put", options=[f"-I{tmp_path}", "-DONE=1"])((1,), (1,), (out,))
    assert out[0] == 4


def test_a_source_that_does_not_compile_names_its_file_and_line() -> None:
    with pytest.raises(EmulatorError, match=r"wrong\.cu:2:.*nowhere"):
        Module('extern "C" __global__ void wrong() {\n  nowhere();\n}', filename="wrong.cu")


# ---- arguments ----


@pytest.mark.parametrize(
    ("count", "seen"),
    [
        (3, "int 3"),
        (3.0, "float 3.0"),
        (np.int64(3), "numpy.int64"),
        (np.int16(3), "numpy.int16"),
        (np.float32(3), "numpy.float32"),
        (numbers(1), "ndarray"),
    ],
)
def test_a_number_of_another_width_or_kind_is_refused(count: Any, seen: str) -> None:
    with pytest.raises(EmulatorError, match=rf"copy: argument 2 is {seen}.*the parameter is a 4-byte integer"):
        Module(COPY).get_function("copy")((1,), (1,), (numbers(4), numbers(4), count))


@pytest.mark.parametrize(
    ("value", "seen"),
    [
        (np.zeros(4, np.float32), "float32"),
        (np.zeros(4, np.int64), "int64"),
        (np.zeros((4, 2), np.int32)[:, 0], "not contiguous"),
        (torch.zeros(4, 2, dtype=torch.int32).T, "not contiguous"),
        (np.int32(4), "int32"),
        (0, "int"),
        (torch.zeros(4), r"torch\.float32"),
        (torch.zeros(4, dtype=torch.int32, device="meta"), "Tensor"),
    ],
)
def test_a_pointer_to_something_else_is_refused(value: Any, seen: str) -> None:
    with pytest.raises(EmulatorError, match=rf"copy: argument 0 is {seen}.*a pointer to 4-byte integers"):
        Module(COPY).get_function("copy")((1,), (1,), (value, numbers(4), np.int32(4)))


def test_a_read_only_array_is_no_result() -> None:
    fixed = numbers(4)
    fixed.flags.writeable = False
    with pytest.raises(EmulatorError, match="argument 1 is a read-only array"):
        Module(COPY).get_function("copy")((1,), (1,), (numbers(4), fixed, np.int32(4)))


def test_the_number_of_arguments_is_checked() -> None:
    with pytest.raises(EmulatorError, match="2 arguments for 3 parameters"):
        Module(COPY).get_function("copy")((1,), (1,), (numbers(4), numbers(4)))


@pytest.mark.parametrize(
    ("grid", "block"), [((0,), (1,)), ((1,), (0,)), ((1,), (1025,)), ((1, 65536), (1,)), ((1,), (32, 33))]
)
def test_a_launch_that_no_gpu_accepts_is_refused(grid: tuple[int, ...], block: tuple[int, ...]) -> None:
    with pytest.raises(EmulatorError, match="no GPU has"):
        Module(COPY).get_function("copy")(grid, block, (numbers(4), numbers(4), np.int32(4)))


def test_null_and_tensors_without_bytes_are_null() -> None:
    code = "__global__ void is_null(const int *a, const int *b, const int *c, int *out) { *out = !a + !b + !c; }"
    out = np.zeros(1, np.int32)
    one(code, "is_null")((1,), (1,), (None, np.uint64(0), emulator.remember(torch.zeros(0, dtype=torch.int32)), out))
    assert out[0] == 3
    assert emulator.remember(torch.zeros(3, 0)) == emulator.remember(np.zeros(0)) == 0


def test_an_address_is_known_while_its_memory_lives() -> None:
    kernel, to = Module(COPY).get_function("copy"), np.zeros(2, np.int32)
    tensor = torch.arange(4, dtype=torch.int32)
    inside = np.uint64(emulator.remember(tensor.view(2, 2)) + 8)
    for _ in range(2):  # the view is gone at the second launch, its storage is not
        kernel((1,), (1,), (inside, to, np.int32(2)))
        assert to.tolist() == [2, 3]
    del tensor
    gc.collect()
    with pytest.raises(EmulatorError, match=r"argument 0: address 0x[0-9a-f]+ belongs to no remembered tensor"):
        kernel((1,), (1,), (inside, to, np.int32(2)))


def test_a_forgotten_address_and_one_past_the_end_are_unknown() -> None:
    kernel, tensor, to = Module(COPY).get_function("copy"), torch.zeros(4, dtype=torch.int32), np.zeros(1, np.int32)
    address = emulator.remember(tensor)
    with pytest.raises(EmulatorError, match="belongs to no remembered tensor"):
        kernel((1,), (1,), (np.uint64(address + 16), to, np.int32(0)))
    emulator.forget(tensor)
    with pytest.raises(EmulatorError, match="belongs to no remembered tensor"):
        kernel((1,), (1,), (address, to, np.int32(0)))


def test_the_same_memory_twice_is_one_memory() -> None:
    code = "__global__ void both(const int *from, int *to) { *to = 5; *to += *(volatile const int *)from; }"
    kernel = one(code, "both")
    for wrap in (emulator.remember, lambda tensor: tensor):
        tensor = torch.zeros(1, dtype=torch.int32)
        kernel((1,), (1,), (wrap(tensor), wrap(tensor)))
        assert tensor[0] == 10


def test_memory_that_overlaps_otherwise_is_refused_unless_both_are_const() -> None:
    kernel, v = Module(COPY).get_function("copy"), numbers(8)
    for first, second in [(v[:5], v[4:]), (v, v[:4]), (v[2:4], v)]:
        with pytest.raises(EmulatorError, match="arguments 0 and 1 overlap"):
            kernel((1,), (1,), (first, second, np.int32(1)))
    code = "__global__ void differences(const int *low, const int *high, int *out) { *out = *high - *low; }"
    out = np.zeros(1, np.int32)
    one(code, "differences")((1,), (1,), (v[:-1], v[1:], out))
    assert out[0] == 1


def test_the_longer_of_two_views_from_one_start_bounds_both() -> None:
    tensor, to = torch.arange(4, dtype=torch.int32), np.zeros(4, np.int32)
    arguments = (emulator.remember(tensor), emulator.remember(to), np.int32(4))
    emulator.remember(tensor[:2])
    Module(COPY).get_function("copy")((1,), (1,), arguments)
    assert to.tolist() == [0, 1, 2, 3]
