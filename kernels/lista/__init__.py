"""Unrolled iterative soft-thresholding: sparse encoders of a fixed number of layers."""
