"""scikit-learn estimators over the kernels. `latent_kernels` imports them when they are asked for.

em                  batches, processes and the loop
initialization      where EM starts
mixture_estimator   what the mixtures share
gaussian_mixture, mixture_model
"""
