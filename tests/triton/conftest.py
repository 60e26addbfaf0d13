"""Where Triton runs in its interpreter it compiles nothing: test_compiled.py starts a process for
the tests in compiled/.
"""

from latent_kernels.kernels import backends

collect_ignore = ["compiled"] if backends.interpreting() else []
