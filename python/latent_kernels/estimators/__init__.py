"""scikit-learn estimators over the kernels. `latent_kernels` imports them when they are asked for.

processes           what the processes of a torch.distributed group tell each other
em                  batches and the loop
initialization      where EM starts
fitted_mixture      what the mixtures share: prediction, scores, samples
mixture_estimator   the same: fitting
gaussian_mixture, mixture_model
"""
