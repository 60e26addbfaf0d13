"""`python -m latent_kernels` is the command line."""

from latent_kernels.cli import main

main()
