//! Functions of one number: how exact they are, and what they are at their limits.

use crate::linear::{erf, gelu_tanh};
use crate::rig::*;
use crate::small::{same, view};
use kvern_contract::*;

/// Values that functions of one number are tried on; below -87 sigmoids are subnormal and lose
/// bits.
fn line() -> Vec<f32> {
    let mut values: Vec<f32> = (-3480..4000).map(|i| i as f32 / 40.0).collect();
    values.extend((0..4000).map(|i| (i as f32 - 2000.0) / 3e6));
    values.extend([0.0, -0.0, 1e-30, -1e-30, 1e30, -1e30, 1e-45]);
    values
}

/// An op over one row of values on every path, and the error of each in units in the last place.
fn error_of(
    what: &str,
    x: &[f32],
    want: impl Fn(f64) -> f64,
    op: impl Fn(&mut Rig) -> Vec<f32>,
) -> f64 {
    let got = same(what, op);
    let mut worst = 0f64;
    for (x, got) in x.iter().zip(&got) {
        let want = want(f64::from(*x));
        let unit = f64::from(f32::EPSILON) * want.abs().max(f64::from(f32::MIN_POSITIVE));
        worst = worst.max((f64::from(*got) - want).abs() / unit);
    }
    worst
}

fn map(rig: &mut Rig, kind: MapKind, a: &[f32], b: &[f32], scalar: f32) -> Vec<f32> {
    let n = a.len() as u32;
    let (a, b, out) = (rig.floats(a), rig.floats(b), rig.room(b.len()));
    let [a, b, out] = [a, b, out].map(|at| view(at, 1, n));
    rig.run(&[Op::Map { a, b, out, kind, rows: 1, groups: 1, width: n, scalar }]);
    rig.read(out.at, n as usize)
}

#[test]
fn functions_are_exact_to_a_few_units() {
    let x = line();
    let ones = vec![1.0; x.len()];
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let at = |kind: MapKind, scalar: f32| {
        let (x, ones) = (x.clone(), ones.clone());
        move |rig: &mut Rig| match kind {
            MapKind::Softcap => map(rig, kind, &x, &ones, scalar),
            _ => map(rig, kind, &ones, &x, scalar),
        }
    };
    let error = error_of("sigmoid", &x, sigmoid, at(MapKind::SigmoidMul, 0.0));
    assert!(error < 4.0, "sigmoid {error}");
    let error = error_of("silu", &x, |x| x * sigmoid(x), at(MapKind::SiluMul, 0.0));
    assert!(error < 4.0, "silu {error}");
    let error = error_of("tanh", &x, f64::tanh, at(MapKind::Softcap, 1.0));
    assert!(error < 4.0, "tanh {error}");
    let error = error_of("softcap", &x, |x| 30.0 * (x / 30.0).tanh(), at(MapKind::Softcap, 30.0));
    assert!(error < 5.0, "softcap {error}");
}

#[test]
fn gelus_hold_their_bounds_on_both_sides() {
    let x: Vec<f32> = (-600..600).map(|i| i as f32 / 50.0).collect();
    let n = x.len() as u32;
    // A product with 1: the epilogue alone.
    for (epilogue, bound) in [(Epilogue::Gelu, 2e-6), (Epilogue::GeluTanh, 2e-6)] {
        let got = same("gelu", |rig| {
            let data = rig.floats(&x);
            let weight = Weight {
                data,
                encoding: WeightEncoding::F32,
                outputs: n,
                inputs: 1,
                ..Weight::default()
            };
            let (one, out) = (rig.floats(&[1.0]), rig.room(x.len()));
            rig.run(&[Op::Linear {
                x: one,
                weights: Few::of(&[weight]),
                biases: Few::default(),
                outs: Few::of(&[out]),
                rows: 1,
                epilogue,
                limit: 0.0,
                alpha: 0.0,
            }]);
            rig.read(out, x.len())
        });
        for (x, got) in x.iter().zip(got) {
            let v = f64::from(*x);
            let want = match epilogue {
                Epilogue::Gelu => v * 0.5 * (1.0 + erf(v / 2f64.sqrt())),
                _ => gelu_tanh(v),
            };
            assert!(
                (f64::from(got) - want).abs() <= bound * want.abs().max(0.1),
                "{epilogue:?} of {x}: {got}, not {want}"
            );
        }
    }
}

#[test]
fn limits_of_functions_are_their_values() {
    let x = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 200.0, -200.0];
    for (_, mut rig) in rigs() {
        let got = map(&mut rig, MapKind::SigmoidMul, &[1.0; 5], &x, 0.0);
        assert_eq!((got[0], got[1], got[3], got[4]), (1.0, 0.0, 1.0, 0.0));
        assert!(got[2].is_nan());
        let got = map(&mut rig, MapKind::Softcap, &x, &x, 1.0);
        assert_eq!((got[0], got[1], got[3], got[4]), (1.0, -1.0, 1.0, -1.0));
        assert!(got[2].is_nan());
    }
}
