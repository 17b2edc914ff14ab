//! Asks an offload policy where units go, and holds its answer against the budget.

use crate::family::Plan;
use crate::spec::{PlacementFacts, Rates};
use crate::weights::Files;
use kvern_contract::placement::HOST_LAYERS_NONE;
use kvern_contract::{
    Access, Error, ErrorKind, LayerIndex, OffloadPolicy, OptionValue, Options, Placement, PlanAsk,
    Result, Role, Tier, TierFacts, Unit, UnitId,
};

/// What the host knows when it asks.
pub(crate) struct Room {
    /// Bytes of host memory for weights; `None`: no limit.
    pub host_bytes: Option<u64>,
    /// Layers to keep; `None`: the policy decides.
    pub host_layers: Option<u32>,
    /// Rows that a sweep is expected to advance.
    pub rows_per_sweep: u32,
    /// What was measured of the machine.
    pub rates: Rates,
}

/// Where each unit of the plan goes.
pub(crate) struct Placed {
    pub resident: Vec<bool>,
    pub read_ahead_units: u32,
    /// Bytes of memory of what stays.
    pub resident_memory: u64,
    /// Why each unit goes where it goes.
    pub reasons: Vec<String>,
    pub facts: PlacementFacts,
}

/// The units of a plan, as a policy sees them.
pub(crate) fn units(plan: &Plan, files: &Files) -> Vec<Unit> {
    let unit = |(index, unit): (usize, &crate::family::UnitPlan)| {
        let weights = || unit.matrices.iter().map(|m| &files.stored[m.0]);
        let values: u64 = weights().map(|s| u64::from(s.outputs) * u64::from(s.inputs)).sum();
        Unit {
            id: UnitId(index as u32),
            layer: unit.layer,
            role: unit.role,
            expert: None,
            bytes: files.layouts[index].memory(),
            encoding: weights().next().map(|s| s.encoding).unwrap_or_default(),
            access: unit.access,
            flops_per_row: if unit.role == Role::Embed { 0 } else { 2 * values },
        }
    };
    plan.units.iter().enumerate().map(unit).collect()
}

/// Asks, and checks the answer. *Errors* the policy's; Invalid for an answer that misses a unit or
/// names one twice; OverBudget for one that does not fit, naming the unit.
pub(crate) fn place(
    policy: &dyn OffloadPolicy,
    options: &Options,
    plan: &Plan,
    files: &Files,
    room: &Room,
) -> Result<Placed> {
    let units = units(plan, files);
    let mut options = options.clone();
    let described = policy.describe();
    if room.host_layers == Some(0) {
        if !described.options.contains_key(HOST_LAYERS_NONE) {
            let text = format!(
                "offload policy `{}` has no option {HOST_LAYERS_NONE}: it cannot keep no layer at \
                 all",
                described.name
            );
            return Err(Error::new(ErrorKind::Unsupported, "offload/plan", text));
        }
        options.insert(HOST_LAYERS_NONE.into(), OptionValue::Switch(true));
    }
    let tier = |tier, budget_bytes, read_bytes_per_second| TierFacts {
        tier,
        budget_bytes,
        read_bytes_per_second,
    };
    let ask = PlanAsk {
        units: units.clone(),
        layers: plan.layers.len() as u32,
        tiers: vec![
            tier(Tier::Host, room.host_bytes.unwrap_or(u64::MAX), room.rates.memory),
            tier(Tier::Disk, u64::MAX, room.rates.drive),
        ],
        flops_per_second: room.rates.flops,
        rows_per_sweep: room.rows_per_sweep,
        experts_per_row: 0,
        host_layers: room.host_layers.unwrap_or(0),
        device_layers: 0,
        options,
        observed: Vec::new(),
    };
    let name = described.name;
    let answer = policy.plan(&ask)?;
    let resident = check(&name, &units, &answer, room.host_bytes)?;
    let facts = facts(name, plan, files, &units, &answer, &resident, room.host_layers);
    let stay = units.iter().zip(&resident).filter(|(_, stays)| **stays);
    let resident_memory = stay.map(|(unit, _)| unit.bytes).sum();
    let mut reasons = vec![String::new(); units.len()];
    for placed in answer.units {
        if let Some(reason) = reasons.get_mut(placed.unit.0 as usize) {
            *reason = placed.reason;
        }
    }
    let read_ahead_units = answer.read_ahead_units;
    Ok(Placed { resident, read_ahead_units, resident_memory, reasons, facts })
}

fn check(
    policy: &str,
    units: &[Unit],
    answer: &Placement,
    host_bytes: Option<u64>,
) -> Result<Vec<bool>> {
    let bad = |kind, text: String| {
        Err(Error::new(kind, "offload/plan", format!("offload policy `{policy}` {text}")))
    };
    let mut tiers: Vec<Option<Tier>> = vec![None; units.len()];
    let mut held = 0_u64;
    for placed in &answer.units {
        let Some(tier) = tiers.get_mut(placed.unit.0 as usize) else {
            let (unit, most) = (placed.unit.0, units.len() - 1);
            return bad(ErrorKind::Invalid, format!("placed unit {unit}; there are 0 to {most}"));
        };
        if tier.replace(placed.tier).is_some() {
            let unit = describe(&units[placed.unit.0 as usize]);
            return bad(ErrorKind::Invalid, format!("placed {unit} twice"));
        }
        match placed.tier {
            Tier::Device => {
                let unit = describe(&units[placed.unit.0 as usize]);
                let text = format!("placed {unit} on the device, which has no memory of its own");
                return bad(ErrorKind::Invalid, text);
            }
            Tier::Host => held = held.saturating_add(units[placed.unit.0 as usize].bytes),
            Tier::Disk => (),
        }
        if let Some(most) = host_bytes.filter(|most| held > *most) {
            let text = format!(
                "keeps {held} bytes up to {}, more than the {most} that the budget has",
                describe(&units[placed.unit.0 as usize])
            );
            return bad(ErrorKind::OverBudget, text);
        }
    }
    match tiers.iter().position(Option::is_none) {
        Some(missed) => bad(ErrorKind::Invalid, format!("left out {}", describe(&units[missed]))),
        None => Ok(tiers.iter().map(|t| *t == Some(Tier::Host)).collect()),
    }
}

/// What a unit is called: `layer 3 mlp`, `head`.
pub(crate) fn describe(unit: &Unit) -> String {
    name(unit.layer, unit.role)
}

/// What the unit of a role is called, in a layer or beside them.
pub(crate) fn name(layer: Option<LayerIndex>, role: Role) -> String {
    match layer {
        Some(layer) => format!("layer {} {role:?}", layer.0).to_lowercase(),
        None => format!("{role:?}").to_lowercase(),
    }
}

fn facts(
    policy: String,
    plan: &Plan,
    files: &Files,
    units: &[Unit],
    answer: &Placement,
    resident: &[bool],
    requested: Option<u32>,
) -> PlacementFacts {
    let stays = |layer: u32| {
        let mut of =
            units.iter().zip(resident).filter(|(u, _)| u.layer.map(|l| l.0) == Some(layer));
        of.all(|(_, stays)| *stays)
    };
    let indices: Vec<u32> = (0..plan.layers.len() as u32).filter(|l| stays(*l)).collect();
    let bytes = |stay: bool| {
        let of = units.iter().zip(resident).zip(&files.layouts);
        let of = of.filter(|((u, r), _)| **r == stay && (stay || u.access == Access::Sweep));
        of.map(|(_, layout)| layout.matrix_bytes).sum()
    };
    let line = |placed: &kvern_contract::Placed| {
        let unit = &units[placed.unit.0 as usize];
        format!("{}: {:?}, {}", describe(unit), placed.tier, placed.reason)
    };
    PlacementFacts {
        policy,
        requested,
        applied: indices.len() as u32,
        indices,
        resident_bytes: bytes(true),
        streamed_bytes: bytes(false),
        reasons: answer.units.iter().map(line).collect(),
    }
}
