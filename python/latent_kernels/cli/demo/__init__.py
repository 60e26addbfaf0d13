"""`latent-kernels demo`: VAEs on handwritten digits, drawn, and compared with plain torch."""
