"""Bad input raises an error that names the argument, its value and what it may be."""

from __future__ import annotations

import pytest
import torch

import latent_kernels as lk

X = torch.zeros(4, 5)
BAD = [
    (lambda: lk.rsample_kl(torch.zeros(4, 20), torch.zeros(4, 10)), ValueError,
     r"mean and logvar .*\(4, 20\).*4, 10"),
    (lambda: lk.rsample_kl(X.long(), X), TypeError, r"mean must have dtype float32.*int64"),
    (lambda: lk.rsample_kl(X, X.bool()), TypeError, r"logvar must have dtype.*bool"),
    (lambda: lk.rsample_kl([1.0], X), TypeError, r"mean must be a torch.Tensor; got list"),
    (lambda: lk.rsample_kl(torch.tensor(1.0), torch.tensor(0.0)), ValueError,
     r"mean must have shape \[\.\.\., D\]"),
    (lambda: lk.rsample(0.0, 1.0), TypeError, r"mean must be a torch.Tensor; got float"),
    (lambda: lk.rsample_kl(X, X.to(torch.float8_e4m3fn)), TypeError,
     r"logvar must have dtype.*float8"),
    (lambda: lk.rsample_kl(X, True), TypeError, r"logvar must be a torch.Tensor; got bool"),
    (lambda: lk.rsample_kl(X, torch.tensor(1)), TypeError, r"logvar must have dtype.*int64"),
    (lambda: lk.gaussian_kl(0.0, 0.0, prior_mean=X), ValueError,
     r"prior_mean must broadcast to the shape of mean"),
    (lambda: lk.rsample_kl(X, X, 0), ValueError, r"num_samples must be an int >= 1 or None; got 0"),
    (lambda: lk.rsample_kl(X, X, -3), ValueError, r"num_samples .* got -3"),
    (lambda: lk.rsample_kl(X, X, 2.0), TypeError, r"num_samples .* got 2\.0"),
    (lambda: lk.rsample_kl(X, X, True), TypeError, r"num_samples .* got True"),
    (lambda: lk.rsample_kl(X, X, seed=-1), ValueError, r"seed must lie in \[0, 2\^63\); got -1"),
    (lambda: lk.rsample_kl(X, X, seed=2**63), ValueError, r"seed must lie"),
    (lambda: lk.rsample_kl(X, X, seed=1.5), TypeError, r"seed must be an int.*got 1\.5"),
    (lambda: lk.rsample_kl(X, X, seed=torch.tensor([1])), TypeError,
     r"seed as a tensor must be 0-d int64"),
    (lambda: lk.rsample_kl(X, X, seed=torch.tensor(1.0)), TypeError,
     r"seed as a tensor must be 0-d int64.*float32"),
    (lambda: lk.rsample_kl(X, X, seed=torch.tensor(-5)), ValueError, r"seed must lie.*-5"),
    (lambda: lk.rsample_kl(X, X, seed=1, offset=-1), ValueError, r"offset must be >= 0.*got -1"),
    (lambda: lk.rsample_kl(X, X, seed=1, offset=2**63 - 5), ValueError, r"offset"),
    (lambda: lk.rsample_kl(X, X, seed=1, offset=0.5), TypeError, r"offset must be an int"),
    (lambda: lk.rsample_kl(X, X, prior_mean=torch.zeros(3)), ValueError,
     r"prior_mean must .*\(4, 5\); got \(3,\)"),
    (lambda: lk.rsample_kl(X, X, prior_logvar=torch.zeros(2, 4, 5)), ValueError,
     r"prior_logvar must broadcast"),
    (lambda: lk.gaussian_kl(X, X, prior_mean=X.int()), TypeError, r"prior_mean must have dtype"),
    (lambda: lk.gaussian_kl(X, X.to("meta")), ValueError,
     r"logvar must be on the device of mean, cpu; got meta"),
    (lambda: lk.gaussian_log_prob(X, torch.zeros(3), X), ValueError, r"z and mean and logvar must"),
    (lambda: lk.gaussian_log_prob(X.to_sparse(), X, X), TypeError, r"z must be a dense"),
    (lambda: lk.gaussian_log_prob(X, X, X.int()), TypeError,
     r"logvar must have dtype float32, .*; got torch.int32"),
    (lambda: lk.bernoulli_log_prob(X, torch.zeros(3)), ValueError,
     r"x and logits must have shapes that broadcast"),
    (lambda: lk.bernoulli_log_prob("1", X), TypeError, r"x must be a torch.Tensor; got str"),
    (lambda: lk.bernoulli_log_prob(X.bool(), [1.0]), TypeError,
     r"logits must be a torch.Tensor; got list"),
    (lambda: lk.bernoulli_log_prob(X, X.int()), TypeError,
     r"logits must have dtype float32, .*; got torch.int32"),
    (lambda: lk.bernoulli_log_prob(X.bool(), X.int()), TypeError,
     r"logits must have dtype float32, .*; got torch.int"),
    (lambda: lk.bernoulli_log_prob(X[0, 0], torch.zeros(())), ValueError,
     r"x must have shape \[\.\.\., D\]"),
    (lambda: lk.bernoulli_log_prob(X, X.to("meta")), ValueError,
     r"logits must be on the device of x, cpu; got meta"),
    (lambda: lk.normal(-1, seed=1), ValueError, r"shape must be .*got -1"),
    (lambda: lk.normal((2, 1.5), seed=1), ValueError, r"shape must be"),
    (lambda: lk.normal(3, seed=1, dtype=torch.int32), TypeError, r"dtype must be .*int32"),
    (lambda: lk.normal(3.5, seed=1), ValueError, r"shape must be .*got 3\.5"),
    (lambda: lk.normal(3, seed=1, device="gpu"), ValueError, r"device must be .*'gpu'"),
    (lambda: lk.normal(0, seed=1, offset=2**63), ValueError, r"offset"),
    (lambda: lk.uniform(3, seed="a"), TypeError, r"seed must be an int"),
]  # fmt: skip


G, Q, C = lk.DiagonalGaussian(X, X), lk.Bernoulli(X), lk.Categorical(torch.zeros(4, 5, 3))
Z, Z2, CLASSES = Q.sample(6, seed=1), Q.sample_antithetic(6, seed=1), C.sample(6, seed=1)
V, V2 = torch.zeros(6, 4), torch.zeros(2, 6, 4)
gradient, expectation, disarm = lk.score_function_gradient, lk.score_function_expectation, lk.disarm
BAD += [
    (lambda: lk.DiagonalGaussian(X, torch.zeros(4, 3)), ValueError,
     r"mean and logvar must .*\(4, 5\).*4, 3"),
    (lambda: lk.DiagonalGaussian(X, "1"), TypeError, r"logvar must be a torch.Tensor; got str"),
    (lambda: lk.DiagonalGaussian(1.0, 0.0), TypeError, r"mean must be a torch.Tensor; got float"),
    (lambda: lk.DiagonalGaussian(X, X.to("meta")), ValueError,
     r"logvar must be on the device of mean"),
    (lambda: lk.Bernoulli(torch.tensor(1.0)), ValueError, r"logits must have shape .*got a scalar"),
    (lambda: lk.Bernoulli(X.long()), TypeError, r"logits must have dtype float32.*int64"),
    (lambda: lk.Bernoulli([0.5]), TypeError, r"logits must be a torch.Tensor; got list"),
    (lambda: lk.Categorical(torch.zeros(3)), ValueError,
     r"logits must have shape \[\.\.\., D, K\].*got \(3,\)"),
    (lambda: lk.Categorical(torch.zeros(3, 0)), ValueError,
     r"logits must have shape .*K >= 1; got \(3, 0\)"),
    (lambda: Q.sample(0), ValueError, r"num_samples must be an int >= 1 or None; got 0"),
    (lambda: Q.sample(2.0), TypeError, r"num_samples .*got 2\.0"),
    (lambda: Q.sample(2, seed=-1), ValueError, r"seed must lie in \[0, 2\^63\); got -1"),
    (lambda: Q.sample(2, seed=torch.tensor(-1)), ValueError, r"seed must lie.*-1"),
    (lambda: C.sample(2, seed=1, offset=-1), ValueError, r"offset must be >= 0"),
    (lambda: C.sample(2, seed=1, offset=2**63 - 40 + 1), ValueError,
     r"offset must be >= 0, and offset \+ 40 elements"),
    (lambda: Q.sample_antithetic(None), TypeError, r"num_pairs must be an int >= 1; got None"),
    (lambda: Q.sample_antithetic(0), ValueError, r"num_pairs must be an int >= 1.*got 0"),
    (lambda: Q.kl(C), TypeError, r"other must be a Bernoulli; got Categorical"),
    (lambda: G.kl(Q), TypeError, r"other must be a DiagonalGaussian; got Bernoulli"),
    (lambda: C.kl(lk.Categorical(torch.zeros(4, 5, 2))), ValueError,
     r"other must .*3 classes.*got 2"),
    (lambda: Q.kl(lk.Bernoulli(torch.zeros(4, 3))), ValueError,
     r"other must .*\(4, 5\).*got \(4, 3\)"),
    (lambda: G.rsample_kl(2, prior=Q), TypeError,
     r"(other|prior) must be a DiagonalGaussian; got Bernoulli"),
    (lambda: Q.log_prob(torch.zeros(4, 3)), ValueError,
     r"z must have shape .*\(4, 5\); got \(4, 3\)"),
    (lambda: Q.log_prob(torch.zeros(5)), ValueError, r"z must have shape .*\(4, 5\); got \(5,\)"),
    (lambda: Q.log_prob(1.0), TypeError, r"z must be a torch.Tensor; got float"),
    (lambda: Q.log_prob(Z.to("meta")), ValueError, r"z must be on the device of q, cpu; got meta"),
    (lambda: Q.log_prob(Z + 0.5), ValueError, r"z must hold samples of a Bernoulli, 0 or 1"),
    (lambda: C.log_prob(CLASSES.float()), TypeError,
     r"z must hold classes as integers; got torch.float32"),
    (lambda: C.log_prob(CLASSES + 3), ValueError, r"z must hold classes 0, \.\.\., 2; got 3 to 5"),
    (lambda: C.log_prob(CLASSES - 5), ValueError, r"z must hold classes 0, \.\.\., 2; got -5"),
    (lambda: C.score(CLASSES.double()), TypeError, r"z must hold classes as integers"),
    (lambda: gradient(torch.distributions.Normal(X, X + 1), V, Z), TypeError,
     r"q must be a Diag.*got Normal"),
    (lambda: gradient(X, V, Z), TypeError,
     r"q must be a DiagonalGaussian, Bernoulli or Categorical; got Tensor"),
    (lambda: gradient(Q, V[:, :3], Z), ValueError,
     r"values must have shape \[S, \*\(4,\)\].*\(4, 5\)\].*got \(6, 3\)"),
    (lambda: gradient(Q, V[0], Z), ValueError, r"values must have shape .*got \(4,\)"),
    (lambda: gradient(Q, V.t(), Z), ValueError, r"values must have shape .*got \(4, 6\)"),
    (lambda: gradient(Q, torch.zeros(6, 4, 3), Z), ValueError,
     r"values must have shape .*got \(6, 4, 3\)"),
    (lambda: gradient(Q, torch.zeros(6), Z), ValueError, r"values must have shape .*got \(6,\)"),
    (lambda: gradient(Q, torch.tensor(1.0), Z), ValueError, r"values must have shape"),
    (lambda: gradient(Q, V[:0], Z[:0]), ValueError,
     r"values must hold at least one sample; got shape \(0, 4\)"),
    (lambda: gradient(Q, V.long(), Z), TypeError, r"values must have dtype float32.*int64"),
    (lambda: gradient(Q, [1.0], Z), TypeError, r"values must be a torch.Tensor; got list"),
    (lambda: gradient(Q, V.to("meta"), Z), ValueError,
     r"values must be on the device of q, cpu; got meta"),
    (lambda: gradient(Q, V[:4], Z), ValueError,
     r"z must have shape \(4, 4, 5\), with as.*got \(6, 4, 5\)"),
    (lambda: gradient(Q, V, Z[0]), ValueError, r"z must have shape \(6, 4, 5\).*got \(4, 5\)"),
    (lambda: gradient(Q, V, Z[..., :3]), ValueError,
     r"z must have shape .*ending in \(4, 5\); got \(6, 4, 3\)"),
    (lambda: gradient(Q, V), ValueError, r"z or seed must be given"),
    (lambda: expectation(Q, V), ValueError, r"z or seed must be given"),
    (lambda: gradient(Q, V, Z, seed=1), ValueError, r"z and seed are both given"),
    (lambda: gradient(Q, V, seed=1.5), TypeError, r"seed must be an int.*got 1\.5"),
    (lambda: gradient(Q, V, seed=-4), ValueError, r"seed must lie"),
    (lambda: gradient(Q, V, seed=torch.tensor(-4)), ValueError, r"seed must lie.*-4"),
    (lambda: gradient(Q, V, seed=1, offset=-1), ValueError, r"offset must be >= 0"),
    (lambda: gradient(Q, V, seed=1, offset=2**63 - 119), ValueError, r"offset \+ 120 elements"),
    (lambda: expectation(G, V, G.sample(6).requires_grad_()), ValueError,
     r"z must not require grad.*z\.detach\(\)"),
    (lambda: gradient(Q, V, Z + 0.5), ValueError, r"z must hold samples of a Bernoulli, 0 or 1"),
    (lambda: gradient(Q, V, 1 - 2 * Z), ValueError, r"z must hold samples of a Bernoulli, 0 or 1"),
    (lambda: gradient(C, V, CLASSES + 1), ValueError,
     r"z must hold classes 0, \.\.\., 2 of a Categorical"),
    (lambda: gradient(C, V, CLASSES - 1), ValueError,
     r"z must hold classes 0, \.\.\., 2 of a Categorical"),
    (lambda: gradient(C, V, CLASSES + 2**40), ValueError,
     r"z must hold classes 0, \.\.\., 2 of a Categorical"),
    (lambda: gradient(C, V, CLASSES.float()), TypeError,
     r"z must hold classes as integers; got torch.float32"),
    (lambda: gradient(Q, V[:1], Z[:1]), ValueError,
     r"'leave_one_out' takes the mean of the other.*S = 1"),
    (lambda: expectation(Q, V[:1], seed=1), ValueError,
     r"'leave_one_out' takes the mean of the other.*S = 1"),
    (lambda: gradient(Q, V[:1], Z[:1], control_variate="optimal"), ValueError,
     r"S >= folds = 2 samples; got S = 1"),
    (lambda: gradient(Q, V, Z, control_variate="optimal", folds=7), ValueError,
     r"S >= folds = 7 samples; got S = 6"),
    (lambda: gradient(Q, V, Z, control_variate="optimal", folds=1), ValueError,
     r"folds must be an int >= 2; got 1"),
    (lambda: gradient(Q, V, Z, control_variate="optimal", folds=2.0), TypeError,
     r"folds must be an int.*got 2\.0"),
    (lambda: gradient(Q, V, Z, control_variate="loo"), ValueError,
     r"control_variate must be 'none', .*got 'loo'"),
    (lambda: gradient(Q, V, Z, control_variate=None), ValueError,
     r"control_variate must be 'none', .*got None"),
    (lambda: gradient(Q, V, Z, control_variate=0.5), ValueError,
     r"control_variate must be 'none', .*got 0\.5"),
    (lambda: gradient(Q, V, Z, control_variate=V[:, :3]), ValueError,
     r"control_variate must broadcast .*got \(6, 3\)"),
    (lambda: gradient(Q, V, Z, control_variate=V2), ValueError,
     r"control_variate must broadcast .*got \(2, 6, 4\)"),
    (lambda: gradient(Q, V, Z, control_variate=V.long()), TypeError,
     r"control_variate as a tensor must be floating"),
    (lambda: gradient(Q, V, Z, control_variate=V.to("meta")), ValueError,
     r"control_variate must be on the device"),
    (lambda: disarm(G, V2, G.sample(6)), TypeError,
     r"q must be a Bernoulli: DisARM.*got DiagonalGaussian"),
    (lambda: lk.disarm_gradient(C, V2, CLASSES), TypeError,
     r"q must be a Bernoulli: DisARM.*got Categorical"),
    (lambda: disarm(Q, V, Z), ValueError, r"values must have shape \[2, S, .*got \(6, 4\)"),
    (lambda: disarm(Q, torch.zeros(3, 6, 4), Z2), ValueError,
     r"values must have shape \[2, S, .*got \(3, 6, 4\)"),
    (lambda: disarm(Q, V2, Z), ValueError, r"z must have shape \(2, 6, 4, 5\).*got \(6, 4, 5\)"),
    (lambda: disarm(Q, V2), ValueError, r"z or seed must be given"),
    (lambda: disarm(Q, V2, Z2, seed=2), ValueError, r"z and seed are both given"),
    (lambda: lk.disarm_gradient(Q, V2, Z2 + 0.5), ValueError,
     r"z must hold samples of a Bernoulli, 0 or 1"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_input(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()  # type: ignore[operator]


def test_samples_outside_the_support_are_found_in_backward() -> None:
    """Samples outside the support are found where z is read. Several Python integer types are
    classes; a NaN is data, and stays in its row.
    """
    for q, z in (
        (lk.Bernoulli(X.clone().requires_grad_()), Z + 0.5),
        (lk.Categorical(C.logits.requires_grad_()), CLASSES + 1),
    ):
        out = lk.score_function_expectation(q, V, z)
        with pytest.raises(ValueError, match="z must hold"):
            out.sum().backward()
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        assert torch.equal(gradient(C, V + 1, CLASSES.to(dtype))[0], gradient(C, V + 1, CLASSES)[0])


def test_second_derivatives_of_estimators_are_refused() -> None:
    for q, z in (
        (lk.Bernoulli(X.clone().requires_grad_()), Z),
        (lk.DiagonalGaussian(X.clone().requires_grad_(), X), Z),
    ):
        out = lk.score_function_expectation(q, V, z)
        (g,) = torch.autograd.grad(out.sum(), q.parameters[0], create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives"):
            g.sum().backward()
