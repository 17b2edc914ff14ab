//! Every plugin that ships, through the border, against what the contract says of its kind.
//!
//! Plugins are found by their manifests alone, and their libraries lie where cargo puts them: build
//! them first, as `cargo kvern test` does. Nothing here knows a plugin by name, so a new one is
//! held to the contract when its manifest is there. `KVERN_CONFORMANCE_MANIFESTS` names other
//! manifests than those that ship, whose libraries lie in the same place.
#![cfg(test)]

mod identity;
mod mutants;
mod shipped;
mod suite;
