"""Functions of vectors of numbers, written with `ops.emitter.Emitter`: exp, tanh, logistic, SiLU, softplus.

All rest on x = k ln 2 + r with k an integer and |r| <= ln(2) / 2 (ln 2 in two parts, each product with one rounding)
and on two Taylor series, of e^r - 1 and of the inverse hyperbolic tangent. A series ends where its next term is below
0.1 * 2^-52 (float64) or 0.2 * 2^-23 (float32) of the sum. 1 ulp is the distance of neighbouring numbers at the result.

Bounds are of the largest error found against 160-bit arithmetic, rounded up; they hold where e^-|x| is a normal number
(|x| < 708, in float32 87), further out errors are as small in absolute terms. Large arguments give the limits, never an
overflow on the way, and NaN stays NaN. Every function takes the emitter, x, and how many numbers x holds.

Source: W. J. Cody and W. Waite, Software Manual for the Elementary Functions (1980), for the reduction.
"""

from __future__ import annotations

import math
from decimal import Decimal

import numpy as np

from .emitter import Emitter

_MANTISSA = {4: 23, 8: 52}  # bits after the leading one, by bytes of a number
_EXP_TERMS = {4: 7, 8: 13}  # r^n / n!: the next is 1.8e-8 or 1.4e-17 of e^r - 1 where |r| is largest
_ATANH_TERMS = {4: 8, 8: 17}  # s^(2n + 1) / (2n + 1): the next is 1.3e-9 or 1.6e-18 of the sum where |s| is 1/3
_EXP_RANGE = {4: (-105.0, 90.0), 8: (-750.0, 711.0)}  # beyond: zero, infinity


def exp(e: Emitter, x, width: int):
    """e^x: to 1 ulp, also among the numbers below the smallest normal one; then zero, or infinity."""
    lowest, highest = _EXP_RANGE[e.bytes]
    x = _below(e, x, highest, width)
    k, p = _reduce(e, _above(e, x, lowest, width), width)
    half = e.b.lshr(k, e.bits_const(1, width))  # 2^k in two steps, because k may be too small or large for one
    scale = _power_of_two(e, half, width)
    return e.mul(e.fma(scale, p, scale), _power_of_two(e, e.b.sub(k, half), width))


def expm1(e: Emitter, x, width: int):
    """e^x - 1 for x <= 0, to 1.5 ulp, also near x = 0."""
    k, p = _reduce(e, _above(e, x, -50.0, width), width)
    scale = _power_of_two(e, k, width)
    return e.fma(scale, p, e.b.fsub(scale, e.const(1, width)))


def log1p(e: Emitter, z, width: int):
    """ln(1 + z) = 2 artanh(z / (2 + z)) for -1/2 <= z <= 0, to 2 ulp, also near z = 0."""
    s = e.b.fdiv(z, e.b.fadd(z, e.const(2, width)))
    square = e.mul(s, s)
    tail = _horner(e, square, [2 / (2 * n + 1) for n in range(1, _ATANH_TERMS[e.bytes])], width)
    return e.fma(e.mul(square, s), tail, e.b.fadd(s, s))


def tanh(e: Emitter, x, width: int):
    """(1 - u) / (1 + u) with u = e^(-2 |x|): to 3 ulp, also near x = 0."""
    t = expm1(e, e.mul(e.const(-2, width), e.absolute(x)), width)
    return e.with_sign_of(e.b.fdiv(t, e.b.fadd(t, e.const(2, width))), x)


def tanh_derivative(e: Emitter, x, width: int):
    """4 u / (1 + u)^2 with u = e^(-2 |x|): to 5 ulp, also where tanh is nearly one."""
    u = exp(e, e.mul(e.const(-2, width), e.absolute(x)), width)
    half = e.b.fadd(e.mul(u, e.const(0.5, width)), e.const(0.5, width))
    return e.b.fdiv(u, e.mul(half, half))


def logistic(e: Emitter, x, width: int):
    """s = 1 / (1 + e^-x) and 1 - s, each to 3 ulp."""
    u = exp(e, e.b.fneg(e.absolute(x)), width)
    large = e.b.fdiv(e.const(1, width), e.b.fadd(u, e.const(1, width)))
    small = e.mul(u, large)
    negative = e.b.fcmp_ordered("<", x, e.const(0, width))
    return e.b.select(negative, small, large), e.b.select(negative, large, small)


def silu(e: Emitter, x, width: int):
    """x s(x), s the logistic function: to 4 ulp."""
    return e.mul(x, logistic(e, x, width)[0])


def silu_derivative(e: Emitter, x, width: int):
    """s (1 + x (1 - s)), s the logistic function: to 5 ulp of s (1 + |x| (1 - s)); it vanishes at x = -1.278."""
    s, rest = logistic(e, x, width)
    return e.mul(s, e.fma(x, rest, e.const(1, width)))


def softplus(e: Emitter, x, width: int):
    """ln((1 + e^x) / 2) = max(x, 0) + ln(1 + (e^-|x| - 1) / 2): to 3 ulp, also near x = 0, where it vanishes."""
    z = e.mul(e.const(0.5, width), expm1(e, e.b.fneg(e.absolute(x)), width))
    return e.b.fadd(_above(e, x, 0.0, width), log1p(e, z, width))


def softplus_derivative(e: Emitter, x, width: int):
    """The logistic function."""
    return logistic(e, x, width)[0]


def absolute(e: Emitter, x, width: int):
    """|x|"""
    return e.absolute(x)


def sign(e: Emitter, x, width: int):
    """-1, 0 or 1: the derivative of |x|, zero at x = 0 as torch has it."""
    zero = e.const(0, width)
    upper = e.b.select(e.b.fcmp_ordered(">", x, zero), e.const(1, width), x)
    return e.b.select(e.b.fcmp_ordered("<", x, zero), e.const(-1, width), upper)


def _below(e: Emitter, x, bound: float, width: int):
    """min(x, bound); NaN stays."""
    limit = e.const(bound, width)
    return e.b.select(e.b.fcmp_ordered(">", x, limit), limit, x)


def _above(e: Emitter, x, bound: float, width: int):
    """max(x, bound); NaN stays."""
    limit = e.const(bound, width)
    return e.b.select(e.b.fcmp_ordered("<", x, limit), limit, x)


def _reduce(e: Emitter, x, width: int):
    """(k, p) with e^x = 2^k (1 + p): k an integer of which the lower bits are meant, see `_power_of_two`.

    Adding 1.5 * 2^mantissa rounds to an integer and leaves it in the sum's lower bits.
    """
    shifter = e.const(1.5 * 2.0 ** _MANTISSA[e.bytes], width)
    shifted = e.fma(x, e.const(1 / math.log(2), width), shifter)
    k = e.b.fsub(shifted, shifter)
    high = float(np.float32(math.log(2))) if e.bytes == 4 else math.log(2)
    low = float(Decimal(2).ln() - Decimal(high))
    r = e.fma(k, e.const(-low, width), e.fma(k, e.const(-high, width), x))
    tail = _horner(e, r, [1 / math.factorial(n) for n in range(2, _EXP_TERMS[e.bytes] + 1)], width)
    return e.bits(shifted, width), e.fma(e.mul(r, r), tail, r)


def _power_of_two(e: Emitter, k, width: int):
    """2^k from the lower bits of k, for normal numbers."""
    bias = (1 << (8 * e.bytes - _MANTISSA[e.bytes] - 2)) - 1
    exponent = e.b.add(k, e.bits_const(bias, width))
    return e.from_bits(e.b.shl(exponent, e.bits_const(_MANTISSA[e.bytes], width)), width)


def _horner(e: Emitter, x, coefficients: list[float], width: int):
    """sum of coefficients[n] x^n"""
    total = e.const(coefficients[-1], width)
    for coefficient in coefficients[-2::-1]:
        total = e.fma(total, x, e.const(coefficient, width))
    return total
