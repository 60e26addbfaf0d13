"""Vector quantization: the nearest code of each row, and the sums that move codes to their rows."""
