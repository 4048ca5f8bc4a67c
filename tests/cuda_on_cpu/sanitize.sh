#!/usr/bin/env bash
# Run the emulated kernels under AddressSanitizer, then under ThreadSanitizer: slower, and not part of every test run.
#   tests/cuda_on_cpu/sanitize.sh [pytest arguments]      SANITIZERS="asan tsan" and PYTHON=.venv/bin/python pick
# Without arguments: all that runs kernels under ASan; small grids, of every kind of kernel, under TSan, which takes
# 100 times as long.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
cxx=${CXX:-g++}
folder=tests/cuda_on_cpu
declare -A usual=(
  # What compiles only has nothing to sanitize.
  [asan]="$folder tests/backends -k cuda --ignore-glob=*/test_kernels_compile.py --ignore-glob=*/test_offline.py"
  [tsan]="$folder/test_emulator.py $folder/test_emulator_faults.py $folder/test_kernels.py"
)

# Python itself is not instrumented, so the runtime must come first; it leaks by design, so leaks are not looked for.
# A report of either sanitizer ends the process: no test can pass over one.
under() {
  local sanitizer=$1 library
  shift
  library=$("$cxx" -print-file-name="lib$sanitizer.so")
  case $library in
    /*) ;;
    *) echo "sanitize.sh: $cxx has no lib$sanitizer.so" >&2; exit 1 ;;
  esac
  echo "== $sanitizer =="
  env LD_PRELOAD="$library $("$cxx" -print-file-name=libstdc++.so)" \
    PACKEDBAG_EMULATOR_SANITIZE="$sanitizer" HYPOTHESIS_PROFILE="${HYPOTHESIS_PROFILE:-small}" \
    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:halt_on_error=1:detect_stack_use_after_return=0 \
    TSAN_OPTIONS=halt_on_error=1:report_signal_unsafe=0:report_thread_leaks=0:history_size=4 \
    OMP_NUM_THREADS=1 \
    "$python" -m pytest -q -x --capture=sys -p no:cacheprovider -p no:faulthandler "$@"
}
for sanitizer in ${SANITIZERS:-asan tsan}; do
  if [ $# -gt 0 ]; then
    under "$sanitizer" "$@"
  else
    read -ra selection <<<"${usual[$sanitizer]}"
    under "$sanitizer" "${selection[@]}"
  fi
done
