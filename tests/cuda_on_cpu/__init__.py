"""CUDA kernels without a GPU: an emulator that runs them on the CPU, and compilers for every architecture."""
