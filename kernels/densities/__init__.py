"""Log-densities summed over the last dimension: the diagonal Gaussian, and Bernoulli variables."""
