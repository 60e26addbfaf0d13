"""LISTA and its variants as one torch module."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from latent_kernels._checks import integer
from latent_kernels.kernels.lista.plan import Derived, Plan, readable, takes
from latent_kernels.kernels.lista.problem import Gradients, Problem
from latent_kernels.sparse.encoders import analytic
from latent_kernels.sparse.encoders._start import (
    Array,
    Placement,
    Thresholding,
    lipschitz,
    non_negative,
    prepared,
    reflected,
    shape_of,
    squared_lengths,
)
from latent_kernels.sparse.lista import coupled_lista_encode, lista_encode

Tensor = torch.Tensor
Variant = Literal["lista", "cp", "alista", "step"]
Thresholds = Literal["component", "layer", "shared"]

# The tensors that each variant holds fixed; it learns the others.
_FIXED: dict[str, tuple[str, ...]] = {
    "lista": (),
    "cp": ("dictionary",),
    "alista": ("dictionary", "weight", "recurrent"),
    "step": ("dictionary", "weight", "recurrent"),
}
_NAMES = ("dictionary", "weight", "recurrent", "bias", "step", "threshold")
_PER_COMPONENT: dict[str, Thresholds] = {"lista": "component", "cp": "layer", "alista": "layer"}


class LISTA(Thresholding):
    r"""A sparse encoder: T layers of soft-thresholding, with learned matrices, steps or thresholds.

    With soft(u, theta) = sign(u) max(abs(u) - theta, 0), z_0 = 0 unless `initial` is given, and t =
    1..T:

    ======== ================================================================ ==================
    variant  layer                                                            learned
    ======== ================================================================ ==================
    "lista"  z_t = soft(x W + b + z_{t-1} S_t, theta_t)                       W, S_t, theta_t, b
    "cp"     z_t = soft(z_{t-1} + (x - z_{t-1} D) W_t, theta_t)               W_t, theta_t
    "alista" z_t = soft(z_{t-1} + gamma_t (x - z_{t-1} D) W, theta_t)         gamma_t, theta_t
    "step"   z_t = soft(z_{t-1} + gamma_t (x - z_{t-1} D) D^T, alpha gamma_t) gamma_t
    ======== ================================================================ ==================

    The fixed W of "alista" is `analytic_weight(D)`.

    The initial parameters are safe. With L >= ||D||^2, "lista" (W = D^T / L, S = I - D D^T / L,
    theta = alpha / L), "cp" (W = D^T / L) and "step" (gamma = 1 / L) begin as exactly n_layers
    iterations of ISTA for the objective 1/2 ||x - z D||^2 + alpha ||z||_1. "alista" begins with
    gamma = 1 / max_j ||D w_j||^2 and theta = gamma alpha / ||d_j||^2 (their mean where a layer has
    one threshold).

    Thresholds (gamma, for "step") must not be negative, but any optimizer may train them. In
    training mode `forward` uses their absolute values. `eval()` and `load_state_dict` replace them
    by these (``project_()``), so that evaluation mode uses them as they are, and raises an error
    where they are negative (on the CPU, in plain calls of compiled kernels). A module that is
    trained in evaluation mode needs ``project_()`` after each step.

    In calls without gradients on the CPU, the module keeps a plan of the kernel's call: the next
    one is faster, since parameter values are checked again only after torch has recorded a change
    (writes through `.data` are not recorded). Copies and pickles of the module do not contain it.

    Args:
        n_features: the number of features, m.
        n_components: the number of codes, n.
        n_layers: T >= 1, the number of soft-thresholdings.
        dictionary: D [n, m] to start from, a tensor or an array; None for random rows of unit
            length, drawn by torch's default generator.
        alpha: the weight of the L1 norm, >= 0.
        variant: "lista", "cp", "alista" or "step".
        tied: one S ("lista") or W ("cp") for all layers, else one for each. The other variants
            learn no matrix.
        thresholds: "component", theta [T, n]; "layer", one for each layer [T, 1]; or "shared", [n]
            for all layers. None for "component" where the variant is "lista" and for "layer" where
            it is "cp" or "alista". Those of "step" follow from gamma.
        positive: codes >= 0: max(u - theta, 0).
        bias: with b [n], initially 0 ("lista").
        select: support selection (p, p_max): in layer t the largest min(p t, p_max) n entries of a
            row that are beyond the threshold pass without being reduced by it. Chen et al. take
            (0.012, 0.12) for codes that are 10% dense.
        device: of the parameters; None for that of the dictionary.
        dtype: of the parameters: float32, float64, bfloat16 or float16; None for that of the
            dictionary.

    Attributes have the shapes of the formulas, and are None where the variant has none: weight W
    [m, n] ([T, m, n] for untied "cp"), recurrent S [n, n] or [T, n, n] (for "alista" and "step" the
    fixed -D W), threshold, bias, step gamma [T], dictionary D [n, m]. Without an initial code the
    first layer does not use S. `state_dict` holds alpha, too.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Source:
        Gregor and LeCun, "Learning fast approximations of sparse coding" (2010); Chen, Liu, Wang,
        Yin, "Theoretical linear convergence of unfolded ISTA and its practical weights and
        thresholds" (2018); Liu, Chen, Wang, Yin, "ALISTA: analytic weights are as good as learned
        weights in LISTA" (2019); Ablin, Moreau, Massias, Gramfort, "Learning step sizes for
        unfolded sparse coding" (2019).

    Example:
        >>> import torch, latent_kernels as lk
        >>> encoder = lk.LISTA.from_dictionary(torch.eye(3), alpha=1.0, n_layers=3)
        >>> encoder(torch.tensor([[3.0, -0.5, 0.0]])).detach()
        tensor([[2., 0., 0.]])
        >>> encoder.layered  # the parameters with a value for each layer
        ('threshold',)

    """

    dictionary: Tensor | None
    weight: Tensor
    recurrent: Tensor | None
    threshold: Tensor | None
    bias: Tensor | None
    step: Tensor | None
    _plan: Plan | None = None  # of the last call that wanted no gradients

    def __init__(
        self,
        n_features: int,
        n_components: int,
        n_layers: int,
        *,
        dictionary: Array | None = None,
        alpha: float = 0.1,
        variant: Variant = "lista",
        tied: bool = True,
        thresholds: Thresholds | None = None,
        positive: bool = False,
        bias: bool = False,
        select: tuple[float, float] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.n_layers, self.alpha = (
            integer("n_layers", n_layers),
            non_negative("alpha", alpha),
        )
        _check_choices(variant, tied, thresholds, bias)
        start, place = prepared(dictionary, n_components, n_features, device, dtype)
        self.n_features, self.n_components = n_features, n_components
        self.variant, self.tied, self.positive, self.select = variant, tied, positive, select
        self.thresholds: Thresholds = thresholds or _PER_COMPONENT.get(variant, "layer")
        self._non_negative = ("step",) if variant == "step" else ("threshold",)
        self._select = _selection(select, n_layers, n_components)
        values = self._start(start, place)
        if bias:
            values["bias"] = place.of(torch.zeros(n_components, device="cpu"))
        for name in _NAMES:
            value = values.get(name)
            if name in _FIXED[variant]:
                self.register_buffer(name, value)
            else:
                self.register_parameter(name, None if value is None else nn.Parameter(value))

    @classmethod
    def from_dictionary(
        cls,
        dictionary: Array,
        alpha: float,
        n_layers: int,
        *,
        variant: Variant = "lista",
        tied: bool = True,
        thresholds: Thresholds | None = None,
        positive: bool = False,
        bias: bool = False,
        select: tuple[float, float] | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> LISTA:
        """Return the encoder that is ISTA for a dictionary [n_components, n_features] and alpha.

        The class describes the other arguments.
        """
        n, m = shape_of(dictionary)
        return cls(
            m,
            n,
            n_layers,
            dictionary=dictionary,
            alpha=alpha,
            variant=variant,
            tied=tied,
            thresholds=thresholds,
            positive=positive,
            bias=bias,
            select=select,
            device=device,
            dtype=dtype,
        )

    def forward(
        self, x: Tensor, initial: Tensor | None = None, n_layers: int | None = None
    ) -> Tensor:
        """Return the codes.

        Args:
            x: [..., n_features].
            initial: z_0 [..., n_components]; None for zeros.
            n_layers: use only the first n_layers layers; None for all.

        Returns:
            z [..., n_components] of the dtype that x and the parameters promote to.

        Raises:
            TypeError, ValueError: an argument is wrong (the message names it); in evaluation mode
                also for negative thresholds (gamma, for "step"; see the class).

        """
        layers = self.n_layers
        if n_layers is not None and n_layers != layers:
            layers = self._at_most_all(n_layers)
        asked = (layers, self.training, self.positive, self._select, float(self.alpha))
        may_plan = initial is None and takes(x)
        if may_plan and (plan := self._plan) is not None and plan.asked == asked:
            planned = plan.encode(x)
            if planned is not None:
                return planned
        threshold, step = self._feasible()
        options: dict[str, Any] = {
            "n_layers": layers,
            "initial": initial,
            "positive": self.positive,
            "select": None if self._select is None else self._select[:layers],
        }
        weight = self._first("weight", self.weight, layers)
        threshold = self._first("threshold", threshold, layers)
        if self.variant == "cp":
            assert self.dictionary is not None
            z = coupled_lista_encode(x, self.dictionary, weight, threshold, **options)
        else:
            assert self.recurrent is not None
            recurrent = self._first("recurrent", self.recurrent, layers)
            step = None if step is None else self._first("step", step, layers)
            z = lista_encode(x, weight, recurrent, threshold, bias=self.bias, step=step, **options)
        if may_plan and not z.requires_grad:
            self._plan = self._planned(x, asked, layers)
        return z

    @property
    def layered(self) -> tuple[str, ...]:
        """Return the names of the tensors whose first dimension is that of the layers."""
        names = []
        if not self.tied:
            names.append("weight" if self.variant == "cp" else "recurrent")
        if self.step is not None:
            names.append("step")
        if self.thresholds != "shared":
            names.append("threshold")
        return tuple(names)

    def extra_repr(self) -> str:
        """Return the sizes and options as text."""
        text = f"n_features={self.n_features}, n_components={self.n_components}"
        text += f", n_layers={self.n_layers}, variant={self.variant!r}"
        if self.variant in ("lista", "cp"):
            text += f", tied={self.tied}"
        text += (
            f", alpha={self.alpha:g}"
            if self.variant == "step"
            else f", thresholds={self.thresholds!r}"
        )
        for name, on in (("positive", self.positive), ("bias", self.bias is not None)):
            text += f", {name}=True" if on else ""
        return text + (f", select={self.select}" if self.select is not None else "")

    def get_extra_state(self) -> Tensor:
        """Return alpha as float64, for `state_dict`: the codes of "step" depend on it."""
        return torch.tensor(self.alpha, dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Set alpha, for `load_state_dict`."""
        self.alpha = non_negative("alpha", float(state))

    def __getstate__(self) -> dict[str, Any]:
        """Return the module's state without its plan, which is neither copied nor pickled."""
        return {name: value for name, value in self.__dict__.items() if name != "_plan"}

    def _apply(self, *arguments: Any, **options: Any) -> LISTA:
        """Drop the plan, which holds the memory that methods such as `to` replace."""
        self._plan = None
        super()._apply(*arguments, **options)  # type: ignore[no-untyped-call]
        return self

    def _feasible(self) -> tuple[Tensor, Tensor | None]:
        """Return thresholds that are not negative, and the steps."""
        threshold, step = self.threshold, self.step
        if threshold is None:
            step = self._feasible_values("step")
            return (float(self.alpha) * step).unsqueeze(-1), step
        return reflected(threshold) if self.training else threshold, step

    def _planned(self, x: Tensor, asked: tuple[object, ...], layers: int) -> Plan | None:
        """Return a plan of the call that has just run, or None where there can be none."""
        watched, derived = [], []
        tensors: dict[str, Tensor] = {}
        for name in _NAMES if self.variant == "cp" else _NAMES[1:]:
            registry = self._parameters if name in self._parameters else self._buffers
            tensor = registry.get(name)
            if tensor is not getattr(self, name):  # it is parametrized
                return None
            watched.append((registry, name))
            if tensor is not None:
                tensors[name] = self._first(name, tensor, layers).detach()
        if not readable(tensors.values(), x.dtype):
            return None
        if self.training:
            (name,) = self._non_negative
            out = torch.empty_like(tensors[name])
            derived.append(Derived(np.abs, (tensors[name].numpy(),), out.numpy()))
            tensors[name] = out
        if self.variant == "step":
            step = tensors["step"].unsqueeze(-1)
            out = torch.empty_like(step)
            derived.append(Derived(np.multiply, (step.numpy(), float(self.alpha)), out.numpy()))
            tensors["threshold"] = out
        select = None if self._select is None else self._select[:layers]
        sizes = (x.size(0), self.n_features, self.n_components)
        parameters: Any = map(tensors.get, Gradients._fields[1:])
        options: Any = (layers, self.positive, select)
        return Plan(asked, watched, Problem(sizes, x, *parameters, *options), derived)

    def _first(self, name: str, tensor: Tensor, layers: int) -> Tensor:
        """Return the tensor of that name for the first layers."""
        return tensor[:layers] if layers < self.n_layers and name in self.layered else tensor

    def _at_most_all(self, n_layers: int) -> int:
        if integer("n_layers", n_layers) > self.n_layers:
            raise ValueError(
                f"n_layers must be at most {self.n_layers}, as many as there are; got {n_layers}"
            )
        return n_layers

    def _start(self, dictionary: Tensor, place: Placement) -> dict[str, Tensor]:
        """Return the initial tensors of the variant; `dictionary` is float64."""
        layers, n = self.n_layers, self.n_components
        if self.variant == "alista":
            weight = analytic.solve(dictionary, place.dtype)
            recurrent = -(dictionary @ weight)
            # D W is a projection whose columns are scaled by 1 / q_j = ||D w_j||^2: no eigenvalue
            # is larger than the largest of these.
            gamma = (
                1
                / float((recurrent * recurrent).sum(0).max())
                / (1 + 16 * torch.finfo(place.dtype).eps)
            )
            threshold = gamma * self.alpha / squared_lengths(dictionary)
            present = dictionary.any(-1)  # thresholds of the others mean nothing, and weigh nothing
            threshold[~present] = threshold[present].mean()
        else:
            gamma = 1 / lipschitz(dictionary, place.dtype)
            weight = dictionary.T
            recurrent = -(dictionary @ weight)
            threshold = torch.full((n,), gamma * self.alpha, device="cpu", dtype=torch.float64)
        theta = self._layer_thresholds(threshold, place)
        if self.variant in ("alista", "step"):
            step = torch.full((layers,), gamma, device="cpu", dtype=torch.float64)
            values = {
                "dictionary": dictionary,
                "weight": weight,
                "recurrent": recurrent,
                "step": step,
            }
            placed = {name: place.of(value) for name, value in values.items()}
            return placed if self.variant == "step" else {**placed, "threshold": theta}
        weight = gamma * weight
        if self.variant == "cp":
            shape = () if self.tied else (layers, *weight.shape)
            return {
                "dictionary": place.of(dictionary),
                "weight": place.of(weight, *shape),
                "threshold": theta,
            }
        recurrent = torch.eye(n, device="cpu", dtype=torch.float64) + gamma * recurrent
        shape = () if self.tied else (layers, n, n)
        return {
            "weight": place.of(weight),
            "recurrent": place.of(recurrent, *shape),
            "threshold": theta,
        }

    def _layer_thresholds(self, threshold: Tensor, place: Placement) -> Tensor:
        """Return thresholds [n] in the shape that the option `thresholds` asks for."""
        if self.thresholds == "layer":
            return place.of(threshold.mean(), self.n_layers, 1)
        if self.thresholds == "shared":
            return place.of(threshold)
        return place.of(threshold, self.n_layers, len(threshold))


def _check_choices(variant: str, tied: bool, thresholds: str | None, bias: bool) -> None:
    if variant not in _FIXED:
        raise ValueError(f"variant must be one of {', '.join(map(repr, _FIXED))}; got {variant!r}")
    if thresholds is not None:
        if thresholds not in ("component", "layer", "shared"):
            raise ValueError(
                f"thresholds must be 'component', 'layer', 'shared' or None; got {thresholds!r}"
            )
        if variant == "step":
            raise ValueError(
                "thresholds must be None where variant is 'step' (alpha gamma_t);"
                f" got {thresholds!r}"
            )
    if not tied and variant in ("alista", "step"):
        raise ValueError(
            f"tied must be True where variant is {variant!r}, whose matrix is fixed; got {tied!r}"
        )
    if bias and variant != "lista":
        raise ValueError(f"bias must be False where variant is {variant!r}; got {bias!r}")


def _selection(
    select: tuple[float, float] | None, n_layers: int, n_components: int
) -> tuple[int, ...] | None:
    """Return, for each layer, how many entries of a row pass unthresholded."""
    if select is None:
        return None
    if not isinstance(select, (tuple, list)) or len(select) != 2:
        raise TypeError(
            f"select must be a pair (p, p_max) of shares of the components, or None; got {select!r}"
        )
    p, most = (non_negative("select", share) for share in select)
    if max(p, most) > 1:
        raise ValueError(f"select must hold shares of the components, in [0, 1]; got {select!r}")
    return tuple(round(min(p * (t + 1), most) * n_components) for t in range(n_layers))
