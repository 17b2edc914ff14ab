//! Options: what a manifest's `[options]` table says, with the operator's changes applied.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A value of a manifest's `[options]`. The option's name carries the unit, as in
/// `pages_per_extent`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum OptionValue {
    /// A whole number.
    Integer(i64),
    /// A number with a fraction.
    Float(f64),
    /// A name or a path.
    Text(String),
    /// On or off.
    Switch(bool),
}

/// Options by name, defaults of the manifest already filled in.
pub type Options = BTreeMap<String, OptionValue>;
