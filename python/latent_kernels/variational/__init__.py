"""Variational inference: samples, densities, bounds, and gradient estimators with their variance.

gaussian              `rsample_kl`, `rsample`, `rsample_log_prob`, `gaussian_kl`
densities             `gaussian_log_prob`, `bernoulli_log_prob`
distributions         `FusedNormal`
families              `DiagonalGaussian`, `Bernoulli`, `Categorical`
score                 score-function gradients with control variates, and DisARM
bounds                `elbo`, `importance_bound`
diagnostics           what importance weights are worth
streaming             `streamed_bound`: more samples than memory holds
variance              `profile_variance`
gradient_estimators   the estimators that `profile_variance` compares
_replay, _statistics  chunks repeated from the seed; running moments and intervals
"""
