"""The kernels, one folder per op: `reference` is the formula, the other modules are its compiled
forms.

A module is named for its compiler and its device: `cpp_cpu`, `triton_gpu`, `numba_cpu`. All modules
of an op offer the same functions; `latent_kernels.kernels.backends` chooses among them. Kernels trust
their caller: shapes, dtypes and devices are checked in `latent_kernels.<op>`.
"""
