#!/bin/sh
# Run the tests of the native backend on a library built with AddressSanitizer and UndefinedBehaviorSanitizer.
#   cpu/sanitize.sh [pytest arguments]      PYTHON=... picks another interpreter than .venv's
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
build=build/sanitize
cmake -S cpu -B "$build" -DPACKEDBAG_SANITIZE=address,undefined >/dev/null
cmake --build "$build" --parallel 2
cxx=$(sed -n 's/^CMAKE_CXX_COMPILER:[A-Z]*=//p' "$build/CMakeCache.txt")

# Python itself is not instrumented, so the runtime must come first; it leaks by design, so leaks are not looked for.
# The guard-page test ends a child by a segmentation fault on purpose, and forking is not the sanitizer's business.
LD_PRELOAD="$("$cxx" -print-file-name=libasan.so) $("$cxx" -print-file-name=libstdc++.so)" \
ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:handle_segv=0 \
UBSAN_OPTIONS=print_stacktrace=1 \
PACKEDBAG_NATIVE_LIBRARY="$PWD/$build/libpackedbag_cpu.so" \
"$python" -m pytest -q -x --capture=sys -p no:cacheprovider tests/backends tests/serving -k "native and not forked" "$@"
