"""Training under DistributedDataParallel: two processes with half a batch each equal one with the
whole batch.
"""

from __future__ import annotations

from pathlib import Path

from tests.processes import TWO_PROCESSES, run_forked

CODE = """
import warnings, latent_kernels as lk
from torch.nn.parallel import DistributedDataParallel

ROWS, LATENTS, STEPS = 24, 4, 5

class VAE(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = torch.nn.Linear(12, 2 * LATENTS)
        self.decoder = torch.nn.Linear(LATENTS, 12)
        self.prior_logvar = torch.nn.Parameter(torch.zeros(LATENTS))

    def forward(self, x, seed, first):
        mean, logvar = self.encoder(x).chunk(2, -1)
        z, kl = lk.rsample_kl(
            mean, logvar, seed=seed, offset=first * LATENTS, prior_logvar=self.prior_logvar
        )
        return (kl - lk.bernoulli_log_prob(x, self.decoder(z))).mean()

x = (torch.rand(ROWS, 12, generator=torch.Generator().manual_seed(1)) < 0.4).float()

def train(model, first, count):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        model(x[first : first + count], step, first).backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]

def work(rank):
    return train(DistributedDataParallel(VAE()), rank * ROWS // 2, ROWS // 2)

# torch.distributed before 2.9 leaves a temporary folder of its own to the end of the process
warnings.filterwarnings("ignore", "Implicitly cleaning up", ResourceWarning)
first, second = in_two_processes({folder!r}, work)
alone = train(VAE(), 0, ROWS)
start = [p.detach() for p in VAE().parameters()]
for a, b, c, before in zip(first, second, alone, start, strict=True):
    assert torch.equal(a, b)
    assert torch.allclose(a, c, rtol=1e-4, atol=1e-5), (a - c).abs().max()
    assert not torch.allclose(a, before, atol=0.01)
"""


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """A process's share of the noise begins at the offset of its first row."""
    run_forked(TWO_PROCESSES + CODE.format(folder=str(tmp_path)))
