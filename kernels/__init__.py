"""The kernels, one folder per op: `reference` has the formula, the other modules are compiled.

A module is named for its compiler and its device: `cpp_cpu`, `triton_gpu`, `numba_cpu`. All modules
of an op offer the same functions; `latent_kernels.kernels.backends` chooses among them. Kernels
trust their caller: the public functions check shapes, dtypes and devices. Nothing here imports the
public package.
"""
