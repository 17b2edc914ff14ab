//! A placement from an order of layers: what policies that keep one band of layers have in common.
//! The policy says which layer it would keep first, which next; this fills the memories in that
//! order, by count or by budget.

use crate::offload::*;
use crate::types::*;

/// The switch that means no layer at all; `host_layers` 0 means no count.
pub const HOST_LAYERS_NONE: &str = "host_layers_none";

/// The options of a policy that places by order, with their defaults.
pub fn order_options() -> Options {
    Options::from([(HOST_LAYERS_NONE.into(), OptionValue::Switch(false))])
}

/// A memory under way of being filled.
struct Room {
    tier: Tier,
    left: u64,
}

struct Filling<'a> {
    ask: &'a PlanAsk,
    /// For each unit of the ask, where it goes and why.
    placed: Vec<Option<(Tier, &'static str)>>,
    /// Bytes of each layer, all of its units.
    layers: Vec<u64>,
}

/// Places every unit. `order` gives, for a number of layers, their indices in the order in which
/// they are kept: the first n of it are the n that a count of n keeps.
///
/// The device, where there is one, takes layers from the first on, `device_layers` of them or as
/// many as fit. Of the rest the host keeps `host_layers` by `order`, none with the switch
/// `HOST_LAYERS_NONE`, or as many as fit. What belongs to no layer stays in the nearest memory with
/// room: first where layers are kept by budget, last where they are counted. All else is on disk,
/// and read a layer ahead.
///
/// *Errors* Invalid: an option, a unit of a layer that is not there, device layers without a
/// device. OverBudget: counted layers do not fit; says what they need and what there is.
pub fn place_by_order(ask: &PlanAsk, order: fn(u32) -> Vec<u32>) -> Result<Placement> {
    known_options(&ask.options, PLAN, &order_options())?;
    let none = switch_option(&ask.options, PLAN, HOST_LAYERS_NONE, false)?;
    let mut filling = Filling::new(ask)?;
    let mut device = room(ask, Tier::Device);
    let mut host = room(ask, Tier::Host);
    if ask.device_layers > 0 && device.is_none() {
        let asked = ask.device_layers;
        return Err(invalid(format!(
            "{asked} device layers were asked for, and there is no device: ask for host layers"
        )));
    }
    // Counted layers come before what belongs to no layer; layers by budget take what it leaves.
    let from_first = |count| (0..count).collect::<Vec<u32>>();
    let mut on_device = 0;
    if let (Some(device), 1..) = (&mut device, ask.device_layers) {
        on_device = filling.count(device, &from_first(ask.layers), ask.device_layers)?;
    } else if let Some(device) = &mut device {
        filling.loose(device);
        on_device = filling.fit(device, &from_first(ask.layers));
    }
    let rest: Vec<u32> = order(ask.layers.saturating_sub(on_device));
    let rest: Vec<u32> = rest.into_iter().map(|layer| layer + on_device).collect();
    if let Some(host) = &mut host {
        if ask.host_layers > 0 && !none {
            filling.count(host, &rest, ask.host_layers)?;
        }
        device.as_mut().into_iter().for_each(|device| filling.loose(device));
        filling.loose(host);
        if ask.host_layers == 0 && !none {
            filling.fit(host, &rest);
        }
    } else if let Some(device) = &mut device {
        filling.loose(device);
    }
    Ok(filling.finish())
}

const PLAN: &str = "offload/plan";

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::Invalid, PLAN, message)
}

fn room(ask: &PlanAsk, tier: Tier) -> Option<Room> {
    let facts = ask.tiers.iter().find(|facts| facts.tier == tier)?;
    Some(Room { tier, left: facts.budget_bytes })
}

impl<'a> Filling<'a> {
    fn new(ask: &'a PlanAsk) -> Result<Self> {
        let mut layers = vec![0u64; ask.layers as usize];
        for unit in &ask.units {
            let Some(layer) = unit.layer else { continue };
            let bytes = layers.get_mut(layer.0 as usize).ok_or_else(|| {
                let (id, layer, layers) = (unit.id.0, layer.0, ask.layers);
                invalid(format!("unit {id} is of layer {layer}, and there are {layers} layers"))
            })?;
            *bytes = bytes.saturating_add(unit.bytes);
        }
        Ok(Filling { ask, placed: vec![None; ask.units.len()], layers })
    }

    fn bytes_of(&self, layer: u32) -> u64 {
        self.layers.get(layer as usize).copied().unwrap_or(0)
    }

    fn keep(&mut self, room: &mut Room, layer: u32, reason: &'static str) {
        room.left = room.left.saturating_sub(self.bytes_of(layer));
        for (unit, placed) in self.ask.units.iter().zip(&mut self.placed) {
            if unit.layer == Some(LayerIndex(layer)) {
                *placed = Some((room.tier, reason));
            }
        }
    }

    /// Keeps the first `count` of `order`, or all where there are fewer.
    fn count(&mut self, room: &mut Room, order: &[u32], count: u32) -> Result<u32> {
        let chosen = order.get(..count as usize).unwrap_or(order);
        let needed = chosen.iter().fold(0u64, |sum, l| sum.saturating_add(self.bytes_of(*l)));
        if needed > room.left {
            let (layers, left, tier) = (chosen.len(), room.left, name(room.tier));
            let message = format!(
                "{layers} layers need {needed} bytes of {tier} memory, there are {left}: ask for \
                 fewer layers or raise the budget"
            );
            return Err(Error::new(ErrorKind::OverBudget, PLAN, message));
        }
        chosen.iter().for_each(|layer| self.keep(room, *layer, "layer within the count"));
        Ok(chosen.len() as u32)
    }

    /// Keeps layers in order until one does not fit.
    fn fit(&mut self, room: &mut Room, order: &[u32]) -> u32 {
        let mut kept = 0;
        for layer in order {
            if self.bytes_of(*layer) > room.left {
                break;
            }
            self.keep(room, *layer, "layer within the budget");
            kept += 1;
        }
        kept
    }

    /// Keeps what belongs to no layer, one by one where it fits.
    fn loose(&mut self, room: &mut Room) {
        for (unit, placed) in self.ask.units.iter().zip(&mut self.placed) {
            if unit.layer.is_none() && placed.is_none() && unit.bytes <= room.left {
                room.left -= unit.bytes;
                *placed = Some((room.tier, "outside the layers"));
            }
        }
    }

    fn finish(self) -> Placement {
        let mut ahead = vec![0u32; self.layers.len()];
        let mut streams = false;
        let mut units = Vec::with_capacity(self.placed.len());
        for (unit, placed) in self.ask.units.iter().zip(self.placed) {
            let (tier, reason) = placed.unwrap_or(match unit.layer {
                Some(_) => (Tier::Disk, "layer beyond what is kept"),
                None => (Tier::Disk, "no room left"),
            });
            let layer = unit.layer.and_then(|layer| ahead.get_mut(layer.0 as usize));
            if let (Tier::Disk, Access::Sweep) = (tier, unit.access) {
                streams = true;
                layer.into_iter().for_each(|count| *count += 1);
            }
            units.push(Placed { unit: unit.id, tier, reason: reason.into() });
        }
        // A layer ahead: while one computes, the next arrives.
        let widest = ahead.into_iter().max().unwrap_or(0).max(1);
        let read_ahead_units = if streams { widest } else { 0 };
        Placement { units, expert_cache_bytes: 0, read_ahead_units }
    }
}

fn name(tier: Tier) -> &'static str {
    match tier {
        Tier::Device => "device",
        Tier::Host => "host",
        Tier::Disk => "disk",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::WeightEncoding;

    fn unit(id: u32, layer: Option<u32>, bytes: u64) -> Unit {
        Unit {
            id: UnitId(id),
            layer: layer.map(LayerIndex),
            role: if layer.is_some() { Role::Mlp } else { Role::Embed },
            expert: None,
            bytes,
            encoding: WeightEncoding::Bf16,
            access: if layer.is_some() { Access::Sweep } else { Access::Rows },
            flops_per_row: 1,
        }
    }

    /// Two units of 10 bytes a layer, an embedding of 7 and a head of 5.
    fn ask(layers: u32, host: u64, device: Option<u64>) -> PlanAsk {
        let mut units = vec![unit(0, None, 7)];
        for layer in 0..layers {
            units.push(unit(units.len() as u32, Some(layer), 10));
            units.push(unit(units.len() as u32, Some(layer), 10));
        }
        units.push(unit(units.len() as u32, None, 5));
        let facts =
            |tier, budget_bytes| TierFacts { tier, budget_bytes, read_bytes_per_second: None };
        let mut tiers: Vec<_> = device.into_iter().map(|b| facts(Tier::Device, b)).collect();
        tiers.extend([facts(Tier::Host, host), facts(Tier::Disk, u64::MAX)]);
        PlanAsk {
            units,
            layers,
            tiers,
            flops_per_second: None,
            rows_per_sweep: 1,
            experts_per_row: 0,
            host_layers: 0,
            device_layers: 0,
            options: Options::new(),
            observed: Vec::new(),
        }
    }

    fn forward(layers: u32) -> Vec<u32> {
        (0..layers).collect()
    }

    fn layers_in(ask: &PlanAsk, placement: &Placement, tier: Tier) -> Vec<u32> {
        let there = ask.units.iter().zip(&placement.units).filter(|(_, p)| p.tier == tier);
        let mut layers: Vec<_> = there.filter_map(|(u, _)| u.layer.map(|l| l.0)).collect();
        assert!(layers.len().is_multiple_of(2), "a layer moves whole");
        layers.dedup();
        layers
    }

    fn loose_in(ask: &PlanAsk, placement: &Placement, tier: Tier) -> usize {
        let pairs = ask.units.iter().zip(&placement.units);
        pairs.filter(|(u, p)| u.layer.is_none() && p.tier == tier).count()
    }

    #[test]
    fn by_budget_what_is_loose_comes_first_and_layers_while_they_fit() {
        let ask = ask(6, 12 + 20 * 3 + 19, None);
        let placement = place_by_order(&ask, forward).unwrap();
        assert_eq!(layers_in(&ask, &placement, Tier::Host), [0, 1, 2]);
        assert_eq!(layers_in(&ask, &placement, Tier::Disk), [3, 4, 5]);
        assert_eq!(loose_in(&ask, &placement, Tier::Host), 2);
        assert_eq!(placement.read_ahead_units, 2, "a layer ahead");
        assert_eq!(placement.units.len(), ask.units.len());
    }

    #[test]
    fn where_all_fits_nothing_streams_and_where_nothing_fits_all_does() {
        let wide = ask(4, 1000, None);
        let placement = place_by_order(&wide, forward).unwrap();
        assert!(placement.units.iter().all(|p| p.tier == Tier::Host));
        assert_eq!(placement.read_ahead_units, 0);
        let narrow = ask(4, 4, None);
        let placement = place_by_order(&narrow, forward).unwrap();
        assert!(placement.units.iter().all(|p| p.tier == Tier::Disk));
    }

    #[test]
    fn a_count_is_kept_exactly_and_above_the_layers_is_all() {
        for (count, kept) in [(2, 2), (9, 6)] {
            let ask = PlanAsk { host_layers: count, ..ask(6, 1000, None) };
            let placement = place_by_order(&ask, forward).unwrap();
            assert_eq!(layers_in(&ask, &placement, Tier::Host).len(), kept);
            assert_eq!(loose_in(&ask, &placement, Tier::Host), 2);
        }
    }

    #[test]
    fn a_count_that_does_not_fit_says_what_is_needed_and_what_there_is() {
        let ask = PlanAsk { host_layers: 3, ..ask(6, 59, None) };
        let error = place_by_order(&ask, forward).unwrap_err();
        assert_eq!(error.kind, ErrorKind::OverBudget);
        assert!(error.message.contains("3 layers need 60 bytes"), "{error}");
        assert!(error.message.contains("there are 59"), "{error}");
    }

    #[test]
    fn no_layer_at_all_is_a_switch() {
        let mut ask = ask(6, 1000, None);
        ask.options = Options::from([(HOST_LAYERS_NONE.into(), OptionValue::Switch(true))]);
        let placement = place_by_order(&ask, forward).unwrap();
        assert_eq!(layers_in(&ask, &placement, Tier::Disk).len(), 6);
        assert_eq!(loose_in(&ask, &placement, Tier::Host), 2);
        ask.options.insert(HOST_LAYERS_NONE.into(), OptionValue::Integer(1));
        assert_eq!(place_by_order(&ask, forward).unwrap_err().kind, ErrorKind::Invalid);
        ask.options = Options::from([("layers".into(), OptionValue::Integer(1))]);
        let error = place_by_order(&ask, forward).unwrap_err();
        assert!(error.message.contains("layers is unknown"), "{error}");
    }

    #[test]
    fn a_device_takes_the_first_layers_and_the_host_its_share_of_the_rest() {
        let by_budget = ask(6, 45, Some(12 + 45));
        let placement = place_by_order(&by_budget, |n| (0..n).rev().collect()).unwrap();
        assert_eq!(layers_in(&by_budget, &placement, Tier::Device), [0, 1]);
        assert_eq!(layers_in(&by_budget, &placement, Tier::Host), [4, 5]);
        assert_eq!(loose_in(&by_budget, &placement, Tier::Device), 2);
        let counted = PlanAsk { device_layers: 3, host_layers: 1, ..ask(6, 45, Some(66)) };
        let placement = place_by_order(&counted, forward).unwrap();
        assert_eq!(layers_in(&counted, &placement, Tier::Device), [0, 1, 2]);
        assert_eq!(layers_in(&counted, &placement, Tier::Host), [3]);
        assert_eq!(loose_in(&counted, &placement, Tier::Device), 1, "5 of the 6 bytes left");
        assert_eq!(loose_in(&counted, &placement, Tier::Host), 1);
    }

    #[test]
    fn device_layers_without_a_device_and_units_without_their_layer_are_invalid() {
        let ask_device = PlanAsk { device_layers: 1, ..ask(2, 100, None) };
        assert_eq!(place_by_order(&ask_device, forward).unwrap_err().kind, ErrorKind::Invalid);
        let mut odd = ask(2, 100, None);
        odd.layers = 1;
        let error = place_by_order(&odd, forward).unwrap_err();
        assert!(error.message.contains("unit 3 is of layer 1"), "{error}");
    }
}
