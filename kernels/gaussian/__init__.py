"""Reparameterized Gaussian samples with KL, and the Gaussian log-density."""
