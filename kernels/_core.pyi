"""The C++ extension (csrc/). Addresses and strides in; types are checked here, nothing else.

Address, Operand and Seeds are names for type checkers alone.
"""

import enum

Address = int | None  # None or 0 where there is nothing
Operand = tuple[int, int, int, int] | None  # address; strides of groups, samples and rows
Seeds = int | tuple[int, int]  # one for all groups; or address and stride of each group's

class Dtype(enum.Enum):
    float32 = ...
    float64 = ...
    bfloat16 = ...
    float16 = ...

def simd_builds() -> list[str]: ...
def simd_build() -> str: ...
def simd_lanes() -> int: ...
def select_simd_build(name: str) -> bool: ...

# --- noise

def normal(*, dtype: Dtype, threads: int, seed: int, offset: int, n: int, out: Address) -> None: ...
def uniform(
    *, dtype: Dtype, threads: int, seed: int, offset: int, n: int, out: Address
) -> None: ...

# --- gaussian

class GaussianProblem:
    """Logical noise [drawn samples, rows, cols] of each group; one of logvar and scale."""

    def __init__(
        self,
        *,
        dtype: Dtype,
        groups: int,
        samples: int,
        rows: int,
        cols: int,
        mean: Operand,
        logvar: Operand,
        scale: Operand,
        prior_mean: Operand,
        prior_logvar: Operand,
        seed: Seeds,
        offset: int,
        dependence: int,
        directions: Address,
    ) -> None: ...

def gaussian_forward(
    problem: GaussianProblem, /, *, threads: int, z: Address, kl: Address, log_q: Address
) -> None: ...
def gaussian_backward(
    problem: GaussianProblem,
    /,
    *,
    threads: int,
    z_gradient: Address,
    kl_gradient: Address,
    log_q_gradient: Address,
    mean_gradient: Address,
    logvar_gradient: Address,
    scale_gradient: Address,
    prior_mean_gradient: Address,
    prior_logvar_gradient: Address,
) -> None: ...
def gaussian_path_backward(
    problem: GaussianProblem, /, *, threads: int, log_q_gradient: Address, z_gradient: Address
) -> None: ...

class ScaleKlProblem:
    """Pairs of Gaussians by their scales, in flat arrays of n; float32 or float64."""

    def __init__(
        self,
        *,
        dtype: Dtype,
        n: int,
        loc: Address,
        scale: Address,
        q_loc: Address,
        q_scale: Address,
    ) -> None: ...

def gaussian_scale_kl(problem: ScaleKlProblem, *, threads: int, kl: Address) -> None: ...
def gaussian_scale_kl_backward(
    problem: ScaleKlProblem,
    *,
    threads: int,
    kl_gradient: Address,
    loc_gradient: Address,
    scale_gradient: Address,
    q_loc_gradient: Address,
    q_scale_gradient: Address,
) -> None: ...

# --- densities

class Density(enum.Enum):
    gaussian = ...
    bernoulli = ...

class DensityProblem:
    """Inputs: z, mean and logvar, or x and logits."""

    def __init__(
        self,
        *,
        density: Density,
        dtype: Dtype,
        groups: int,
        samples: int,
        rows: int,
        cols: int,
        inputs: tuple[Operand, ...],
    ) -> None: ...

def densities_forward(problem: DensityProblem, /, *, threads: int, out: Address) -> None: ...
def densities_backward(
    problem: DensityProblem,
    /,
    *,
    threads: int,
    gradient: Address,
    input_gradients: tuple[Address, ...],
) -> None: ...

# --- families and score

class FamilyProblem:
    """Bernoulli where classes is 0, else Categorical."""

    def __init__(
        self,
        *,
        dtype: Dtype,
        groups: int,
        samples: int,
        cols: int,
        classes: int,
        antithetic: bool,
        logits: Address,
        seed: Seeds,
        offset: int,
    ) -> None: ...

def families_sample(problem: FamilyProblem, /, *, threads: int, z: Address) -> bool: ...

class Family(enum.Enum):
    gaussian = ...
    bernoulli = ...
    antithetic = ...
    categorical = ...

class Control(enum.Enum):
    none = ...
    leave_one_out = ...
    optimal = ...

class ScoreProblem:
    """Shapes are in kernels/score/problem.py."""

    def __init__(
        self,
        *,
        family: Family,
        control: Control,
        dtype: Dtype,
        groups: int,
        samples: int,
        rows: int,
        cols: int,
        classes: int,
        folds: int,
        parameters: tuple[Address, ...],
        z: Address,
        seed: Seeds,
        offset: int,
        per_element: bool,
        double_values: bool,
        values: Address,
        baseline: Address,
        baseline_sampled: bool,
        upstream: Address,
    ) -> None: ...

def score_gradient(
    problem: ScoreProblem,
    /,
    *,
    threads: int,
    gradients: tuple[Address, ...],
    variances: tuple[Address, ...],
) -> bool: ...

# --- relaxed

class RelaxedProblem:
    """A cell is a variable of a Bernoulli, whose classes are 1, or a class of a Categorical's."""

    def __init__(
        self,
        *,
        dtype: Dtype,
        groups: int,
        samples: int,
        cells: int,
        classes: int,
        inverse: float,
        hard: bool,
        logits: Address,
        seed: Seeds,
        offset: int,
    ) -> None: ...

def relaxed_bernoulli_forward(problem: RelaxedProblem, /, *, threads: int, y: Address) -> None: ...
def relaxed_bernoulli_backward(
    problem: RelaxedProblem, /, *, threads: int, y: Address, of_y: Address, of_logits: Address
) -> None: ...
def relaxed_categorical_forward(
    problem: RelaxedProblem, /, *, threads: int, y: Address
) -> None: ...
def relaxed_categorical_backward(
    problem: RelaxedProblem, /, *, threads: int, y: Address, of_y: Address, of_logits: Address
) -> None: ...

# --- bounds

class BoundProblem:
    def __init__(
        self, *, dtype: Dtype, groups: int, samples: int, rows: int, log_w: Address
    ) -> None: ...

def bound_forward(
    problem: BoundProblem, /, *, threads: int, bound: Address, sums: Address
) -> None: ...
def bound_weights(
    problem: BoundProblem, /, *, threads: int, sums: Address, gradient: Address, out: Address
) -> None: ...
def bound_signal(
    problem: BoundProblem, /, *, threads: int, gradient: Address, out: Address
) -> None: ...

# --- lista

class ListaPlan:
    """Sizes, choices and the addresses of parameters, which whoever holds a plan keeps alive."""

    def __init__(
        self,
        *,
        dtype: Dtype,
        features: int,
        components: int,
        layers: int,
        positive: bool,
        layered_weight: bool,
        layered_recurrent: bool,
        layered_step: bool,
        layered_threshold: bool,
        wide_threshold: bool,
        weight: Address,
        threshold: Address,
        bias: Address,
        recurrent: Address,
        dictionary: Address,
        step: Address,
        select: tuple[int, ...],
    ) -> None: ...

class ListaTape:
    @property
    def nonzeros(self) -> list[int]: ...

class ListaGradients:
    def __init__(
        self,
        *,
        x: Address,
        weight: Address,
        threshold: Address,
        bias: Address,
        recurrent: Address,
        dictionary: Address,
        step: Address,
        initial: Address,
    ) -> None: ...

def least_value(*, dtype: Dtype, n: int, x: Address) -> float: ...
def lista_forward(
    plan: ListaPlan,
    /,
    *,
    threads: int,
    rows: int,
    x: Address,
    initial: Address,
    out: Address,
    with_tape: bool,
    with_drive: bool,
) -> ListaTape | None: ...
def lista_backward(
    plan: ListaPlan,
    /,
    *,
    threads: int,
    rows: int,
    x: Address,
    initial: Address,
    tape: ListaTape | None,
    upstream: Address,
    gradients: ListaGradients,
) -> None: ...

# --- lasso

class LassoAlgorithm(enum.Enum):
    ista = ...
    fista = ...
    cd = ...

class LassoProblem:
    def __init__(
        self,
        *,
        dtype: Dtype,
        algorithm: LassoAlgorithm,
        positive: bool,
        rows: int,
        features: int,
        components: int,
        max_iter: int,
        tolerance: float,
        largest: float,
        scaled: bool,
        curvature: float,
        x: Address,
        dictionary: Address,
        panels: Address,
        gram: Address,
        alpha: Address,
        alpha_stride: int,
        init: Address,
    ) -> None: ...

def lasso_prepare(
    *,
    dtype: Dtype,
    threads: int,
    features: int,
    components: int,
    dictionary: Address,
    atoms: Address,
    panels: Address,
    gram: Address,
) -> None: ...
def lasso_encode(
    problem: LassoProblem, /, *, threads: int, codes: Address, gap: Address
) -> None: ...
def lasso_far_rows(
    *, dtype: Dtype, rows: int, features: int, tolerance: float, x: Address, gap: Address
) -> int: ...

# --- omp

class OmpProblem:
    def __init__(
        self,
        *,
        dtype: Dtype,
        rows: int,
        features: int,
        components: int,
        most: int,
        tolerance: float,
        x: Address,
        panels: Address,
        gram: Address,
    ) -> None: ...

def omp_encode(problem: OmpProblem, /, *, threads: int, codes: Address) -> None: ...

# --- vector_quantize

class QuantizeProblem:
    """z [groups, rows, cols] and the codebook [groups, codes, cols]."""

    def __init__(
        self,
        *,
        dtype: Dtype,
        groups: int,
        rows: int,
        codes: int,
        cols: int,
        z: Address,
        codebook: Address,
        assigned: Address,
    ) -> None: ...

def quantize_assign(
    problem: QuantizeProblem, /, *, threads: int, codes: Address, counts: Address, sums: Address
) -> None: ...
def quantize_forward(
    problem: QuantizeProblem,
    /,
    *,
    threads: int,
    quantized: Address,
    commitment: Address,
    codebook_loss: Address,
) -> None: ...
def quantize_backward(
    problem: QuantizeProblem,
    /,
    *,
    threads: int,
    quantized_gradient: Address,
    commitment_gradient: Address,
    codebook_loss_gradient: Address,
    z_gradient: Address,
    codebook_gradient: Address,
) -> None: ...
