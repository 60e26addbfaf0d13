"""Score-function gradients: precision, NaN, the surrogate loss by autograd, seeds, baselines,
dtypes, layouts.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import latent_kernels as lk
from tests.score.laws import (
    BASELINE,
    CONTROLS,
    FAMILIES,
    elements,
    estimate,
    every_family,
    f,
    f_elements,
    family,
    flat,
    peer,
)

Tensor = torch.Tensor


# --- precision ------------------------------------------------------------------------------------


def float32_and_64(
    name: str, values: Tensor, z: Tensor, control: str
) -> list[tuple[Tensor, Tensor]]:
    """Return gradients, then variances, in float32 beside float64, of the same float32 values."""
    wide = family(name, values.size(1))
    q = type(wide)(*(x.float() for x in wide.parameters))
    wide = type(wide)(*(x.double() for x in q.parameters))
    ours = estimate(
        q, values, z if name == "categorical" else z.float(), control, return_variance=True
    )
    exact = estimate(
        wide,
        values.double(),
        z if name == "categorical" else z.float().double(),
        control,
        return_variance=True,
    )
    return list(zip((flat(x) for x in ours), (flat(x) for x in exact), strict=True))


@elements
@every_family
@pytest.mark.parametrize("control", ["leave_one_out", "optimal 2", "optimal 3"])
@pytest.mark.parametrize("samples", [3, 50, 1000])
def test_huge_values_lose_nothing(name: str, control: str, samples: int, per_element: bool) -> None:
    """f = 1e6 + small, as float32 holds it, gives results as good as small f, up to float32's
    rounding of the small part.
    """
    z = family(name, 7).sample(samples, seed=1)
    small = f_elements(z) if per_element else f(z)
    huge = (small + 1e6).float()
    for (ours, exact), (plain, plain_exact) in zip(
        float32_and_64(name, huge, z, control),
        float32_and_64(name, (small.float()), z, control),
        strict=True,
    ):
        # what small f loses itself, and eight roundings of terms of this size, which a sum of S
        # leaves at root S
        bound = 2 * (plain - plain_exact).abs().max() + 8 * 2.0**-24 * (1 + exact.abs().max()) * 4
        assert (ours - exact).abs().max() <= bound


@elements
@every_family
@pytest.mark.parametrize("control", ["leave_one_out", "optimal 2"])
@pytest.mark.parametrize("constant", [1e6, 1e6 / 3, -7e-5, 0.0])
def test_constant_values_give_nothing(
    name: str, control: str, constant: float, per_element: bool
) -> None:
    for samples in (2, 7, 1000):
        q = family(name, 5)
        q = type(q)(*(x.float() for x in q.parameters))
        z = q.sample(samples, seed=2)
        values = torch.full((samples, 5, 2) if per_element else (samples, 5), constant)
        gradients, variances = estimate(q, values, z, control, return_variance=True)
        assert flat(gradients).abs().max() <= 1e-9 * abs(constant)
        assert flat(variances).abs().max() <= 1e-15 * constant**2


@every_family
@pytest.mark.parametrize(("control", "least"), CONTROLS)
def test_nan_stays_in_its_row(simd_build: str, name: str, control: str, least: int) -> None:
    q = family(name, 37)
    z = q.sample(5, seed=1)
    values = f(z)
    values[3, 11] = torch.nan
    for x in (flat(g) for g in estimate(q, values, z, control, return_variance=True)):
        assert x.isnan().all(-1).all(-1).nonzero().flatten().tolist() == [11]
        assert int(x.isnan().any(-1).any(-1).sum()) == 1
    by_element = f_elements(z)
    by_element[3, 11, 1] = torch.nan
    for x in (flat(g) for g in estimate(q, by_element, z, control, return_variance=True)):
        assert x.isnan().any(-1).nonzero().tolist() == [[11, 1]]
    if name != "categorical":
        z[2, 20, 1] = torch.nan
        for x in (
            flat(g) for g in estimate(q, f(z).nan_to_num(), z, control, return_variance=True)
        ):
            assert x.isnan().any(-1).nonzero().tolist() == [[20, 1]]
    parameters = [x.clone() for x in q.parameters]
    parameters[0][5, 0] = torch.nan
    z = family(name, 37).sample(5, seed=1)
    x = flat(estimate(type(q)(*parameters), f(z), z, control))
    assert x.isnan().any(-1).nonzero().tolist() == [[5, 0]]


def test_nan_stays_in_its_row_of_disarm(simd_build: str) -> None:
    q = family("bernoulli", 37)
    z = q.sample_antithetic(5, seed=1)
    values = f(z)
    values[1, 3, 11] = torch.nan
    assert lk.disarm_gradient(q, values, z)[0].isnan().nonzero().tolist() == [[11, 0], [11, 1]]
    z[0, 2, 20, 1] = torch.nan
    values = torch.ones_like(values)
    assert lk.disarm_gradient(q, values, z)[0].isnan().nonzero().tolist() == [[20, 1]]


def test_certain_variables() -> None:
    """Logits of +-80 give gradients of about e^-80, or 0, and no infinity or NaN."""
    q = lk.Bernoulli(torch.tensor([[80.0, -80.0, 0.0]]).repeat(4, 1))
    z = q.sample(9, seed=3)
    wide = lk.Bernoulli(q.logits.double())
    for control in ("none", "leave_one_out", "optimal 2"):
        ours, exact = (
            estimate(x, 1 + z.sum(-1), y, control)[0] for x, y in ((q, z), (wide, z.double()))
        )
        assert torch.allclose(ours.double(), exact.double(), rtol=1e-4, atol=1e-34)
        assert ours[:, :2].abs().max() < 1e-30
    pairs = q.sample_antithetic(9, seed=3)
    assert lk.disarm_gradient(q, 1 + pairs.sum(-1), pairs)[0][:, :2].abs().max() == 0


def test_optimal_coefficient_of_no_information() -> None:
    """A fold outside which every score is 0 uses the mean of the values there."""
    q = lk.DiagonalGaussian(torch.zeros(1, 1), torch.zeros(1, 1))
    z = torch.tensor([0.0, 0.0, 1.0, 2.0]).reshape(4, 1, 1)
    values = torch.tensor([[3.0], [5.0], [10.0], [20.0]])
    (of_mean, _) = lk.score_function_gradient(q, values, z, control_variate="optimal")
    assert of_mean.item() == pytest.approx(((10 - 4) * 1 + (20 - 4) * 2) / 4)


# --- autograd -------------------------------------------------------------------------------------


def surrogate(
    name: str, q: Any, values: Tensor, z: Tensor, control: str, upstream: Tensor
) -> tuple[Tensor, ...]:
    """Return the gradient of the usual surrogate loss mean [(f - b) detached, log q(z)]; "optimal"
    uses each sample's own scores.
    """
    elementwise = values.shape == z.shape
    leaves = tuple(x.detach().clone().requires_grad_() for x in q.parameters)
    samples = len(values)
    if control.startswith("optimal"):
        each = tuple(x.expand(samples, *x.shape).clone().requires_grad_() for x in leaves)
        found = torch.autograd.grad(peer(name, each).log_prob(z).sum(), each)
        return tuple(optimal(values, s, upstream, elementwise, int(control[-1])) for s in found)
    weight = values.detach()
    if control == "leave_one_out":
        weight = weight - (weight.sum(0) - weight) / (samples - 1)
    elif control == "baseline":
        weight = weight - BASELINE
    log_prob = peer(name, leaves).log_prob(z)
    if not elementwise:
        log_prob = log_prob.sum(-1)
    return torch.autograd.grad(((weight * log_prob).mean(0) * upstream).sum(), leaves)


def optimal(values: Tensor, s: Tensor, upstream: Tensor, elementwise: bool, folds: int) -> Tensor:
    """Return the cross-fitted coefficient of each parameter, computed fold by fold in loops."""
    while values.dim() < s.dim():
        values, upstream = values.unsqueeze(-1), upstream.unsqueeze(-1)
    samples, total = len(s), torch.zeros_like(s[0])
    for k in range(folds):
        inside = list(range(k * samples // folds, (k + 1) * samples // folds))
        outside = [i for i in range(samples) if i not in inside]
        a = (values[outside] * s[outside] ** 2).sum(0) / (s[outside] ** 2).sum(0)
        total += ((values[inside] - a) * s[inside]).sum(0)
    return total / samples * upstream


@elements
@every_family
@pytest.mark.parametrize(("control", "least"), CONTROLS)
@pytest.mark.parametrize("batch", [(), (1,), (6,), (2, 3)], ids=str)
def test_backward_is_the_surrogate_losss(
    simd_build: str, name: str, control: str, least: int, batch: tuple[int, ...], per_element: bool
) -> None:
    """The backward pass gives the surrogate loss's gradients, upstream gradients included; values
    get the ordinary gradient of a mean, and the result is that mean.
    """
    shape = (*batch, 2)
    q = family(name, *batch)
    noise = [0.3 * torch.randn(x.shape, dtype=torch.float64) for x in q.parameters]
    leaves = tuple((x + e).requires_grad_() for x, e in zip(q.parameters, noise, strict=True))
    q = type(q)(*leaves)
    for samples in (least, least + 4):
        z = q.sample(samples, seed=4)
        values = (f_elements(z) if per_element else f(z)).requires_grad_()
        upstream = torch.randn(shape if per_element else batch, dtype=torch.float64)
        options: dict[str, Any] = {"control_variate": control}
        if control == "baseline":
            options["control_variate"] = torch.full_like(values, BASELINE)
        elif control.startswith("optimal"):
            options = {"control_variate": "optimal", "folds": int(control[-1])}
        out = lk.score_function_expectation(q, values, z, **options)
        assert out.shape == upstream.shape
        assert torch.allclose(out, values.mean(0), rtol=1e-13)
        *ours, of_values = torch.autograd.grad(out, (*leaves, values), upstream)
        theirs = surrogate(name, q, values, z, control, upstream)
        for a, b in zip(ours, theirs, strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-11)
        assert torch.allclose(of_values, (upstream / samples).expand(values.shape), rtol=1e-14)
        plain = estimate(q, values, z, control)
        weight = upstream if per_element else upstream.unsqueeze(-1)
        for a, b in zip(ours, plain, strict=True):
            assert torch.allclose(
                a, b * (weight.unsqueeze(-1) if name == "categorical" else weight), rtol=1e-12
            )


@elements
def test_backward_of_disarm(simd_build: str, per_element: bool) -> None:
    logits = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    q = lk.Bernoulli(logits)
    z = q.sample_antithetic(6, seed=3)
    values = (f_elements(z) if per_element else f(z)).requires_grad_()
    out = lk.disarm(q, values, z)
    assert torch.allclose(out, values.mean((0, 1)), rtol=1e-13)
    upstream = torch.randn_like(out)
    ours, of_values = torch.autograd.grad(out, (logits, values), upstream)
    row = upstream if per_element else upstream.unsqueeze(-1)
    difference = (values[0] - values[1]) if per_element else (values[0] - values[1]).unsqueeze(-1)
    # equation 6 of the paper: 1/2 (f(z) - f(z')) (-1)^z' 1[z != z'] sigmoid(|l|)
    sign = (1 - 2 * z[1]) * (z[0] != z[1])
    expected = (0.5 * difference * sign * torch.sigmoid(logits.abs())).mean(0) * row
    assert torch.allclose(ours, expected, rtol=1e-12)
    assert torch.allclose(of_values, (upstream / 12).expand(values.shape), rtol=1e-14)
    assert torch.allclose(lk.disarm_gradient(q, values, z)[0] * row, ours, rtol=1e-13)


@elements
@every_family
@pytest.mark.parametrize(("control", "least"), CONTROLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_seed_form_equals_z_form(
    simd_build: str, name: str, control: str, least: int, per_element: bool, dtype: torch.dtype
) -> None:
    """Both forms give the same bits where z is what its dtype holds; for a Gaussian up to the
    rounding of z, which the seed form never makes.
    """
    q = family(name, 33)
    q = type(q)(*(x.to(dtype) for x in q.parameters))
    z = q.sample(9, seed=6, offset=5)
    values = f_elements(z) if per_element else f(z)
    by_z, by_seed = (
        estimate(q, values, x, control, return_variance=True, **s)
        for x, s in ((z, {}), (None, {"seed": 6, "offset": 5}))
    )
    for a, b in zip(by_z, by_seed, strict=True):
        for x, y in zip(a, b, strict=True):
            if name != "gaussian":
                assert torch.equal(x, y)
            else:
                scale = 40 * torch.finfo(dtype).eps
                assert torch.allclose(
                    x.double(), y.double(), rtol=scale, atol=scale * float(1 + x.abs().max())
                )
    seeds = estimate(q, values, None, control, seed=torch.tensor(6), offset=5)
    for x, y in zip(by_seed[0], seeds, strict=True):
        assert torch.equal(x, y)


def test_seed_form_of_disarm_equals_z_form() -> None:
    q = lk.Bernoulli(torch.randn(33, 2))
    z = q.sample_antithetic(9, seed=6, offset=5)
    (by_z,) = lk.disarm_gradient(q, f(z), z)
    assert torch.equal(by_z, lk.disarm_gradient(q, f(z), seed=6, offset=5)[0])
    leaf = q.logits.clone().requires_grad_()
    lk.disarm(lk.Bernoulli(leaf), f(z).float(), seed=6, offset=5).sum().backward()
    assert leaf.grad is not None
    assert torch.allclose(leaf.grad, by_z, rtol=1e-5, atol=1e-6)


def test_baselines() -> None:
    """A baseline per row, per sample or per element is subtracted from the values, detached."""
    q = lk.Bernoulli(torch.randn(6, 5, dtype=torch.float64))
    z, values = q.sample(4, seed=1), torch.randn(4, 6, dtype=torch.float64)
    by_element = torch.randn(4, 6, 5, dtype=torch.float64)
    for given, shapes in (
        (values, [(6,), (1, 6), (4, 6), (4, 1), (1,)]),
        (by_element, [(6, 5), (5,), (4, 6, 1), (4, 6, 5)]),
    ):
        for shape in shapes:
            baseline = torch.randn(shape, dtype=torch.float64, requires_grad=True)
            (ours,) = lk.score_function_gradient(q, given, z, control_variate=baseline)
            (expected,) = lk.score_function_gradient(
                q, given - baseline.detach(), z, control_variate="none"
            )
            assert not ours.requires_grad
            assert torch.allclose(ours, expected, rtol=1e-12, atol=1e-13)


def test_a_scalar_baseline() -> None:
    q = lk.Bernoulli(torch.randn(6, 5))
    z = q.sample(4, seed=1)
    (ours,) = lk.score_function_gradient(q, f(z), z, control_variate=torch.tensor(0.5))
    (expected,) = lk.score_function_gradient(q, f(z) - 0.5, z, control_variate="none")
    assert torch.allclose(ours, expected, rtol=1e-6, atol=1e-7)


def test_variance_of_one_sample_is_nan() -> None:
    for name in FAMILIES:
        q = family(name, 3)
        z = q.sample(1, seed=1)
        gradients, variances = lk.score_function_gradient(
            q, f(z), z, control_variate="none", return_variance=True
        )
        assert bool(flat(gradients).isfinite().all())
        assert bool(flat(variances).isnan().all())


@every_family
def test_half_precision(name: str) -> None:
    """Gradients have the parameters' dtype; variances and the mean are float32, in which everything
    is computed.
    """
    for dtype in (torch.bfloat16, torch.float16):
        q = family(name, 9)
        q = type(q)(*(x.to(dtype).requires_grad_() for x in q.parameters))
        wide = type(q)(*(x.detach().double() for x in q.parameters))
        z = q.sample(12, seed=1)
        values = f(z).float()
        gradients, variances = lk.score_function_gradient(q, values, z, return_variance=True)
        exact = lk.score_function_gradient(
            wide, values.double(), z.to(torch.int64 if name == "categorical" else torch.float64)
        )
        for a, v, b, leaf in zip(gradients, variances, exact, q.parameters, strict=True):
            assert a.dtype == leaf.dtype == dtype
            assert v.dtype == torch.float32
            assert torch.allclose(a.double(), b, rtol=torch.finfo(dtype).eps, atol=1e-5)
        out = lk.score_function_expectation(q, values.to(dtype), z)
        assert out.dtype == torch.float32
        for g in torch.autograd.grad(out.sum(), q.parameters):
            assert g.dtype == dtype


@every_family
@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 0, 4)], ids=str)
def test_empty_batches(name: str, shape: tuple[int, ...]) -> None:
    tail = (3,) if name == "categorical" else ()
    leaves = tuple(
        torch.randn(*shape, *tail, requires_grad=True)
        for _ in range(2 if name == "gaussian" else 1)
    )
    q = {"gaussian": lk.DiagonalGaussian, "bernoulli": lk.Bernoulli, "categorical": lk.Categorical}[
        name
    ](*leaves)
    z = q.sample(4, seed=1)
    for values in (torch.randn(4, *shape[:-1]), torch.randn(4, *shape)):
        for control in ("none", "leave_one_out", "optimal"):
            out = lk.score_function_expectation(q, values, z, control_variate=control)
            assert out.shape == values.shape[1:]
            for g, x in zip(
                torch.autograd.grad(out.sum(), leaves, allow_unused=True), leaves, strict=True
            ):
                assert g is not None
                assert g.shape == x.shape


@every_family
def test_bits_do_not_depend_on_threads(simd_build: str, name: str) -> None:
    q = family(name, 3000)
    q = type(q)(*(x.float().contiguous() for x in q.parameters))
    z = q.sample(40, seed=1)
    for control in ("none", "leave_one_out", "optimal 3"):
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(
                [flat(x) for x in estimate(q, f(z).float(), z, control, return_variance=True)]
            )
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(other, found[0], strict=True))


def other_layouts(x: Tensor) -> list[Tensor]:
    """Return the same values in other memory layouts: transposed, between others, negated when
    read, one row for all.
    """
    negated = [torch._neg_view(-x)] if x.is_floating_point() else []
    return [
        x.transpose(0, -1).contiguous().transpose(0, -1),
        torch.stack([x, x], -1)[..., 0],
        *negated,
    ]


@elements
@every_family
def test_layouts(name: str, per_element: bool) -> None:
    """Strides and views with a sign bit are read correctly."""
    q = family(name, 4, 5)
    parameters = tuple(x.contiguous() for x in q.parameters)
    z = q.sample(6, seed=1)
    values = f_elements(z) if per_element else f(z)
    upstream = torch.randn(values.shape[1:], dtype=torch.float64)

    def run(
        parameters: tuple[Tensor, ...],
        values: Tensor,
        z: Tensor,
        baseline: Tensor,
        upstream: Tensor,
    ) -> list[Tensor]:
        leaves = tuple(x.detach().requires_grad_() for x in parameters)
        found = []
        for control in ("leave_one_out", "optimal", baseline):
            out = lk.score_function_expectation(
                type(q)(*leaves), values, z, control_variate=control
            )
            found += [out, *torch.autograd.grad(out, leaves, upstream)]
            found += lk.score_function_gradient(
                type(q)(*leaves), values, z, control_variate=control
            )
        return [x.detach() for x in found]

    plain = (parameters, values, z, values * 0.5, upstream)
    expected = run(*plain)
    for which, given in enumerate(plain):
        copies = (
            zip(*(other_layouts(x) for x in given), strict=True)
            if which == 0
            else other_layouts(given)
        )
        for copy in copies:
            got = run(*(copy if i == which else x for i, x in enumerate(plain)))
            for a, b in zip(got, expected, strict=True):
                assert torch.allclose(a, b, rtol=1e-12, atol=1e-13), which


@every_family
def test_mixed_dtypes(name: str) -> None:
    """With values of another dtype than the parameters, the gradient has the parameters' dtype and
    is as accurate as the values.
    """
    q = family(name, 7)
    for of_q in (torch.float32, torch.float64, torch.bfloat16):
        given = type(q)(*(x.to(of_q).requires_grad_() for x in q.parameters))
        wide = type(q)(*(x.detach().double() for x in given.parameters))
        z = given.sample(9, seed=1)
        wide_z = z if name == "categorical" else z.double()
        for of_values in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            values = f(z).to(of_values).requires_grad_()
            out = lk.score_function_expectation(given, values, z)
            exact = lk.score_function_gradient(wide, values.detach().double(), wide_z)
            *ours, of_f = torch.autograd.grad(out.sum(), (*given.parameters, values))
            assert of_f.dtype == of_values
            for a, b, x in zip(ours, exact, given.parameters, strict=True):
                assert a.dtype == x.dtype
                eps = max(
                    torch.finfo(of_q).eps,
                    torch.finfo(torch.float32).eps if of_q != torch.float64 else 0,
                )
                assert torch.allclose(a.double(), b, rtol=4 * eps, atol=20 * min(eps, 1e-6))


def test_only_wanted_gradients_are_made() -> None:
    mean, logvar = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5)
    q = lk.DiagonalGaussian(mean, logvar)
    z = q.sample(3, seed=1)
    out = lk.score_function_expectation(q, z.sum(-1), z)
    (ours,) = torch.autograd.grad(out.sum(), mean)
    assert torch.allclose(ours, lk.score_function_gradient(q, z.sum(-1), z)[0])
    assert not lk.score_function_expectation(
        lk.DiagonalGaussian(mean.detach(), logvar), z.sum(-1), z
    ).requires_grad


def test_gradients_reach_what_parameters_are_made_of() -> None:
    """Gradients reach broadcast parameters, and a network before them."""
    layer = torch.nn.Linear(3, 5).double()
    x, logvar = torch.randn(4, 3).double(), torch.randn(5, requires_grad=True, dtype=torch.float64)
    q = lk.DiagonalGaussian(layer(x), logvar)
    z = q.sample(6, seed=1)
    values = (z**2).sum(-1)
    ours = torch.autograd.grad(
        lk.score_function_expectation(q, values, z).sum(), (layer.weight, logvar)
    )
    of_mean, of_logvar = lk.score_function_gradient(q, values, z)
    assert torch.allclose(ours[0], of_mean.t() @ x)
    assert torch.allclose(ours[1], of_logvar.sum(0))
