use super::super::bench::Device;
use crate::Case;

pub fn cases() -> Vec<Case<Device>> {
    Vec::new()
}
