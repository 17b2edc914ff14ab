//! A placement under way: memories that fill, units that have found their place.

use crate::PLAN;
use crate::spread::spread;
use kvern_contract::*;

/// What is left of a memory.
pub(crate) struct Room {
    tier: Tier,
    left: u64,
}

impl Room {
    /// A memory as it is offered; `None`: there is none.
    pub(crate) fn of(ask: &PlanAsk, tier: Tier) -> Option<Room> {
        let facts = ask.tiers.iter().find(|facts| facts.tier == tier)?;
        Some(Room { tier, left: facts.budget_bytes })
    }
}

/// Units, and where they go.
pub(crate) struct Filling<'a> {
    ask: &'a PlanAsk,
    /// By unit of the ask: its memory and why.
    placed: Vec<Option<(Tier, &'static str)>>,
    /// Bytes of each layer, all of its units.
    layers: Vec<u64>,
}

impl<'a> Filling<'a> {
    /// Nothing is placed yet. *Errors* Invalid: a unit of a layer that there is not.
    pub(crate) fn new(ask: &'a PlanAsk) -> Result<Self> {
        let mut layers = vec![0u64; ask.layers as usize];
        for unit in &ask.units {
            let Some(layer) = unit.layer else { continue };
            let bytes = layers.get_mut(layer.0 as usize).ok_or_else(|| {
                let (id, layer, layers) = (unit.id.0, layer.0, ask.layers);
                let text = format!("unit {id} is of layer {layer}, and there are {layers} layers");
                Error::new(ErrorKind::Invalid, PLAN, text)
            })?;
            *bytes = bytes.saturating_add(unit.bytes);
        }
        Ok(Filling { ask, placed: vec![None; ask.units.len()], layers })
    }

    fn bytes_of(&self, layers: &[u32]) -> u64 {
        let bytes = layers.iter().filter_map(|layer| self.layers.get(*layer as usize));
        bytes.fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    fn keep_layers(&mut self, room: &mut Room, layers: &[u32], reason: &'static str) {
        room.left = room.left.saturating_sub(self.bytes_of(layers));
        for (unit, placed) in self.ask.units.iter().zip(&mut self.placed) {
            if unit.layer.is_some_and(|layer| layers.contains(&layer.0)) {
                *placed = Some((room.tier, reason));
            }
        }
    }

    /// Keeps exactly these layers; answers how many. *Errors* OverBudget: what they need and what
    /// there is.
    pub(crate) fn count(&mut self, room: &mut Room, layers: &[u32]) -> Result<u32> {
        let (needed, left) = (self.bytes_of(layers), room.left);
        if needed > left {
            let (count, tier) =
                (layers.len(), if room.tier == Tier::Host { "host" } else { "device" });
            let text = format!(
                "{count} layers need {needed} bytes of {tier} memory, there are {left}: ask for \
                 fewer layers or raise the budget"
            );
            return Err(Error::new(ErrorKind::OverBudget, PLAN, text));
        }
        self.keep_layers(room, layers, "layer within the count");
        Ok(layers.len() as u32)
    }

    /// Keeps as many of `most` layers as fit, those that `choose` has for their number; answers how
    /// many.
    pub(crate) fn fit(
        &mut self,
        room: &mut Room,
        most: u32,
        choose: impl Fn(u32) -> Vec<u32>,
    ) -> u32 {
        let fits = |count: &u32| self.bytes_of(&choose(*count)) <= room.left;
        let count = (0..=most).rev().find(fits).unwrap_or(0);
        self.keep_layers(room, &choose(count), "layer within the budget");
        count
    }

    /// Keeps what belongs to no layer and is needed in this way, one by one where it fits. What a
    /// router chooses is needed in every sweep as far as anyone knows.
    pub(crate) fn loose(&mut self, room: &mut Room, access: Access) {
        for (unit, placed) in self.ask.units.iter().zip(&mut self.placed) {
            let rows = (unit.access == Access::Rows) == (access == Access::Rows);
            if unit.layer.is_none() && rows && placed.is_none() && unit.bytes <= room.left {
                room.left -= unit.bytes;
                *placed = Some((room.tier, "outside the layers"));
            }
        }
    }

    /// Keeps single swept units of layers that stream, each kind spread over the depth. What is
    /// taken first leaves less for the rest: the order that keeps the most bytes is taken.
    pub(crate) fn units(&mut self, room: &mut Room) {
        let kinds = self.kinds();
        let starts = (0..kinds.len()).map(|first| {
            let mut order: Vec<&Vec<usize>> = kinds.iter().collect();
            order[..=first].rotate_right(1);
            self.choose_units(&order, room.left)
        });
        // Of equals the first: larger units are fewer reads.
        let best = starts.reduce(|best, other| if other.1 > best.1 { other } else { best });
        let Some((units, bytes)) = best else { return };
        room.left = room.left.saturating_sub(bytes);
        units.into_iter().for_each(|unit| {
            self.placed[unit] = Some((room.tier, "unit within the budget"));
        });
    }

    /// Swept units of layers that are nowhere yet, by what they are for, the largest kind first.
    fn kinds(&self) -> Vec<Vec<usize>> {
        let mut kinds: Vec<(Role, Vec<usize>)> = Vec::new();
        for (index, unit) in self.ask.units.iter().enumerate() {
            let streams = unit.layer.is_some() && self.placed[index].is_none();
            if !streams || unit.access != Access::Sweep {
                continue;
            }
            match kinds.iter_mut().find(|(role, _)| *role == unit.role) {
                Some((_, units)) => units.push(index),
                None => kinds.push((unit.role, vec![index])),
            }
        }
        let largest = |units: &Vec<usize>| units.iter().map(|u| self.ask.units[*u].bytes).max();
        kinds.sort_by_key(|(_, units)| std::cmp::Reverse(largest(units)));
        kinds.into_iter().map(|(_, units)| units).collect()
    }

    /// Of each kind in turn as many as fit, spread evenly; and the bytes of them all.
    fn choose_units(&self, kinds: &[&Vec<usize>], room: u64) -> (Vec<usize>, u64) {
        let (mut chosen, mut bytes) = (Vec::new(), 0u64);
        for units in kinds {
            let of = units.len() as u32;
            let pick = |count| spread(count, of).map(|at| units[at as usize]);
            let sum = |count| {
                let sizes = pick(count).map(|unit| self.ask.units[unit].bytes);
                sizes.fold(0u64, u64::saturating_add)
            };
            let most = (0..=of).rev().find(|count| sum(*count) <= room - bytes).unwrap_or(0);
            chosen.extend(pick(most));
            bytes += sum(most);
        }
        (chosen, bytes)
    }

    /// What found no place is on disk, and read `ahead` units ahead where there are as many.
    pub(crate) fn finish(self, ahead: u32) -> Placement {
        let mut streamed = 0;
        let mut units = Vec::with_capacity(self.placed.len());
        for (unit, placed) in self.ask.units.iter().zip(self.placed) {
            let (tier, reason) = placed.unwrap_or(match (unit.layer, unit.access) {
                (Some(_), _) => (Tier::Disk, "beyond what is kept"),
                (None, Access::Rows) => (Tier::Disk, "read row by row"),
                (None, _) => (Tier::Disk, "no room left"),
            });
            streamed += u32::from(tier == Tier::Disk && unit.access == Access::Sweep);
            units.push(Placed { unit: unit.id, tier, reason: reason.into() });
        }
        Placement { units, expert_cache_bytes: 0, read_ahead_units: ahead.min(streamed) }
    }
}
