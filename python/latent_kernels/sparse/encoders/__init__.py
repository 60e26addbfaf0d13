"""Learned sparse encoders as torch modules, and their training.

_start               initial parameters: checked dictionaries, safe steps, thresholds that stay >= 0
analytic             the weights of ALISTA
lista                `LISTA`: unrolled soft-thresholding, over `latent_kernels.lista_encode`
coordinate_descent   `LCoD`: unrolled greedy coordinate descent
psd                  `PSDEncoder`: one layer of tanh
_batches, training   `train_encoder`
"""

from __future__ import annotations

from latent_kernels.sparse.encoders.analytic import analytic_weight, generalized_coherence
from latent_kernels.sparse.encoders.coordinate_descent import LCoD
from latent_kernels.sparse.encoders.lista import LISTA
from latent_kernels.sparse.encoders.psd import PSDEncoder
from latent_kernels.sparse.encoders.training import Stage, Training, TrainingDiverged, train_encoder

__all__ = [
    "LISTA",
    "LCoD",
    "PSDEncoder",
    "Stage",
    "Training",
    "TrainingDiverged",
    "analytic_weight",
    "generalized_coherence",
    "train_encoder",
]
