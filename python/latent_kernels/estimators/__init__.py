"""scikit-learn estimators over the kernels. `latent_kernels` imports them when they are asked for.

processes           what the processes of a torch.distributed group tell each other
em                  batches and the loop
initialization      where EM starts
fitted_mixture      what the mixtures share: prediction, scores, samples
mixture_estimator   the same: fitting
gaussian_mixture, mixture_model
sparse_codes        what estimators of sparse codes share: checks, solving, the encoder's fast path
sparse_coder        a given dictionary
dictionary_steps    the online update of a dictionary, the step of an encoder
dictionary_learning
"""
