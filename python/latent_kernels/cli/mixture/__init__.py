"""`latent-kernels mixture`: EM on real data, drawn, and its speed beside scikit-learn's."""
