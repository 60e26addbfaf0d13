"""Unrolled iterative soft-thresholding: sparse encoders with a fixed number of layers."""
