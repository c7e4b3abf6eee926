"""The searches of spec/ggml_k.md read a second time: one sub-block at a time, one number at a time.

Every number is a NumPy float32 scalar, so that each +, −, × and ÷ rounds once, as the page has it. The step names are
the page's.
"""

import struct
from collections.abc import Callable, Sequence

import numpy as np

F32 = np.float32
Numbers = Sequence[np.float32]
Codes = list[int]

_EPSILON = F32(1e-15)


def nearest_int(x: np.float32) -> int:
    """The low 23 bits of x + 12582912, minus 2^22."""
    (bits,) = struct.unpack("<I", (x + F32(12582912)).tobytes())
    return (int(bits) & 0x7FFFFF) - 0x400000


def total(terms: Sequence[np.float32], start: float = 0.0) -> np.float32:
    """The sum from the first term to the last."""
    found = F32(start)
    for term in terms:
        found = found + term
    return found


def _clip(n: int, low: int, high: int) -> int:
    return max(low, min(high, n))


def _peak(x: Numbers) -> np.float32:
    found = F32(0)
    for number in x:
        if abs(number) > abs(found):
            found = number
    return found


def _quotient(a: np.float32, b: np.float32) -> np.float32:
    return a / b if b > 0 else F32(0)


def _moments(x: Numbers, v: Numbers, levels: Codes) -> tuple[np.float32, np.float32]:
    """A and B."""
    a = total([vi * xi * F32(n) for vi, xi, n in zip(v, x, levels, strict=True)])
    b = total([vi * F32(n) * F32(n) for vi, n in zip(v, levels, strict=True)])
    return a, b


def symmetric(x: Numbers, v: Numbers, h: int) -> tuple[np.float32, Codes]:
    """S: a scale around zero."""
    peak = _peak(x)
    if abs(peak) < _EPSILON:  # S1
        return F32(0), [0] * len(x)

    def levels(r: np.float32) -> Codes:
        return [_clip(nearest_int(r * xi), -h, h - 1) for xi in x]

    best_levels = levels(F32(-h) / peak)  # S2
    a, b = _moments(x, v, best_levels)
    scale = a / b if b != 0 else F32(0)  # S3
    best = scale * a
    for k in [*range(-9, 0), *range(1, 10)]:  # S4
        tried = levels(-(F32(h) + F32(0.1) * F32(k)) / peak)
        a, b = _moments(x, v, tried)
        if b > 0 and a * a > best * b:
            scale, best_levels = a / b, tried
            best = scale * a
    return scale, [n + h for n in best_levels]


def descent(x: Numbers, h: int) -> tuple[np.float32, Codes]:
    """D: one code at a time."""
    peak = _peak(x)
    if abs(peak) < _EPSILON:  # D1
        return F32(0), [0] * len(x)
    v = [xi * xi for xi in x]
    levels = [_clip(nearest_int(F32(-h) / peak * xi), -h, h - 1) for xi in x]  # D2
    a, b = _moments(x, v, levels)
    for _ in range(5):  # D4
        taken = False
        for i, (xi, vi) in enumerate(zip(x, v, strict=True)):  # D3
            a1, b1 = a - vi * xi * F32(levels[i]), b - vi * F32(levels[i]) * F32(levels[i])
            if a1 > 0:
                n = _clip(nearest_int(xi * b1 / a1), -h, h - 1)
                a2, b2 = a1 + vi * xi * F32(n), b1 + vi * F32(n) * F32(n)
                if n != levels[i] and b2 > 0 and a2 * a2 * b > a * a * b2:
                    levels[i], a, b, taken = n, a2, b2, True
        if not taken:
            break
    return _quotient(a, b), [n + h for n in levels]


def minimum(
    x: Numbers, v: Numbers, t: int, trials: tuple[float, float, int], loss: Callable[[np.float32], np.float32]
) -> tuple[np.float32, np.float32, Codes]:
    """M: a scale and a minimum. `trials` is (first, step, last)."""
    low, high = x[0], x[0]  # M1
    for xi in x[1:]:
        low = xi if xi < low else low
        high = xi if xi > high else high
    low = F32(0) if low > 0 else low
    if high == low:
        return F32(0), low, [0] * len(x)
    big_v = total(v[1:], float(v[0]))
    big_x = total([vi * xi for vi, xi in zip(v[1:], x[1:], strict=True)], float(v[0] * x[0]))

    def levels(r: np.float32) -> Codes:
        return [_clip(nearest_int(r * (xi - low)), 0, t) for xi in x]

    def error(s: np.float32, m: np.float32, codes: Codes) -> np.float32:
        return total([vi * loss(s * F32(n) + m - xi) for vi, xi, n in zip(v, x, codes, strict=True)])

    r = F32(t) / (high - low)  # M2
    scale, codes = F32(1) / r, levels(r)
    best = error(scale, low, codes)
    first, step, last = trials
    for k in range(last + 1):  # M3
        tried = levels((F32(first) + F32(step) * F32(k) + F32(t)) / (high - low))
        big_l = total([vi * F32(n) for vi, n in zip(v, tried, strict=True)])
        big_q = total([vi * F32(n) * F32(n) for vi, n in zip(v, tried, strict=True)])
        big_y = total([vi * F32(n) * xi for vi, n, xi in zip(v, tried, x, strict=True)])
        big_d = big_v * big_q - big_l * big_l
        if not big_d > 0:
            continue
        s = (big_v * big_y - big_x * big_l) / big_d  # M4
        m = (big_q * big_x - big_l * big_y) / big_d
        if m > 0:
            m, s = F32(0), big_y / big_q
        found = error(s, m, tried)
        if found < best:
            best, scale, low, codes = found, s, m, tried
    return scale, low, codes


def scale_of_scales(x: Numbers, v: Numbers, t: int) -> tuple[np.float32, Codes]:
    """P: a scale of scales."""
    highest = F32(0)
    for xi in x:
        highest = highest if highest > xi else xi
    if highest < _EPSILON:  # P1
        return F32(0), [0] * len(x)

    def error(r: np.float32, levels: Codes) -> np.float32:
        e = [xi - F32(1) / r * F32(n) for xi, n in zip(x, levels, strict=True)]
        return total([vi * ei * ei for vi, ei in zip(v, e, strict=True)])

    r = F32(t) / highest  # P2
    best = error(r, [nearest_int(r * xi) % 256 for xi in x])
    best_r = r
    for k in (-4, -3, -2, -1, 1, 2, 3, 4):  # P3
        r = (F32(0.1) * F32(k) + F32(t)) / highest
        found = error(r, [min(t, nearest_int(r * xi)) for xi in x])
        if found < best:
            best, best_r = found, r
    levels = [min(t, nearest_int(best_r * xi)) for xi in x]  # P4
    a, b = _moments(x, v, levels)
    levels = [n % 256 for n in levels]
    for _ in range(5):  # P5
        taken = False
        for i, (xi, vi) in enumerate(zip(x, v, strict=True)):
            a1, b1 = a - vi * xi * F32(levels[i]), b - vi * F32(levels[i]) * F32(levels[i])
            if a1 > 0 and b1 > 0:
                n = min(t, nearest_int(xi * b1 / a1))
                a2, b2 = a1 + vi * xi * F32(n), b1 + vi * F32(n) * F32(n)
                if n != levels[i] and a2 * a2 * b > a * a * b2:
                    levels[i], a, b, taken = n % 256, a2, b2, True
        if not taken:
            break
    return _quotient(a, b), levels
