"""Lasso codes over a dictionary: ISTA, FISTA and coordinate descent with duality gaps."""
