"""The polar iteration of Muon: orthogonalises matrices with matrix products only.

Defines the coefficients and the order of the products. Shapes: K stacked matrices of
rows x cols.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Coefficients of five quintic iterations, from the Polar Express paper (arXiv
# 2505.16932) as nanochat and modded-nanogpt use them.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def polar_express(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Approximately the nearest (semi-)orthogonal matrices: all singular values become about 1.

    Args: matrices: (K, rows, cols), each processed separately. dtype: of the products.
    Returns: the same shape in `dtype`.
    """
    x = matrices.to(dtype)
    # The factor keeps the largest singular value below 1 despite rounding.
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x
