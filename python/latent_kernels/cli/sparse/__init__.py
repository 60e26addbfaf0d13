"""`latent-kernels sparse`: sparse encoders that learn, by layer, beside ISTA and FISTA."""
