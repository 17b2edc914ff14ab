//! Routers, and experts of which some are absent.

use super::super::desk::Desk;
use super::of;
use kvern_contract::*;

pub fn route(desk: &mut Desk, n: u64) -> Vec<Op> {
    use RouteKind::*;
    let kind = of(&[SoftmaxThenTop, TopThenSoftmax, SigmoidThenTop], n);
    let (rows, experts) = (of(&[1, 5, 33], n / 2), of(&[8, 33], n / 3));
    let top = of(&[2, 1, 8], n / 4);
    let mut logits = desk.numbers(rows * experts);
    let tied = n % 4 == 3;
    if tied {
        logits.iter_mut().for_each(|x| *x = (*x * 2.0).round());
    }
    // With a bias there would be near ties.
    let bias = desk.maybe(!tied && n.is_multiple_of(2), experts);
    let logits = desk.given(&logits);
    let (ids, weights) = (desk.out(rows * top), desk.out(rows * top));
    let (renormalise, scale) = (n / 2 % 2 == 1, of(&[1.0, 2.5], n));
    vec![Op::Route { logits, bias, ids, weights, rows, experts, top, kind, renormalise, scale }]
}

pub fn experts(desk: &mut Desk, n: u64) -> Vec<Op> {
    use Epilogue::*;
    let epilogue = of(&[SiluGated, Clamped, GeluTanhGated, Silu, Gelu], n);
    let (rows, experts, top) = (of(&[3, 1, 17], n), 6, of(&[2, 3, 1], n));
    let (width, hidden) = of(&[(32, 64), (64, 32)], n);
    let encoding = desk.weight_encoding(n);
    let plain = !matches!(encoding, WeightEncoding::Int8 | WeightEncoding::Mxfp4);
    let layout = u32::from(plain && epilogue == Clamped && n % 2 == 1);
    // Four lie here, in another order; two are absent.
    let slots = [2, u32::MAX, 0, 3, u32::MAX, 1];
    let outputs = if epilogue == Clamped { 2 * hidden } else { hidden };
    let gated = matches!(epilogue, SiluGated | GeluTanhGated);
    let frame = n % 3 == 1;
    let mut stack = |(outputs, inputs)| {
        if !(frame && plain) {
            return desk.weight(encoding, (outputs, inputs), (4, layout));
        }
        // As in a cache, an expert a frame, with something else between them: every second.
        let size = if encoding == WeightEncoding::F32 { 4 } else { 2 };
        let stride = 2 * u64::from(outputs) * u64::from(inputs) * size;
        Weight { stride, ..desk.weight(encoding, (outputs, inputs), (8, layout)) }
    };
    let gate = stack((outputs, width));
    let up = if gated { stack((outputs, width)) } else { Weight::default() };
    let down = stack((width, hidden));
    let mut ids = Vec::new();
    for _ in 0..rows {
        // Any, but none twice.
        let first = desk.random.below(experts) as u32;
        let step = 1 + 4 * desk.random.below(2) as u32;
        ids.extend((0..top).map(|i| (first + i * step) % experts as u32));
    }
    let (experts, biased) = (experts as u32, n.is_multiple_of(2));
    let first = n % 4 != 3;
    vec![Op::Experts {
        x: desk.floats(rows * width),
        ids: desk.table(&ids),
        weights: desk.floats(rows * top),
        slots: desk.table(&slots),
        gate,
        up,
        down,
        gate_bias: desk.maybe(biased, experts * outputs),
        up_bias: desk.maybe(biased && gated, experts * outputs),
        down_bias: desk.maybe(biased, experts * width),
        out: if first { desk.out(rows * width) } else { desk.floats(rows * width) },
        rows,
        top,
        experts,
        epilogue,
        limit: 0.75,
        alpha: 1.702,
        first,
    }]
}

/// The same experts in waves: those below an id, and the rest.
pub fn waves(desk: &mut Desk, op: &Op, below: u32) -> Vec<Op> {
    let Op::Experts { slots, experts, .. } = *op else { return Vec::new() };
    let all = desk.image.words(slots, &[experts]).unwrap_or_default();
    let mut waves = Vec::new();
    for low in [true, false] {
        let here = |(id, slot): (usize, &u32)| match (id < below as usize) == low {
            true => *slot,
            false => u32::MAX,
        };
        let some: Vec<u32> = all.iter().enumerate().map(here).collect();
        let place = desk.words(&some);
        let mut wave = *op;
        if let Op::Experts { slots, first, .. } = &mut wave {
            (*slots, *first) = (place, *first && low);
        }
        waves.push(wave);
    }
    waves
}
