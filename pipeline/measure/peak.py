"""What devices can compute at most, for model FLOPs utilisation."""

PEAK_BF16_FLOPS = {
    "A100": 312e12,
    "H100 80GB HBM3": 989e12,  # the SXM board; the PCIe card is called "H100 PCIe" and does less
    "H200": 989e12,
}
"""Dense bf16 products a second (a multiplication and an addition count two), from the makers' data sheets, by a part
of the name that torch gives the device."""


def peak_flops(device_name: str, dtype: str) -> float | None:
    """Peak of a device in a precision; None where it is not known here."""
    if dtype != "bfloat16":
        return None
    return next((peak for part, peak in PEAK_BF16_FLOPS.items() if part in device_name), None)
