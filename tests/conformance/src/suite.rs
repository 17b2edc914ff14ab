//! Every manifest against every case of its kind, through the border.

use crate::shipped::{Shipped, of};
use kvern_abi::{Plugin, PluginKind};
use kvern_contract::{Error, ErrorKind, Result};
use kvern_testkit::{Case, Outcome, Subject, device, kv, offload, sweep};

/// Opens what a manifest names, as one kind.
pub fn opened<P: ?Sized>(
    shipped: &Shipped,
    take: impl Fn(Plugin) -> Option<Box<P>>,
) -> Result<Box<P>> {
    let wrong = || Error::new(ErrorKind::Mismatch, "conformance", "another kind of plugin");
    take(shipped.open()).ok_or_else(wrong)
}

/// A plugin as a kv strategy.
pub fn as_kv(plugin: Plugin) -> Option<Box<dyn kvern_contract::KvStrategy>> {
    if let Plugin::Kv(plugin) = plugin { Some(plugin) } else { None }
}

/// A plugin as an offload policy.
pub fn as_offload(plugin: Plugin) -> Option<Box<dyn kvern_contract::OffloadPolicy>> {
    if let Plugin::Offload(plugin) = plugin { Some(plugin) } else { None }
}

/// A plugin as a device.
pub fn as_device(plugin: Plugin) -> Option<Box<dyn kvern_contract::DeviceBackend>> {
    if let Plugin::Device(plugin) = plugin { Some(plugin) } else { None }
}

fn holds<P: ?Sized>(
    kind: PluginKind,
    cases: &[Case<P>],
    take: impl Fn(Plugin) -> Option<Box<P>> + Copy,
) {
    let mut broken = Vec::new();
    for shipped in of(kind) {
        let make = || opened(&shipped, take);
        let ran = sweep(cases, &Subject::new(&make));
        let kept = ran.iter().filter(|ran| ran.outcome == Outcome::Kept).count();
        assert!(kept > 0, "{}: every case is skipped", shipped.name);
        for ran in ran {
            if let Outcome::Broken(line) = ran.outcome {
                broken.push(format!("{kind} `{}`: {}: {line}", shipped.name, ran.name));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_kv_manifest_keeps_every_case() {
    holds(PluginKind::Kv, &kv::cases(), as_kv);
}

#[test]
fn every_offload_manifest_keeps_every_case() {
    holds(PluginKind::Offload, &offload::cases(), as_offload);
}

#[test]
fn every_device_manifest_keeps_every_case() {
    holds(PluginKind::Device, &device::cases(), as_device);
}
