"""The module: averages by hand, its start, dead codes, several processes, state."""

from __future__ import annotations

import copy
import io
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import latent_kernels as lk
from tests.checks import bits_equal
from tests.processes import TWO_PROCESSES, run_forked

Tensor = torch.Tensor


def clusters(count: int, rows: int, dim: int = 4) -> Tensor:
    """Return rows about `count` far centres."""
    centres = 10 * torch.randn(count, dim)
    return centres[torch.arange(rows) % count] + 0.1 * torch.randn(rows, dim)


def distance(quantizer: lk.VectorQuantizer, z: Tensor) -> float:
    return lk.vector_quantize(z, quantizer.codebook).commitment.mean().item()


def test_moving_averages_by_hand() -> None:
    codebook = torch.randn(5, 3, dtype=torch.float64)
    quantizer = lk.VectorQuantizer(
        5, 3, decay=0.9, epsilon=0.01, minimum_usage=0, codebook=codebook
    )
    counts, sums = torch.ones(5, dtype=torch.float64), codebook.clone()
    for _ in range(4):
        z = torch.randn(20, 3, dtype=torch.float64)
        codes = torch.cdist(z, codebook).argmin(-1)
        before = quantizer.codebook.clone()
        found = quantizer(z)
        assert torch.equal(found.codes, codes)
        assert torch.equal(found.quantized, before[codes])
        members = torch.nn.functional.one_hot(codes, 5).double()
        counts = 0.9 * counts + 0.1 * members.sum(0)
        sums = 0.9 * sums + 0.1 * members.T @ z
        share = (counts + 0.01) / (counts.sum() + 5 * 0.01)
        codebook = sums / (share * counts.sum()).unsqueeze(-1)
        for ours, theirs in ((quantizer.counts, counts), (quantizer.sums, sums)):
            assert torch.allclose(ours, theirs, rtol=1e-12)
        assert torch.allclose(quantizer.codebook, codebook, rtol=1e-12)


def test_evaluation_moves_nothing() -> None:
    quantizer = lk.VectorQuantizer(4, 3).eval()
    before = quantizer.codebook.clone()
    quantizer(torch.randn(9, 3))
    assert torch.equal(quantizer.codebook, before)
    assert not quantizer.started


def test_the_loss_trains_an_encoder() -> None:
    """The codebook moves before the backward pass, which still has the one that was used."""
    z = torch.randn(50, 3, requires_grad=True)
    quantizer = lk.VectorQuantizer(6, 3)
    found = quantizer(z)
    (found.quantized.sum() + 0.25 * found.commitment.sum()).backward()
    assert torch.allclose(z.grad, 1 + 0.5 * (z - found.quantized).detach())
    assert not torch.equal(quantizer.lookup(found.codes), found.quantized)


def test_start_by_k_means() -> None:
    """More iterations never raise the distance of the rows that the codebook starts from."""
    z, found = clusters(8, 400), []
    for iterations in (0, 1, 3, 10):
        torch.manual_seed(3)
        quantizer = lk.VectorQuantizer(8, 4, kmeans_iterations=iterations)
        quantizer.start(z)
        found.append(distance(quantizer, z))
        rows_like = torch.cdist(quantizer.codebook, z).amin(-1)
        assert (rows_like == 0).all() == (iterations == 0)  # distinct rows at first
    assert found == sorted(found, reverse=True)
    assert found[-1] < found[0]
    assert quantizer.counts.sum() == 400
    assert len(quantizer.codebook.unique(dim=0)) == 8


def test_start_from_fewer_rows_than_codes() -> None:
    z = torch.tensor([[1.0], [2.0], [math.nan]])
    quantizer = lk.VectorQuantizer(5, 1, minimum_usage=0)
    quantizer.start(z)
    assert set(quantizer.codebook.flatten().tolist()) == {1.0, 2.0}
    assert quantizer.counts.sum() == 2
    with pytest.raises(ValueError, match="z must have a finite row to start the codebook from"):
        lk.VectorQuantizer(5, 1)(z[2:])


def test_dead_codes_are_replaced() -> None:
    """A code far from all rows is replaced by one of them, and all clusters find a code."""
    z = clusters(6, 300)
    codebook = torch.full((6, 4), 1e3) + torch.arange(6.0).unsqueeze(-1)
    kept = lk.VectorQuantizer(6, 4, decay=0.5, minimum_usage=0, codebook=codebook)
    moved = lk.VectorQuantizer(6, 4, decay=0.5, minimum_usage=0.1, codebook=codebook)
    for _ in range(40):
        for quantizer in (kept, moved):
            quantizer(z)
    used = [lk.vector_quantize(z, q.codebook).counts.count_nonzero().item() for q in (kept, moved)]
    assert used[0] < used[1] == 6
    assert distance(moved, z) < 0.1 * distance(kept, z)


def test_rows_of_nan_move_nothing() -> None:
    quantizer = lk.VectorQuantizer(3, 2, codebook=torch.eye(3, 2))
    z = torch.full((7, 2), torch.nan)
    before = {k: v.clone() for k, v in quantizer.state_dict().items()}
    for rows in (z, z[:0]):
        found = quantizer(rows)
        assert (found.codes == -1).all()
    for name, x in quantizer.state_dict().items():
        assert torch.allclose(x, before[name]), name


def test_a_learned_codebook() -> None:
    torch.manual_seed(1)
    z = clusters(4, 200)
    quantizer = lk.VectorQuantizer(4, 4, decay=None, kmeans_iterations=0)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = quantizer(z).codebook_loss.mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert [name for name, _ in quantizer.named_parameters()] == ["codebook"]
    assert list(quantizer.buffers()) == []


def test_state_dict_and_copies() -> None:
    quantizer = lk.VectorQuantizer(4, 3)
    z = torch.randn(30, 3)
    quantizer(z)
    assert set(quantizer.state_dict()) == {"codebook", "counts", "sums", "_extra_state"}
    file = io.BytesIO()
    torch.save(quantizer.state_dict(), file)
    file.seek(0)
    loaded = lk.VectorQuantizer(4, 3)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    copies = [loaded, copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))]
    torch.manual_seed(5)
    expected = quantizer(z)
    for other in copies:
        assert other.started
        torch.manual_seed(5)
        assert all(bits_equal(a, b) for a, b in zip(other(z), expected, strict=True))
        assert torch.equal(other.codebook, quantizer.codebook)
    assert repr(quantizer) == "VectorQuantizer(4, 3, decay=0.99, minimum_usage=0.01)"


def test_dtypes_and_shapes() -> None:
    quantizer = lk.VectorQuantizer(4, 3)
    images = torch.randn(2, 3, 5, 6).bfloat16()
    found = quantizer(images.movedim(1, -1))
    assert found.codes.shape == (2, 5, 6)
    assert found.quantized.shape == (2, 5, 6, 3)
    assert found.quantized.dtype == torch.bfloat16
    assert found.commitment.dtype == quantizer.codebook.dtype == torch.float32
    assert lk.VectorQuantizer(4, 3, dtype=torch.float64).sums.dtype == torch.float64


def test_the_default_generator_governs() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(9)
        quantizer = lk.VectorQuantizer(4, 3, decay=0.5, minimum_usage=0.5)
        for _ in range(3):
            quantizer(torch.randn(40, 3))
        found.append(quantizer.codebook)
    assert torch.equal(*found)


PROCESSES = """
import latent_kernels as lk

z = torch.randn(6, 40, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

def train(parts, group=None):
    torch.manual_seed(4)
    quantizer = lk.VectorQuantizer(
        5, 3, decay=0.7, minimum_usage=0, group=group, codebook=z[0, :5], dtype=torch.float64
    )
    for batch in z:
        quantizer(batch[parts])
    started = lk.VectorQuantizer(5, 3, decay=0.7, minimum_usage=0.5, group=group)
    for batch in z[:3]:
        started(batch[parts].float())
    return [quantizer.codebook, quantizer.counts, started.codebook, started.counts]

def work(rank):
    parts = slice(0, 15) if rank == 0 else slice(15, 40)
    return train(parts, dist.group.WORLD)

first, second = in_two_processes({folder!r}, work)
alone = train(slice(0, 40))
for a, b in zip(first, second, strict=True):
    assert torch.equal(a, b)
for a, b in zip(first[:2], alone[:2], strict=True):
    assert torch.allclose(a, b, rtol=1e-10)
assert first[3].sum() > 30
"""


def test_two_processes_are_as_one(tmp_path: Path) -> None:
    """All processes of a group keep one codebook, that of one process with all rows."""
    run_forked(TWO_PROCESSES + PROCESSES.format(folder=str(tmp_path)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_codes": 0}, "num_codes must be an int >= 1; got 0"),
        ({"dim": 2.5}, "dim must be an int >= 1; got 2.5"),
        ({"decay": 1.0}, r"decay must be a number in \[0, 1\); got 1.0"),
        ({"decay": "fast"}, r"decay must be a number in \[0, 1\); got 'fast'"),
        ({"epsilon": 0.0}, "epsilon must be a finite number > 0; got 0.0"),
        ({"kmeans_iterations": -1}, "kmeans_iterations must be an int >= 0; got -1"),
        ({"minimum_usage": -0.1}, r"minimum_usage must be a number in \[0, 1\); got -0.1"),
        ({"codebook": torch.zeros(2, 2)}, r"codebook must have shape \(4, 3\) .*; got \(2, 2\)"),
        ({"codebook": [1.0]}, "codebook must be a torch.Tensor; got list"),
        ({"dtype": torch.bfloat16}, "dtype must be torch.float32 or float64; got torch.bfloat16"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        lk.VectorQuantizer(**{"num_codes": 4, "dim": 3, **arguments})


def test_bad_rows() -> None:
    quantizer = lk.VectorQuantizer(4, 3)
    with pytest.raises(ValueError, match=r"z must have shape \[\.\.\., 3\] for a codebook"):
        quantizer(torch.zeros(5, 2))
    assert not quantizer.started
