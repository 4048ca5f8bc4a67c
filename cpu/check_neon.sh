#!/bin/sh
# Build for 64-bit Arm, run under qemu, and compare every result with this machine's.
# Needs: apt install g++-aarch64-linux-gnu qemu-user
set -eu
cd "$(dirname "$0")/.."
cmake -S cpu -B build/agreement -DPACKEDBAG_AGREEMENT=ON >/dev/null
cmake --build build/agreement --parallel 2 >/dev/null
cmake -S cpu -B build/agreement-aarch64 -DPACKEDBAG_AGREEMENT=ON -DCMAKE_SYSTEM_NAME=Linux \
  -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ >/dev/null
cmake --build build/agreement-aarch64 --parallel 2 >/dev/null
here=$(build/agreement/agreement)
arm=$(qemu-aarch64 -L /usr/aarch64-linux-gnu build/agreement-aarch64/agreement)
[ "$here" = "$arm" ] || { echo "results differ: $here here, $arm on Arm" >&2; exit 1; }
echo "NEON, and scalar code on Arm, give the same bits as this machine: $here"
