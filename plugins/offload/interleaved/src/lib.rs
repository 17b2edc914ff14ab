//! Resident layers stand evenly over the depth: between any two that stream there is about as much
//! to compute on, so that the drive is busy the whole sweep and never has to catch up.

mod fill;
mod spread;
#[cfg(test)]
mod tests;

use fill::{Filling, Room};
use kvern_contract::placement::{HOST_LAYERS_NONE, order_options};
use kvern_contract::*;
use spread::spread;

/// The policy.
///
/// Kept are, by budget: what is swept outside of the layers (the head, the largest unit of all,
/// which would make every staging slot as large as itself), then as many whole layers as fit, then
/// single units of the others, the larger kind first where that keeps more bytes; layers and units
/// each spread evenly. Last come tables that are read row by row: on disk they cost a few rows a
/// step, and in memory they would cost what they displace in every sweep. A count keeps exactly so
/// many layers, and no part of another. A device takes the first layers, as everywhere.
#[derive(Default)]
pub struct Interleaved;

const PLAN: &str = "offload/plan";
/// The option that says how far ahead units are read.
const READ_AHEAD_UNITS: &str = "read_ahead_units";
/// While one unit computes, the drive has this many to read.
const READ_AHEAD_UNITS_DEFAULT: u64 = 3;

fn options() -> Options {
    let mut options = order_options();
    let ahead = OptionValue::Integer(READ_AHEAD_UNITS_DEFAULT as i64);
    options.insert(READ_AHEAD_UNITS.into(), ahead);
    options
}

impl OffloadPolicy for Interleaved {
    fn describe(&self) -> OffloadDescription {
        OffloadDescription {
            name: "interleaved".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            options: options(),
            observes: false,
        }
    }

    fn plan(&self, ask: &PlanAsk) -> Result<Placement> {
        known_options(&ask.options, PLAN, &options())?;
        let none = switch_option(&ask.options, PLAN, HOST_LAYERS_NONE, false)?;
        let (name, default) = (READ_AHEAD_UNITS, READ_AHEAD_UNITS_DEFAULT);
        let ahead = whole_option(&ask.options, PLAN, name, default, 1..=1024)?;
        let mut filling = Filling::new(ask)?;
        let mut device = Room::of(ask, Tier::Device);
        let mut host = Room::of(ask, Tier::Host);
        let first = |count: u32| (0..count).collect::<Vec<u32>>();
        let on_device = match (&mut device, ask.device_layers) {
            (None, 0) => 0,
            (None, asked) => {
                let text = format!(
                    "{asked} device layers were asked for, and there is no device: ask for host \
                     layers"
                );
                return Err(Error::new(ErrorKind::Invalid, PLAN, text));
            }
            (Some(device), 0) => {
                filling.loose(device, Access::Sweep);
                filling.fit(device, ask.layers, first)
            }
            (Some(device), asked) => filling.count(device, &first(asked.min(ask.layers)))?,
        };
        let left = ask.layers - on_device;
        let spread_over_rest = |count: u32| -> Vec<u32> {
            spread(count, left).map(|layer| layer + on_device).collect()
        };
        if let Some(host) = &mut host {
            let asked = if none { 0 } else { ask.host_layers.min(left) };
            filling.count(host, &spread_over_rest(asked))?;
        }
        for room in device.iter_mut().chain(&mut host) {
            filling.loose(room, Access::Sweep);
        }
        if let (Some(host), 0, false) = (&mut host, ask.host_layers, none) {
            filling.fit(host, left, spread_over_rest);
            filling.units(host);
        }
        for room in device.iter_mut().chain(&mut host) {
            filling.loose(room, Access::Rows);
        }
        Ok(filling.finish(ahead as u32))
    }
}

kvern_abi::export_offload_policy!(Interleaved);
