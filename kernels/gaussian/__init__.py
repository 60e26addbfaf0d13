"""Reparameterized Gaussian samples with KL."""
