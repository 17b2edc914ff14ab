//! Who computes: the pool that `open` built, and nobody else.

use crate::harness::*;
use kvern_contract::*;

fn names() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let name = |task: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(task.ok()?.path().join("comm")).ok()
    };
    tasks.filter_map(name).collect()
}

#[test]
fn large_element_wise_work_never_wakes_candles_own_pool() {
    let mut rig = Rig::with(1, u64::MAX);
    let (rows, width) = (64u32, 4096u32);
    let at = rig.zeros((rows * width) as usize);
    let view = View { at, row: width, group: 0, step: 1 };
    let scalar = 1.0;
    let map = |kind| Op::Map { a: view, b: view, out: view, kind, rows, groups: 1, width, scalar };
    rig.run(map(MapKind::SiluMul));
    rig.run(map(MapKind::Add));
    let weight = rig.weight(&vec![0.5; 4096 * 64], 4096, 64, WeightEncoding::Bf16).0;
    let bias = rig.zeros(4096);
    let x = rig.zeros(64 * 64);
    rig.run(Op::Linear {
        x,
        weights: Few::of(&[weight]),
        biases: Few::of(&[bias]),
        outs: Few::of(&[at]),
        rows,
        epilogue: Epilogue::GeluTanh,
        limit: 0.0,
        alpha: 0.0,
    });
    let names = names();
    assert!(names.iter().any(|name| name.starts_with("candle-0")), "{names:?}");
    assert!(!names.iter().any(|name| name.starts_with("candle-bp")), "{names:?}");
}
