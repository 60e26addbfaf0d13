"""Relaxed samples of discrete families: differentiable, by the Gumbel-softmax and its binary form."""
