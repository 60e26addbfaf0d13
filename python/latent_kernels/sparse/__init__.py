"""Sparse codes: Lasso solvers, learned encoders, dictionaries.

lasso                 `sparse_encode`: Lasso codes with a duality gap, and other kinds
pursuit               `orthogonal_matching_pursuit`: codes of few atoms, chosen one by one
_other_codes          codes by thresholds and by LARS
_arguments            checks of both functions, and arrays beside tensors
lista                 `lista_encode`, `coupled_lista_encode`: unrolled soft-thresholding
encoders              torch modules over them (`LISTA`, `LCoD`, `PSDEncoder`), and their training
sparse_coder          `SparseCoder`: scikit-learn's interface for a given dictionary
dictionary_learning   `DictionaryLearning`: scikit-learn's interface for a learned dictionary
mini_batch_dictionary_learning   `MiniBatchDictionaryLearning`: the same, without keeping codes
_dictionary_steps     the online update of a dictionary, and the step of an encoder beside it
_sparse_codes         the base of both estimators: checks, solving, the encoder's fast path

The estimators import scikit-learn, so `latent_kernels` imports them only when they are asked for.
"""
