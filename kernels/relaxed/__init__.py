"""Relaxed samples of discrete families, which have gradients: Gumbel-softmax, binary Concrete."""
