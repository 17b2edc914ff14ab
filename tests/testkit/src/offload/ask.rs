//! Questions to a policy: models with layers of many shapes, and memories of many sizes.

use crate::Random;
use kvern_contract::*;

/// A question without the plugin's options, small enough that a shrunk trace can be read.
#[derive(Clone, Debug)]
pub struct Question {
    /// Bytes of each unit, layer by layer; a layer has at least one.
    pub layers: Vec<Vec<u64>>,
    /// Bytes of the units that belong to no layer: the first is an embedding, others are swept.
    pub loose: Vec<u64>,
    /// Whether the last unit of each layer is an expert that the router chooses.
    pub routed: bool,
    /// Device memory in bytes, where there is a device.
    pub device: Option<u64>,
    /// Host memory in bytes.
    pub host: u64,
    /// Layers asked for on the host; 0: the policy decides.
    pub host_layers: u32,
    /// Layers asked for on the device; 0: the policy decides.
    pub device_layers: u32,
}

impl Question {
    /// One that the policy decides freely.
    pub fn free(random: &mut Random) -> Question {
        let uneven = random.one_in(2);
        let units = 1 + random.below(4) as usize;
        let unit = |random: &mut Random| match uneven {
            true => random.below(200),
            false => 50,
        };
        let layers = random.below(13);
        let layers: Vec<Vec<u64>> =
            (0..layers).map(|_| (0..units).map(|_| unit(random)).collect()).collect();
        let loose: Vec<u64> = (0..random.below(4)).map(|_| random.below(300)).collect();
        let mut question = Question {
            layers,
            loose,
            routed: random.one_in(4),
            device: None,
            host: 0,
            host_layers: 0,
            device_layers: 0,
        };
        question.host = question.room(random);
        if random.one_in(3) {
            question.device = Some(question.room(random));
        }
        question
    }

    /// One that asks for a number of layers on the host, of a dense model without a device.
    pub fn counted(random: &mut Random) -> Question {
        let mut question = Question { routed: false, device: None, ..Question::free(random) };
        question.host_layers = 1 + random.below(question.layers.len() as u64 + 3) as u32;
        question
    }

    /// Nothing, everything, the very size of something, or something between.
    fn room(&self, random: &mut Random) -> u64 {
        let all: u64 = self.layers.iter().flatten().chain(&self.loose).sum();
        match random.below(5) {
            0 => 0,
            1 => all,
            2 => all + random.below(1000),
            _ => random.below(all + 1),
        }
    }

    /// Bytes of each layer.
    pub fn layer_bytes(&self) -> Vec<u64> {
        self.layers.iter().map(|units| units.iter().sum()).collect()
    }

    /// As the policy is asked.
    pub fn ask(&self, options: &Options) -> PlanAsk {
        let mut units = Vec::new();
        let mut add = |layer, role, access, bytes| {
            let id = UnitId(units.len() as u32);
            let expert = (access == Access::Routed).then_some(0);
            let (encoding, flops_per_row) = (WeightEncoding::Bf16, bytes);
            units.push(Unit { id, layer, role, expert, bytes, encoding, access, flops_per_row });
        };
        for (i, bytes) in self.loose.iter().enumerate() {
            match i {
                0 => add(None, Role::Embed, Access::Rows, *bytes),
                _ => add(None, Role::Head, Access::Sweep, *bytes),
            }
        }
        for (layer, parts) in self.layers.iter().enumerate() {
            for (i, bytes) in parts.iter().enumerate() {
                let layer = Some(LayerIndex(layer as u32));
                match (i, i + 1 == parts.len() && self.routed) {
                    (_, true) => add(layer, Role::Expert, Access::Routed, *bytes),
                    (0, _) => add(layer, Role::Attention, Access::Sweep, *bytes),
                    _ => add(layer, Role::Mlp, Access::Sweep, *bytes),
                }
            }
        }
        let tier = |tier, budget_bytes, rate| TierFacts {
            tier,
            budget_bytes,
            read_bytes_per_second: rate,
        };
        let device = self.device.map(|bytes| tier(Tier::Device, bytes, Some(1e11)));
        let rest = [tier(Tier::Host, self.host, Some(1e10)), tier(Tier::Disk, u64::MAX, None)];
        PlanAsk {
            units,
            layers: self.layers.len() as u32,
            tiers: device.into_iter().chain(rest).collect(),
            flops_per_second: None,
            rows_per_sweep: 1,
            experts_per_row: u32::from(self.routed),
            host_layers: self.host_layers,
            device_layers: self.device_layers,
            options: options.clone(),
            observed: Vec::new(),
        }
    }
}
