"""Codes of 1 to 8 bits as bytes, each row on its own (spec/packing.md).

A row of n codes of b bits is a little-endian bit stream: bit k of code i is bit (i·b + k) of the row, and bit j of
the row is bit j mod 8 of byte j // 8. A row ends on a byte boundary; the bits left over are zero.
For b = 4 the first code is the low nibble, for b = 2 the lowest two bits, for b = 8 a byte is a code.
"""

import numpy as np

from refquant.arrays import UInt8


def packed_length(n: int, bits: int) -> int:
    """Bytes that a row of n codes takes."""
    return -(-n * bits // 8)


def pack(codes: UInt8, bits: int) -> UInt8:
    """Pack codes below 2**bits: uint8 (..., n) to uint8 (..., ceil(n·bits / 8))."""
    *lead, n = codes.shape
    octets = np.zeros((*lead, -(-n // 8) * 8), np.uint8)
    octets[..., :n] = codes
    octets = octets.reshape(*lead, -(-n // 8), 8)  # eight codes fill `bits` whole bytes
    word = np.zeros(octets.shape[:-1], "<u8")
    for i in range(8):
        word |= octets[..., i].astype("<u8") << np.uint64(i * bits)
    stream = word[..., None].view(np.uint8)[..., :bits].reshape(*lead, -(-n // 8) * bits)
    return np.ascontiguousarray(stream[..., : packed_length(n, bits)])


def unpack(packed: UInt8, bits: int, n: int) -> UInt8:
    """The first n codes of each row: uint8 (..., ceil(n·bits / 8)) to uint8 (..., n). Bits left over are ignored."""
    *lead, _ = packed.shape
    stream = np.zeros((*lead, -(-n // 8) * bits), np.uint8)
    stream[..., : packed.shape[-1]] = packed
    octets = np.zeros((*lead, -(-n // 8), 8), np.uint8)
    octets[..., :bits] = stream.reshape(*lead, -(-n // 8), bits)
    word = octets.view("<u8")  # (..., ceil(n / 8), 1)
    shifts = np.arange(8, dtype=np.uint64) * np.uint64(bits)
    codes = (word >> shifts).astype(np.uint8) & np.uint8((1 << bits) - 1)
    return np.ascontiguousarray(codes.reshape(*lead, -(-n // 8) * 8)[..., :n])
