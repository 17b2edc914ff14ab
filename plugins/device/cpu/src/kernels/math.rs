//! Functions of one number, by the same operations on every path.
//!
//! Bounds on the error against the exact value are in the tests. NaN stays NaN; infinities go to
//! their limits.
#![allow(unsafe_code)]
// Every body is arithmetic under the one promise of `Lanes`: stated there, not at each line.
#![allow(unsafe_op_in_unsafe_fn)]

use super::lanes::Lanes;

/// Adding it rounds |x| < 2^22 to a whole number; subtracting it again leaves that.
const WHOLE: f32 = 12_582_912.0;

/// Evaluates a polynomial, highest power first.
#[inline(always)]
unsafe fn polynomial<V: Lanes, const N: usize>(x: V, terms: [f32; N]) -> V {
    let mut sum = V::splat(terms[0]);
    for term in terms.iter().skip(1) {
        sum = sum.fma(x, V::splat(*term));
    }
    sum
}

/// e to the power of x; 0 below -104, infinity above 88.73; subnormal results are exact to half a
/// unit.
#[inline(always)]
pub(crate) unsafe fn exp<V: Lanes>(x: V) -> V {
    // The constant comes first, so that NaN passes both clamps.
    let x = V::splat(89.0).min(V::splat(-104.0).max(x));
    let whole = V::splat(WHOLE);
    let n = x.fma(V::splat(std::f32::consts::LOG2_E), whole).sub(whole);
    // ln 2 in two parts, the first of few bits, so that the remainder is exact to a rounding.
    let r = n.fma(V::splat(-0.693_359_4), x);
    let r = n.fma(V::splat(2.121_944_4e-4), r);
    let terms =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1];
    let p = polynomial(r, terms).fma(r.mul(r), r).add(V::splat(1.0));
    // In two factors: 2^n alone would leave the range of f32 at both ends.
    let half = n.fma(V::splat(0.5), whole).sub(whole);
    p.mul(half.pow2()).mul(n.sub(half).pow2())
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) unsafe fn sigmoid<V: Lanes>(x: V) -> V {
    V::splat(1.0).div(V::splat(1.0).add(exp(V::zero().sub(x))))
}

/// x sigmoid(x).
#[inline(always)]
pub(crate) unsafe fn silu<V: Lanes>(x: V) -> V {
    x.div(V::splat(1.0).add(exp(V::zero().sub(x))))
}

/// Hyperbolic tangent: a polynomial near 0, where the quotient would cancel.
#[inline(always)]
pub(crate) unsafe fn tanh<V: Lanes>(x: V) -> V {
    let square = x.mul(x);
    let terms = [-5.704_988_7e-3, 2.063_908_8e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1];
    let near = polynomial(square, terms).mul(square).fma(x, x);
    let far = V::splat(2.0).div(exp(x.add(x)).add(V::splat(1.0)));
    let far = V::splat(1.0).sub(far);
    V::select(square.less(V::splat(0.625 * 0.625)), near, far)
}

/// x times the normal distribution function, through erfc: 1 - erf would cancel for negative x.
#[inline(always)]
pub(crate) unsafe fn gelu<V: Lanes>(x: V) -> V {
    let u = x.mul(V::splat(std::f32::consts::FRAC_1_SQRT_2));
    let u = u.max(V::zero().sub(u));
    let t = V::splat(1.0).div(V::splat(0.5).fma(u, V::splat(1.0)));
    // Numerical Recipes' erfc: relative error below 1.2e-7 before rounding.
    let terms = [
        0.170_872_77,
        -0.822_152_23,
        1.488_515_9,
        -1.135_204,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ];
    // u squared with its rounding error, which the exponential would magnify.
    let square = u.mul(u);
    let error = u.fma(u, V::zero().sub(square));
    let tail = t.mul(exp(polynomial(t, terms).sub(error).sub(square)));
    let half = V::splat(0.5).mul(tail);
    let positive = V::splat(1.0).sub(half);
    // Infinity has no rounding error of its square, but NaN in its place: both limits are named.
    let share = V::select(x.less(V::zero()), half, positive);
    let far = x.less(V::splat(-14.5));
    let share = V::select(far, V::zero(), share);
    let share = V::select(V::splat(14.5).less(x), V::splat(1.0), share);
    x.mul(share)
}

/// GELU by its tanh approximation.
#[inline(always)]
pub(crate) unsafe fn gelu_tanh<V: Lanes>(x: V) -> V {
    let cube = x.mul(x).mul(x);
    let inner = cube.fma(V::splat(0.044_715), x).mul(V::splat(0.797_884_6));
    // 0.5 (1 + tanh y) = sigmoid(2 y), which does not cancel for negative y.
    x.mul(sigmoid(inner.add(inner)))
}
