"""torch's CUDA devices in the host's memory, so that tests for a GPU run, unchanged, where there is none.

``pytest --device hosted`` runs what ``--device cuda`` runs on a GPU: tensors are on "cuda", operators refuse tensors of
two devices, and CuPy's kernels are the emulator's. See README.md of the folder above.
"""
