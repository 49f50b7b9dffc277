"""Peak FLOP/s of accelerators, and the utilisation (MFU) relative to it.

The peak follows from the device's name. Devices that are not listed, and CPUs, have no
utilisation rather than a wrong one. Peaks are dense bf16 without sparsity, in
floating-point operations per second, from the manufacturers' data sheets. More
specific names come before general ones.
"""

from __future__ import annotations

_TERA = 10**12

PEAKS: tuple[tuple[str, float], ...] = (
    ("H100 PCIE", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("H200 NVL", 835.0),
    ("H200", 989.0),
    ("GB200", 2500.0),
    ("B200", 2250.0),
    ("B100", 1750.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("H800", 989.0),
    ("A40", 149.7),
    ("A30", 165.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("RTX A6000", 154.8),
    ("RTX 6000 ADA", 364.0),
    ("RTX 5090", 209.5),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
    ("MI300X", 1307.4),
)
"""Part of the device's name, and its peak in TFLOP/s."""


def peak_flops(device_name: str) -> float | None:
    """Peak floating-point operations per second of the device, None if it is not listed.

    Args: device_name: as the driver reports it; parts of names are compared word by word.
    """
    words = f" {device_name.upper().replace('-', ' ')} "
    for name, peak in PEAKS:
        if f" {name} " in words:
            return peak * _TERA
    return None


def utilisation(tokens_per_second: float, flops_per_token: int, device_name: str | None, devices: int) -> float | None:
    """Share of the devices' peak that training uses (MFU); None if the peak is unknown.

    Args: flops_per_token: `presets.flops_per_token`. device_name: None on a CPU.
    """
    peak = peak_flops(device_name) if device_name else None
    return tokens_per_second * flops_per_token / (peak * devices) if peak else None
