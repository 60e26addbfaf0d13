"""`latent-kernels bounds`: VAEs trained on importance-weighted bounds, judged by held-out ones."""
