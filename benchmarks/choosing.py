"""CPU seconds of choosing the number of latents by held-out evidence, on data like embeddings.

    python -m benchmarks.choosing [--rows 24000]

Modalities of 512, 384 and 128 features, 30% of the cells missing: 200 factors of falling size, of which every modality
has half, so that no K that is tried is enough; rows of very different size, noise of falling variance. The default
numbers of latents, one thread.
"""

from __future__ import annotations

import argparse
import warnings

import torch

import calmrl_prob as cal
from benchmarks.clock import cpu_seconds
from calmrl_prob.errors import CalmrlWarning

DIMS = {"image": 512, "text": 384, "audio": 128}
NUM_FACTORS, MISSING = 200, 0.3


def embeddings(num_rows: int, seed: int = 0) -> cal.MultimodalData:
    """Draws of factors whose sizes fall as k^-0.7, float32."""
    generator = torch.Generator().manual_seed(seed)
    scale = 0.3 + torch.rand(num_rows, 1, generator=generator) ** -0.5  # heavy tails, which keep EM going
    factors = scale * torch.randn(num_rows, NUM_FACTORS, generator=generator)
    size = torch.arange(1, NUM_FACTORS + 1) ** -0.7
    values = {}
    for name, width in DIMS.items():
        own = size * (torch.rand(NUM_FACTORS, generator=generator) < 0.5)
        loadings = own * torch.randn(width, NUM_FACTORS, generator=generator)
        noise = 0.5 * torch.arange(1, width + 1) ** -0.3
        values[name] = factors @ loadings.mT + noise * torch.randn(num_rows, width, generator=generator)
    observed = torch.rand(num_rows, len(DIMS), generator=generator) >= MISSING
    observed[~observed.any(1), 0] = True
    return cal.MultimodalData(values, observed_mask=observed)


def main() -> None:
    """Time one choice."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rows", type=int, default=24_000, help="instances")
    rows = parser.parse_args().rows
    warnings.simplefilter("ignore", CalmrlWarning)
    torch.set_num_threads(1)
    data = embeddings(rows)
    found: list[object] = []
    seconds = cpu_seconds(lambda: found.append(cal.choose_latent_dim(data)))
    print(f"{data}\n{found[-1]}: {seconds:.1f} CPU seconds")


if __name__ == "__main__":
    main()
