"""Importance-weighted bounds from log-weights [S, ...], with the gradients of every estimator."""
