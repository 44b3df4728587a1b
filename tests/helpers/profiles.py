"""Colour profiles of wide gamuts."""

import struct

# primaries of a profile (XYZ of white point D50, in columns) and its gamma
GAMUTS = {
    "Display P3": (
        [[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]],
        2.4,
    ),
    "Adobe RGB": (
        [[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]],
        2.19921875,
    ),
    "ProPhoto": (
        [[0.79767, 0.13519, 0.03135], [0.28804, 0.71188, 0.00009], [0.0, 0.0, 0.82491]],
        1.8,
    ),
}


def wide_profile(name: str) -> bytes:
    """Of three primaries and a gamma; Display P3 with the curve of sRGB."""
    matrix, gamma = GAMUTS[name]

    def fixed(*numbers: float) -> bytes:
        return b"".join(struct.pack(">i", round(v * 65536)) for v in numbers)

    if name == "Display P3":
        curve = b"para" + bytes(4) + struct.pack(">HH", 3, 0)
        curve += fixed(gamma, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    else:
        curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags = [(b"wtpt", b"XYZ " + bytes(4) + fixed(0.9642, 1.0, 0.8249))]
    for k, c in enumerate("rgb"):
        place = b"XYZ " + bytes(4) + fixed(*(row[k] for row in matrix))
        tags += [(f"{c}XYZ".encode(), place), (f"{c}TRC".encode(), curve)]
    words = b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name.encode() + bytes(79)
    tags += [(b"desc", words + bytes(-len(words) % 4)), (b"cprt", b"text" + bytes(4) + b"x\0\0\0")]
    offset, index, data = 132 + 12 * len(tags), b"", b""
    for kind, content in tags:
        index += struct.pack(">4sII", kind, offset + len(data), len(content))
        data += content
    head = struct.pack(
        ">I4s4s4s4s4s", offset + len(data), b"lcms", b"\2\x40\0\0", b"mntr", b"RGB ", b"XYZ "
    )
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    head += fixed(0.9642, 1.0, 0.8249)
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + index + data
