"""What devices can compute at most, for model FLOPs utilisation."""

PEAK_BF16_FLOPS = {
    "A100": 312e12,
    "A30": 165e12,
    "H100 80GB HBM3": 989e12,  # the SXM board; the others are slower
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "GH200": 989e12,
    "H200 NVL": 836e12,
    "H200": 989e12,
    "L40S": 362e12,
}
"""Dense bf16 products a second (a multiplication and an addition count two), by a part of the name that torch gives
the device; a longer part stands before a shorter one. From NVIDIA's data sheets of each product ("BF16 Tensor Core"),
which give twice as many with sparsity for Hopper boards. Others are given as ``tracking.peak_tflops``."""


def peak_flops(device_name: str, dtype: str) -> float | None:
    """Peak of a device in a precision; None where it is not known here."""
    if dtype != "bfloat16":
        return None
    return next((peak for part, peak in PEAK_BF16_FLOPS.items() if part in device_name), None)
