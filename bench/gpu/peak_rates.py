"""The card's own rates: matrix products and copies. The other figures are shares of them."""

import torch

from bench.gpu.record import Found, timed


def peak_rates(device: torch.device, *, is_small: bool) -> Found:
    """TFLOP/s of a square matrix product of random values, and GB/s, read and written, of a copy in device memory."""
    side, copied_bytes = (256, 1 << 24) if is_small else (8192, 1 << 32)
    found: Found = {"matmul_side": side, "copied_bytes": copied_bytes}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        left, right = (torch.randn((side, side), device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(left)
        seconds = timed(lambda: torch.mm(left, right, out=out), device, 20)  # noqa: B023  called at once
        found[f"matmul_{name}_tflop_per_s"] = 2 * side**3 / seconds["median"] / 1e12
        found[f"matmul_{name}_s"] = seconds
    source = torch.empty(copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source), device, 20)
    return found | {"copy_gb_per_s": 2 * copied_bytes / seconds["median"] / 1e9, "copy_s": seconds}
