"""Mixture models: E-steps as sufficient statistics, and estimators with scikit-learn's interface.

e_step                  `gaussian_e_step`, `exponential_family_e_step`: checks, then the kernels
sufficient_statistics   `SufficientStatistics`: sums over rows, and the M-step from them
gaussian_mixture        `GaussianMixture`
mixture_model           `MixtureModel`: columns of several families
_columns                exponential families of single columns
_em                     batches of rows, and the loop of EM
_initialization         where EM starts
_mixture_estimator      what both estimators share: fitting
_fitted_mixture         what both estimators share: prediction, scores, samples
_processes              what the processes of a torch.distributed group tell each other

The estimators import scikit-learn, so `latent_kernels` imports them when they are asked for.
"""
