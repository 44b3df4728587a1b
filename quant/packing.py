"""4-bit codes two to a byte: what a W4 network weighs in a file of ours (no runtime reads it;
graphs hold one code per int8).
"""

from __future__ import annotations

import numpy as np

from quant.network import QuantizedNetwork


def pack_nibbles(codes: np.ndarray) -> np.ndarray:
    """int8 codes in [-8, 7] of any shape to uint8 ``(ceil(n/2),)``: first code in the low half,
    two's complement, odd counts padded by 0.

    Raises:
        ValueError: another type, or a code that four bits don't hold.
    """
    if codes.dtype != np.int8:
        raise ValueError(f"codes must be int8; got {codes.dtype}")
    flat = codes.reshape(-1)
    if flat.size and (flat.min() < -8 or flat.max() > 7):
        raise ValueError(f"four bits hold codes from -8 to 7; got {flat.min()} to {flat.max()}")
    nibbles = np.append(flat, np.zeros(flat.size % 2, np.int8)).astype(np.uint8) & 15
    return nibbles[0::2] | nibbles[1::2] << 4


def unpack_nibbles(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of :func:`pack_nibbles`: int8 codes of this shape.

    Raises:
        ValueError: ``packed`` is no uint8 array of the length that ``shape`` needs.
    """
    count = int(np.prod(shape, dtype=np.int64))
    if packed.dtype != np.uint8 or packed.shape != ((count + 1) // 2,):
        raise ValueError(
            f"{count} codes need {(count + 1) // 2} bytes of uint8; got {packed.dtype} of shape"
            f" {packed.shape}"
        )
    both = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:count].astype(np.int8)
    return np.where(both > 7, both - 16, both).astype(np.int8).reshape(shape)


def network_bytes(quantized: QuantizedNetwork, *, packed: bool = True) -> dict[str, int]:
    """Bytes of a quantized network's numbers: ``codes``, ``scales``, ``float`` (biases and the
    layers left in float), ``total``.

    Args:
        packed: count 4-bit codes as half a byte, as :func:`pack_nibbles` stores them; False: one
            byte each, as ONNX graphs do.
    """
    layers = quantized.layers()
    half = packed and quantized.recipe.weight_bits == 4
    codes = sum(
        int(layer.codes.size + 1) // 2 if half else layer.codes.size for layer in layers.values()
    )
    scales = sum(4 * (len(layer.weight_scale) + 1) for layer in layers.values())
    weights = {f"{name}.weight" for name in layers}
    rest = sum(
        4 * p.numel() for name, p in quantized.structure.named_parameters() if name not in weights
    )
    rest += sum(4 * f.numel() for f in quantized.factors.values())
    return {"codes": codes, "scales": scales, "float": rest, "total": codes + scales + rest}
