"""Mixture models: E-steps as sufficient statistics, and estimators with scikit-learn's interface.

e_step                  `gaussian_e_step`, `exponential_family_e_step`: checks, then kernels
sufficient_statistics   `SufficientStatistics`: sums over rows, and the M-step from them
gaussian_mixture        `GaussianMixture`
mixture_model           `MixtureModel`: columns of several families
_families               exponential families of single columns
_em                     batches of rows, and the loop of EM
_initialization         the start of EM
_mixture_estimator      the base of both estimators: fitting
_fitted_mixture         the base of that: prediction, scores, samples
_processes              exchange between the processes of a torch.distributed group

The estimators import scikit-learn, so `latent_kernels` imports them only when they are asked for.
"""
