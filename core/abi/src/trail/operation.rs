//! The operations that a mark can name, by number.

/// An operation with its number in a mark.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Its place in the list of all; 0 is none.
    pub(super) index: u16,
    /// As `kv/load`.
    pub(crate) name: &'static str,
}

impl Operation {
    /// An operation by its name; only of a constant, since one that is not listed is a panic.
    pub(crate) const fn of(name: &'static str) -> Operation {
        let mut index = 0;
        while index < ALL.len() {
            if same(ALL[index].as_bytes(), name.as_bytes()) {
                return Operation { index: index as u16 + 1, name };
            }
            index += 1;
        }
        panic!("an operation that is not in the list below");
    }

    /// The name of a number.
    pub(super) fn named(index: u16) -> Option<&'static str> {
        ALL.get(usize::from(index).checked_sub(1)?).copied()
    }
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    a.len() == b.len() && at == a.len()
}

/// A number that another list does not have: a file of marks is read by the list that wrote it.
pub(super) const SIGN: u64 = {
    let (mut sign, mut index) = (0xcbf2_9ce4_8422_2325u64, 0);
    while index < ALL.len() {
        let (name, mut at) = (ALL[index].as_bytes(), 0);
        while at <= name.len() {
            let byte = if at < name.len() { name[at] } else { 0 };
            sign = (sign ^ byte as u64).wrapping_mul(0x0100_0000_01b3);
            at += 1;
        }
        index += 1;
    }
    sign
};

/// Every operation of every table, what makes an instance and what drops it.
const ALL: [&str; 59] = [
    "abi/load",
    "kv/new",
    "kv/describe",
    "kv/policy",
    "kv/open",
    "kv/drop",
    "kv/find",
    "kv/begin",
    "kv/store",
    "kv/load",
    "kv/commit",
    "kv/rewind",
    "kv/flush",
    "kv/end",
    "kv/maintain",
    "kv/report",
    "kv/drop-store",
    "kv/sealed",
    "kv/select",
    "kv/observe",
    "kv/save",
    "kv/drop-attentive",
    "kv/page_bytes",
    "kv/encode",
    "kv/decode",
    "kv/drop-codec",
    "offload/new",
    "offload/describe",
    "offload/plan",
    "offload/drop",
    "device/new",
    "device/describe",
    "device/open",
    "device/supports",
    "device/alloc",
    "device/import",
    "device/span",
    "device/free",
    "device/adapt",
    "device/copy",
    "device/submit",
    "device/wait",
    "device/usage",
    "device/drop",
    "host/open",
    "host/close",
    "host/list",
    "host/read_batch",
    "host/write_batch",
    "host/sync",
    "host/publish",
    "host/truncate",
    "host/remove",
    "host/reserve",
    "host/release",
    "host/event",
    "host/log",
    "host/now",
    "host/drop",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_its_name_back() {
        for name in ALL {
            assert_eq!(Operation::named(Operation::of(name).index), Some(name));
        }
        assert_eq!(Operation::named(0), None);
        assert_eq!(Operation::named(ALL.len() as u16 + 1), None);
    }
}
