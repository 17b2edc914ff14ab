use crate::*;
use kvern_testkit::offload::{hold, host_layers};

/// An embedding of 70 bytes, layers of an attention of 10 and an MLP of 30, a head of 50.
fn ask(layers: u32, host: u64) -> PlanAsk {
    let mut units = Vec::new();
    let mut unit = |layer: Option<u32>, role, access, bytes| {
        units.push(Unit {
            id: UnitId(units.len() as u32),
            layer: layer.map(LayerIndex),
            role,
            expert: None,
            bytes,
            encoding: WeightEncoding::Bf16,
            access,
            flops_per_row: bytes,
        });
    };
    unit(None, Role::Embed, Access::Rows, 70);
    for layer in 0..layers {
        unit(Some(layer), Role::Attention, Access::Sweep, 10);
        unit(Some(layer), Role::Mlp, Access::Sweep, 30);
    }
    unit(None, Role::Head, Access::Sweep, 50);
    let tier = |tier, budget_bytes| TierFacts { tier, budget_bytes, read_bytes_per_second: None };
    PlanAsk {
        units,
        layers,
        tiers: vec![tier(Tier::Host, host), tier(Tier::Disk, u64::MAX)],
        flops_per_second: None,
        rows_per_sweep: 1,
        experts_per_row: 0,
        host_layers: 0,
        device_layers: 0,
        options: Interleaved.describe().options,
        observed: Vec::new(),
    }
}

/// What is kept on the host, by role: layers, or 0 for what belongs to none.
fn kept(ask: &PlanAsk, role: Role) -> Vec<u32> {
    let placement = Interleaved.plan(ask).expect("it has an answer");
    let pairs = ask.units.iter().zip(&placement.units);
    let there = pairs.filter(|(unit, placed)| unit.role == role && placed.tier == Tier::Host);
    there.map(|(unit, _)| unit.layer.map_or(0, |layer| layer.0)).collect()
}

fn bytes(ask: &PlanAsk) -> u64 {
    let placement = Interleaved.plan(ask).expect("it has an answer");
    let pairs = ask.units.iter().zip(&placement.units);
    pairs.filter(|(_, placed)| placed.tier == Tier::Host).map(|(unit, _)| unit.bytes).sum()
}

#[test]
fn it_keeps_the_contract() {
    hold(|| Box::new(Interleaved));
}

#[test]
fn a_count_is_spread_over_the_depth() {
    let counted = |layers, count| host_layers(&Interleaved, layers, count, 1 << 20);
    assert_eq!(counted(8, 2), Ok(vec![2, 6]));
    assert_eq!(counted(24, 4), Ok(vec![3, 9, 15, 21]));
    assert_eq!(counted(3, 8), Ok(vec![0, 1, 2]));
    let one = PlanAsk { host_layers: 2, ..ask(8, 1000) };
    assert_eq!((kept(&one, Role::Attention), kept(&one, Role::Mlp)), (vec![2, 6], vec![2, 6]));
    assert_eq!(bytes(&one), 2 * 40 + 50 + 70, "no part of another layer");
}

#[test]
fn a_budget_keeps_the_layers_that_a_count_would() {
    for count in 1..=9 {
        let by_budget = host_layers(&Interleaved, 9, 0, u64::from(count) * 10 + 9);
        assert_eq!(by_budget, host_layers(&Interleaved, 9, count, 1 << 20));
    }
}

#[test]
fn the_head_comes_first_layers_next_then_units_and_rows_last() {
    assert_eq!((kept(&ask(8, 50), Role::Head).len(), bytes(&ask(8, 50))), (1, 50));
    let two = ask(8, 50 + 2 * 40);
    assert_eq!((kept(&two, Role::Mlp), kept(&two, Role::Attention)), (vec![2, 6], vec![2, 6]));
    // 30 more are one MLP in the middle of those that stream, 20 more two attentions.
    let more = ask(8, 50 + 2 * 40 + 30);
    assert_eq!((kept(&more, Role::Mlp), kept(&more, Role::Attention)), (vec![2, 4, 6], vec![2, 6]));
    let less = ask(8, 50 + 2 * 40 + 29);
    assert_eq!(
        (kept(&less, Role::Mlp), kept(&less, Role::Attention)),
        (vec![2, 6], vec![1, 2, 5, 6])
    );
    let all_swept = ask(8, 50 + 8 * 40 + 69);
    assert!(kept(&all_swept, Role::Embed).is_empty(), "a byte is wanting for the table");
    assert_eq!(kept(&ask(8, 50 + 8 * 40 + 70), Role::Embed).len(), 1);
}

#[test]
fn of_units_the_order_is_taken_that_keeps_more() {
    let mut uneven = ask(4, 50 + 38);
    for unit in uneven.units.iter_mut().filter(|unit| unit.role == Role::Attention) {
        unit.bytes = 19;
    }
    assert_eq!(kept(&uneven, Role::Mlp), [0u32; 0]);
    assert_eq!(kept(&uneven, Role::Attention), [1, 3], "38 bytes rather than 30");
}

#[test]
fn what_is_kept_is_never_more_than_there_is_room_for() {
    for layers in 0..12 {
        let all = u64::from(layers) * 40 + 50 + 70;
        for room in 0..=all + 5 {
            let ask = ask(layers, room);
            let held = bytes(&ask);
            assert!(held <= room, "{held} of {room} with {layers} layers");
            let wasted = room.min(all) - held;
            let placement = Interleaved.plan(&ask).expect("it has an answer");
            let streams = placement.units.iter().any(|placed| placed.tier == Tier::Disk);
            assert!(wasted < 70 || !streams, "{wasted} of {room} with {layers} layers");
            assert_eq!(Interleaved.plan(&ask), Ok(placement), "the same answer again");
        }
    }
}

#[test]
fn units_are_read_ahead_as_far_as_asked_and_as_there_are() {
    let ahead = |ask: &PlanAsk| Interleaved.plan(ask).expect("an answer").read_ahead_units;
    assert_eq!(ahead(&ask(8, 100)), 3);
    assert_eq!(ahead(&ask(1, 60)), 1, "the MLP alone streams");
    assert_eq!(ahead(&ask(8, 1000)), 0);
    let mut far = ask(8, 100);
    far.options.insert(READ_AHEAD_UNITS.into(), OptionValue::Integer(7));
    assert_eq!(ahead(&far), 7);
    far.options.insert(READ_AHEAD_UNITS.into(), OptionValue::Integer(0));
    let error = Interleaved.plan(&far).expect_err("0 units ahead is no stream");
    assert!(error.message.contains("option read_ahead_units is 0"), "{error}");
}

#[test]
fn a_device_takes_the_first_layers_and_the_host_is_spread_over_the_rest() {
    let mut both = PlanAsk { device_layers: 2, host_layers: 2, ..ask(10, 1000) };
    let device = TierFacts { tier: Tier::Device, budget_bytes: 80, read_bytes_per_second: None };
    both.tiers.insert(0, device);
    assert_eq!(kept(&both, Role::Mlp), [4, 8]);
    both.tiers[0].budget_bytes = 79;
    let error = Interleaved.plan(&both).expect_err("a byte is wanting");
    assert_eq!(error.kind, ErrorKind::OverBudget);
    assert!(error.message.contains("2 layers need 80 bytes of device memory"), "{error}");
}
