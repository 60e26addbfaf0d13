"""`latent-kernels variance`: the variance of gradient estimators against samples and time."""
