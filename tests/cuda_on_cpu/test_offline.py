"""The offline compilers: their reports, on sources whose registers, shared memory and spills are known by design."""

from __future__ import annotations

import pytest

from tests.cuda_on_cpu import offline
from tests.cuda_on_cpu.offline import OfflineError, Report, compile_source

pytestmark = pytest.mark.skipif(offline.missing() is not None, reason=str(offline.missing()))
tools = pytest.mark.parametrize("tool", offline.compilers(), ids=lambda tool: tool.name)

SHARING = """
typedef long long i64;
namespace deep { template <class T, int N> __global__ void share(T *a) {
  __shared__ T held[N];
  held[threadIdx.x] = a[threadIdx.x];
  __syncthreads();
  a[threadIdx.x] = held[N - 1 - threadIdx.x];
} }
__global__ void plain(float *a) { a[threadIdx.x] += 1.0f; }
extern "C" __global__ void unmangled(float *a) { a[threadIdx.x] += 2.0f; }
"""
# 64 running values, each needed to the end, of which registers can hold only a part.
SPILLING = """
template <int COUNT> __global__ void __launch_bounds__(1024, 2) hold(const float *from, float *to, int n) {
  float values[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; i++) values[i] = from[i * 1024 + threadIdx.x];
  for (int k = 0; k < n; k++) {
#pragma unroll
    for (int i = 0; i < COUNT; i++) values[i] = values[i] * values[(i + 7) % COUNT] + from[k];
  }
#pragma unroll
  for (int i = 0; i < COUNT; i++) to[i * 1024 + threadIdx.x] = values[i];
}
"""


@tools
@pytest.mark.parametrize("arch", offline.ARCHITECTURES)
def test_every_name_gets_its_own_report(tool: offline.Compiler, arch: int) -> None:
    if arch not in tool.architectures():
        pytest.skip(f"{tool.name} knows no sm_{arch}")
    names = ["deep::share<i64, 32>", "plain", "deep::share<int, 64>", "unmangled", "deep::share<i64, 256>"]
    found = compile_source(SHARING, names, arch, filename="sharing.cu", tool=tool)
    assert [report.name for report in found] == names
    reserved = found[1].shared  # from sm_90 on, the system takes some of a block's shared memory
    assert [report.shared - reserved for report in found] == [256, 0, 256, 0, 2048]
    assert all(report.arch == arch and 0 < report.registers <= 32 for report in found)
    assert not any(report.spills or report.stack for report in found)


@tools
def test_a_kernel_that_spills_is_seen(tool: offline.Compiler) -> None:
    few, many = compile_source(SPILLING, ["hold<4>", "hold<64>"], 90, filename="spilling.cu", tool=tool)
    assert not few.spills
    assert many.spills
    assert many.spill_stores > 0
    assert many.spill_loads > 0
    assert many.stack > 0
    assert many.registers == 32  # 65,536 registers for 2 blocks of 1024 threads


@tools
def test_an_error_comes_with_the_compilers_log(tool: offline.Compiler) -> None:
    code = "__global__ void wrong(int *a) {\n  *a = nowhere;\n}"
    with pytest.raises(
        OfflineError, match=r'wrong\.cu does not compile:\n[\s\S]*wrong\.cu\(2\).*"nowhere" is undefined'
    ):
        compile_source(code, ["wrong"], 80, filename="wrong.cu", tool=tool)


@tools
def test_a_name_that_is_no_kernel_is_an_error(tool: offline.Compiler) -> None:
    with pytest.raises(OfflineError, match="absent"):
        compile_source(SHARING, ["absent<3>"], 80, filename="sharing.cu", tool=tool)


@tools
def test_options_reach_the_compiler(tool: offline.Compiler) -> None:
    code = (
        "__global__ void sized(int *a) { __shared__ int v[SIZE]; v[threadIdx.x] = *a; __syncthreads(); a[1] = v[*a]; }"
    )
    small, large = (
        compile_source(code, ["sized"], 80, filename="sized.cu", options=[f"-DSIZE={size}"], tool=tool)[0].shared
        for size in (32, 64)
    )
    assert (small, large) == (128, 256)


def test_spills_of_a_function_that_is_not_inlined_count_for_every_kernel() -> None:
    log = """ptxas info    : Function properties for _Z5innerv
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Compiling entry function '_Z5outerv' for 'sm_90'
ptxas info    : Function properties for _Z5outerv
    24 bytes stack frame, 1 bytes spill stores, 2 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 24 bytes cumulative stack size, 128 bytes smem, 360 bytes cmem[0]
"""
    assert offline.reports(log, {"outer": "_Z5outerv"}, 90) == [Report("outer", 90, 40, 24, 13, 10, 128)]
    with pytest.raises(OfflineError, match="ptxas says nothing of other"):
        offline.reports(log, {"other": "_Z5otherv"}, 90)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "knows no sm_10" in str(offline.missing(10))
    monkeypatch.setattr(offline, "compilers", lambda: ())
    assert offline.missing() == "neither the package nvidia-cuda-nvrtc nor nvcc is installed"
    with pytest.raises(OfflineError, match="neither the package"):
        compile_source(SHARING, ["plain"], 80, filename="sharing.cu")
