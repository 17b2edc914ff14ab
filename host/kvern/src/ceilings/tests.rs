//! Files that are good, damaged or of elsewhere; what is looked up in them.

use super::known::{Known, Wanted};
use super::*;

fn machine() -> Machine {
    Machine {
        cpu: Some("x".into()),
        cores: 2,
        memory_bytes: Some(16 << 30),
        kernel: Some("6".into()),
        ..Machine::default()
    }
}

const WHEN: &str = "2026-01-02T03:04:05Z";

fn read(how: How, block_bytes: u64, depth: u32, best: f64, median: f64) -> ReadRate {
    ReadRate { how, block_bytes, depth, best, median }
}

fn key() -> DeviceKey {
    DeviceKey {
        plugin: "quern".into(),
        version: "1".into(),
        options: Options::new(),
        threads: 2,
        compute: "auto".into(),
    }
}

fn shape(hidden: u32) -> Shape {
    let (query, key_value, inner) = (hidden, hidden / 4, 3 * hidden);
    Shape { hidden, query, key_value, inner, encoding: "bf16".into() }
}

fn device(hidden: u32) -> DeviceCeiling {
    let rate = |rows, best| RowsRate { rows, best, median: best / 2.0 };
    DeviceCeiling {
        device: key(),
        shape: shape(hidden),
        rates: vec![rate(1, 8e9), rate(32, 4e9), rate(512, 0.5e9)],
        measured_at: WHEN.into(),
    }
}

fn drive_of(device: u64, path: &str, best: f64) -> DriveCeiling {
    DriveCeiling {
        device,
        file_system: None,
        file: "/f".into(),
        path: path.into(),
        path_reason: None,
        direct_refused: None,
        rates: vec![
            read(How::Direct, 4 << 20, 16, best, best / 2.0),
            read(How::Direct, 512 << 10, 16, best * 0.9, best * 0.54),
            read(How::Cold, 512 << 10, 16, best / 4.0, best / 8.0),
            read(How::Cached, 512 << 10, 16, best * 4.0, best * 3.0),
        ],
        sustained: Vec::new(),
        measured_at: WHEN.into(),
    }
}

fn here() -> (PathBuf, u64) {
    let file = std::env::current_exe().expect("a program");
    let number = known::device_number(&file).expect("a file system");
    (file, number)
}

fn ceilings() -> Ceilings {
    let mut found = Ceilings::none(Identity::of(&machine()));
    let memory = MemoryCeiling {
        threads: 2,
        buffer_bytes: 1,
        best: 2e10,
        median: 1e10,
        measured_at: WHEN.into(),
    };
    found.memory = Some(memory);
    found.drives.push(drive_of(here().1, "io_uring", 2e9));
    found.devices.push(device(1024));
    found
}

struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let dir = std::env::temp_dir().join(format!("kvern-{name}-{}", std::process::id()));
        Dir(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn what_was_written_is_read_again_and_no_file_is_nothing() {
    let dir = Dir::new("ceilings-read");
    assert_eq!(Ceilings::read(&dir.0, &machine()), Ok(None));
    ceilings().write(&dir.0).expect("it writes");
    assert_eq!(Ceilings::read(&dir.0, &machine()), Ok(Some(ceilings())));
    let names: Vec<_> = std::fs::read_dir(&dir.0).expect("a directory").flatten().collect();
    assert_eq!(names.len(), 1, "nothing half-written stays: {names:?}");
}

#[test]
fn a_file_of_another_machine_kernel_or_schema_is_none() {
    let dir = Dir::new("ceilings-foreign");
    ceilings().write(&dir.0).expect("it writes");
    let others = [
        Machine { cpu: Some("y".into()), ..machine() },
        Machine { cores: 3, ..machine() },
        Machine { memory_bytes: Some(32 << 30), ..machine() },
        Machine { kernel: None, ..machine() },
    ];
    for other in others {
        let why = Ceilings::read(&dir.0, &other).expect_err("another machine");
        assert!(why.contains("doctor --probe") && why.contains(FILE), "{why}");
    }
    let boots = Machine { memory_bytes: Some((16 << 30) - (100 << 20)), ..machine() };
    assert!(Ceilings::read(&dir.0, &boots).is_ok(), "a kernel that keeps more for itself");
    let newer = Ceilings { schema: 2, ..ceilings() };
    newer.write(&dir.0).expect("it writes");
    assert!(Ceilings::read(&dir.0, &machine()).is_err_and(|why| why.contains("schema")));
}

#[test]
fn a_damaged_file_is_none_wherever_it_is_damaged() {
    let text = kvern_report::pretty(&ceilings()).expect("JSON");
    let machine = Identity::of(&machine());
    assert!(parse(text.as_bytes(), &machine).is_ok());
    for end in 0..text.len() {
        assert!(parse(&text.as_bytes()[..end], &machine).is_err(), "cut at {end}");
    }
    for (good, bad) in [
        ("2000000000.0", "-2000000000.0"),
        ("2000000000.0", "0.0"),
        ("2000000000.0", "1e999"),
        ("2000000000.0", "\"fast\""),
        (r#""block_bytes": 524288"#, r#""block_bytes": 5000"#),
        (r#""block_bytes": 524288"#, r#""block_bytes": 0"#),
        (r#""depth": 16"#, r#""depth": 0"#),
        (r#""rows": 32"#, r#""rows": 1"#),
        (WHEN, "yesterday"),
        (r#""devices""#, r#""device""#),
    ] {
        assert!(text.contains(good), "{good} is not in {text}");
        let broken = text.replacen(good, bad, 1);
        assert!(parse(broken.as_bytes(), &machine).is_err(), "{good} as {bad}");
    }
}

#[test]
fn what_is_measured_anew_replaces_its_like_and_nothing_else() {
    let mut kept = ceilings();
    let mut newer = Ceilings::none(kept.machine.clone());
    newer.drives.push(drive_of(here().1, "io_uring", 5e9));
    newer.drives.push(drive_of(here().1, "pread-pool", 1e9));
    newer.devices.push(device(2048));
    newer.devices.push(DeviceCeiling { rates: Vec::new(), ..device(1024) });
    kept.renew(newer);
    assert!(kept.memory.is_some(), "it was not measured anew");
    let paths: Vec<_> = kept.drives.iter().map(|d| (&d.path[..], d.rates[0].best)).collect();
    assert_eq!(paths, [("io_uring", 5e9), ("pread-pool", 1e9)]);
    let widths: Vec<_> = kept.devices.iter().map(|d| (d.shape.hidden, d.rates.len())).collect();
    assert_eq!(widths, [(2048, 3), (1024, 0)]);
}

fn wanted(how: How) -> Wanted {
    let file = Some(here().0);
    Wanted { file, how, threads: false, limit: None, device: key(), shape: Ok(shape(1024)) }
}

fn drive(ceilings: &Ceilings, wanted: &Wanted) -> Result<known::KnownDrive, String> {
    Known::of(Some(ceilings), wanted).drive
}

#[test]
fn a_drive_is_known_as_it_is_read_and_the_usual_way_stays_unless_another_is_clearly_faster() {
    let mut found = ceilings();
    let direct = drive(&found, &wanted(How::Direct)).expect("it is known");
    assert_eq!((direct.rate.block_bytes, direct.rate.depth), (4 << 20, 16));
    assert_eq!((direct.best(), direct.median()), (2e9, 1e9));
    found.drives[0].rates[1].median = 1.11e9;
    let direct = drive(&found, &wanted(How::Direct)).expect("it is known");
    assert_eq!((direct.rate.block_bytes, direct.rate.depth), (512 << 10, 16));
    assert_eq!((direct.best(), direct.median()), (2e9, 1.11e9), "the best of all ways");
    let cached = drive(&found, &wanted(How::Cached)).expect("it is known");
    assert_eq!(cached.best(), 8e9);
    found.drives[0].direct_refused = Some("EINVAL".into());
    let refused = drive(&found, &wanted(How::Direct)).expect("it is known");
    assert_eq!(refused.rate.how, How::Cold);
    let slow = Wanted { limit: Some(100), ..wanted(How::Cached) };
    assert_eq!(drive(&found, &slow).expect("it is known").best(), 100.0);
}

#[test]
fn what_a_way_gave_for_long_counts_more_than_what_it_gave_for_a_moment() {
    let mut found = ceilings();
    found.drives[0].rates[1].median = 1.9e9;
    let candidates = found.drives[0].candidates(How::Direct);
    let blocks: Vec<u64> = candidates.iter().map(|way| way.block_bytes).collect();
    assert_eq!(blocks, [512 << 10, 4 << 20], "the fastest for a moment, and the usual one");
    assert_eq!(found.drives[0].candidates(How::Cached).len(), 1, "they are the same");
    found.drives[0].sustained = vec![
        read(How::Direct, 512 << 10, 16, 1.2e9, 0.98e9),
        read(How::Direct, 4 << 20, 16, 2.1e9, 0.95e9),
        read(How::Cold, 512 << 10, 16, 9e9, 9e9),
    ];
    let direct = drive(&found, &wanted(How::Direct)).expect("it is known");
    assert_eq!((direct.rate.block_bytes, direct.median()), (4 << 20, 0.95e9));
    assert_eq!(direct.best(), 2.1e9, "nothing gave more, for a moment or for long");
    found.drives[0].sustained.remove(1);
    let direct = drive(&found, &wanted(How::Direct)).expect("it is known");
    assert_eq!((direct.rate.block_bytes, direct.best()), (512 << 10, 2e9));
}

#[test]
fn a_drive_or_a_way_that_was_not_measured_says_what_measures_it() {
    let mut found = ceilings();
    let threads = Wanted { threads: true, ..wanted(How::Direct) };
    let why = drive(&found, &threads).expect_err("a ring was measured, not threads");
    assert!(why.contains("threads") && why.contains("doctor --probe"), "{why}");
    found.drives.push(drive_of(here().1, "pread-pool", 1e9));
    assert_eq!(drive(&found, &threads).expect("it is known").path, "pread-pool");
    assert_eq!(drive(&found, &wanted(How::Direct)).expect("it is known").path, "io_uring");
    found.drives[0].device += 1;
    found.drives[1].device += 1;
    assert!(drive(&found, &wanted(How::Direct)).is_err());
    let embedded = Wanted { file: None, ..wanted(How::Direct) };
    assert!(drive(&found, &embedded).expect_err("no drive").contains("part of this program"));
    let known = Known::of(None, &wanted(How::Direct));
    assert_eq!(known.rates(32), kvern_engine::Rates::default());
    let document = known.document(1);
    assert!(document["drive"].is_null() && document["null_reasons"]["device"].is_string());
}

#[test]
fn a_device_is_known_by_all_that_it_depends_on_with_the_nearest_products() {
    let mut found = ceilings();
    found.devices.push(device(4096));
    let of = |wanted: &Wanted| Known::of(Some(&found), wanted).device;
    let exact = of(&wanted(How::Direct)).expect("it is known");
    assert!(exact.exact && exact.ceiling.shape.hidden == 1024);
    let near = of(&Wanted { shape: Ok(shape(3000)), ..wanted(How::Direct) }).expect("known");
    assert!(!near.exact && near.ceiling.shape.hidden == 4096);
    let f32s = Shape { encoding: "f32".into(), ..shape(1024) };
    assert!(of(&Wanted { shape: Ok(f32s), ..wanted(How::Direct) }).is_err());
    for device in [
        DeviceKey { threads: 1, ..key() },
        DeviceKey { version: "2".into(), ..key() },
        DeviceKey { compute: "f32".into(), ..key() },
        DeviceKey { plugin: "gpu".into(), ..key() },
    ] {
        assert!(of(&Wanted { device, ..wanted(How::Direct) }).is_err());
    }
}

#[test]
fn rates_of_other_rows_lie_between_those_that_were_measured() {
    let known = Known::of(Some(&ceilings()), &wanted(How::Direct));
    let one = known.rates(1);
    let near = |got: f64, want: f64| assert!((got / want - 1.0).abs() < 1e-9, "{got}, {want}");
    assert_eq!((one.flops, one.drive), (None, Some(1e9)));
    near(one.memory.expect("it was measured"), 8e9);
    assert_eq!(known.best_rates(1).drive, Some(2e9));
    // Two operations a value, two bytes a value.
    let flops = |rows: u32| known.rates(rows).flops.expect("it was measured");
    near(flops(32), 32.0 * 4e9);
    near(flops(512), 512.0 * 0.5e9);
    near(flops(2048), 512.0 * 0.5e9);
    let between = 0.5 * (8e9_f64.recip() + 4e9_f64.recip());
    let middle = known.rates(17).flops.expect("it was measured");
    let at = 8e9_f64.recip() + (4e9_f64.recip() - 8e9_f64.recip()) * 16.0 / 31.0;
    near(middle, 17.0 / at);
    assert!(middle > 16.0 / between && known.rates(17).memory == one.memory);
}

#[test]
fn an_age_is_told_in_its_largest_unit() {
    let now: Timestamp = "2026-01-04T03:04:04Z".parse().expect("a time");
    let of = |then: &str| age(then, now);
    assert_eq!(of(WHEN), "1 day ago");
    assert_eq!(of("2026-01-04T00:04:04Z"), "3 hours ago");
    assert_eq!(of("2026-01-04T03:03:00Z"), "1 minute ago");
    assert_eq!(of("2027-01-04T03:03:00Z"), "0 seconds ago");
    assert_eq!(of("x"), "at an unknown time");
}
