//! Measures drive, memory and device, for less than a minute. What cannot be measured is told and
//! costs the rest nothing.

use super::known::device_number;
use super::{
    Ceilings, DeviceCeiling, DeviceKey, DriveCeiling, How, Identity, MemoryCeiling, ReadRate,
    RowsRate, Shape, cache_bytes, memory,
};
use crate::blueprint::largest;
use crate::drive::Drive;
use crate::fail::{Failure, Outcome};
use crate::machine::Machine;
use crate::{interrupt, log, out};
use jiff::Timestamp;
use kvern_engine::{DeviceProbe, device_rates};
use kvern_storage::{
    OpenHow, PathChoice, ProbeHow, Region, Service, ServiceSpec, Storage, drive_rate,
};
use rustix::fs::{Advice, fadvise};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What was measured, and what was not.
pub struct Probed {
    /// The figures.
    pub ceilings: Ceilings,
    /// What failed, and why.
    pub faults: Vec<(&'static str, String)>,
}

/// What is measured.
pub struct Asked<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// Large files, of which those on the drive of the largest are read; none: one is made, in
    /// `cache_dir`.
    pub files: Vec<(PathBuf, u64)>,
    /// Where a file is made.
    pub cache_dir: &'a Path,
    /// What moves the bytes.
    pub path: PathChoice,
    /// How long each way is tried at a time, and how long those that runs may read in.
    pub slices: (Duration, Duration),
    /// Threads that compute.
    pub threads: u32,
    /// The device and its products, or why there are none.
    pub device: Result<(DeviceKey, Shape, DeviceProbe), String>,
}

/// Blocks and depths of direct reads.
const BLOCKS: [usize; 5] = [128 << 10, 256 << 10, 512 << 10, 1 << 20, 4 << 20];
const DEPTHS: [usize; 4] = [1, 4, 16, 32];
/// Of those through a page cache that does not have the bytes, and of those out of it.
const COLD_BLOCKS: [usize; 2] = [128 << 10, 2 << 20];
const COLD_DEPTHS: [usize; 2] = [1, 16];
const CACHED_BLOCKS: [usize; 2] = [128 << 10, 512 << 10];
const CACHED_DEPTHS: [usize; 2] = [1, 16];
/// Every way is tried in turn, this often: a drive that others share has better and worse moments.
const ROUNDS: usize = 5;
/// For so long each time.
pub const MOMENT: Duration = Duration::from_millis(120);
/// What was chosen is read for longer, this often: a drive gives for a moment what it does not give
/// for a sweep.
const LONG_ROUNDS: usize = 5;
/// For so long each time.
pub const LONG: Duration = Duration::from_secs(1);
/// Bytes of a file that is made, if there is room for four of it; and the least that says anything.
const SCRATCH: u64 = 1 << 30;
const SCRATCH_LEAST: u64 = 64 << 20;
/// Most bytes of memory that is read into.
const MEMORY: u64 = 256 << 20;
/// What is read again and again out of the page cache.
const CACHED: u64 = 64 << 20;
/// Weights and memory are gone through for so many times the largest cache.
pub const CACHES: u64 = 4;

/// Measures everything. *Errors* Ctrl-C.
pub fn probe(asked: Asked<'_>) -> Outcome<Probed> {
    let mut ceilings = Ceilings::none(Identity::of(asked.machine));
    let mut faults = Vec::new();
    let mut fault = |what, failure: Failure| match failure.code {
        130 => Err(failure),
        _ => {
            faults.push((what, failure.message));
            Ok(())
        }
    };
    match drive(&asked) {
        Ok(drive) => ceilings.drives.push(drive),
        Err(failure) => fault("drive", failure)?,
    }
    interrupt::check()?;
    match plain_memory(&asked) {
        Ok(found) => ceilings.memory = Some(found),
        Err(failure) => fault("memory", failure)?,
    }
    interrupt::check()?;
    let free = asked.machine.memory_free_bytes;
    match asked.device.map_err(Failure::new).and_then(|device| products(device, free)) {
        Ok(device) => ceilings.devices.push(device),
        Err(failure) => fault("device", failure)?,
    }
    Ok(Probed { ceilings, faults })
}

/// Refuses to take more than half of the memory that there is.
fn room(needed: u64, free: Option<u64>) -> Outcome<()> {
    match free.filter(|free| needed > free / 2) {
        None => Ok(()),
        Some(free) => Err(Failure::new(format!(
            "{} of memory are needed and {} are free; free more, or lift the cgroup's limit",
            out::size(needed),
            out::size(free)
        ))),
    }
}

fn plain_memory(asked: &Asked<'_>) -> Outcome<MemoryCeiling> {
    let bytes = CACHES * cache_bytes();
    room(bytes, asked.machine.memory_free_bytes)?;
    log::line(3, "measuring memory");
    Ok(memory::measure(asked.threads, bytes))
}

fn products(
    (device, shape, probe): (DeviceKey, Shape, DeviceProbe),
    free: Option<u64>,
) -> Outcome<DeviceCeiling> {
    room(probe.memory_bytes()?, free)?;
    log::line(3, &format!("measuring products of device `{}`", device.plugin));
    let rate =
        |r: kvern_engine::RowsRate| RowsRate { rows: r.rows, best: r.best, median: r.median };
    let mut rates: Vec<RowsRate> = device_rates(probe)?.into_iter().map(rate).collect();
    rates.sort_by_key(|rate| rate.rows);
    Ok(DeviceCeiling { device, shape, rates, measured_at: Timestamp::now().to_string() })
}

/// A file that is removed with this.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // A file that stays behind is only untidy.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Scratch {
    /// Writes one, to the drive. *Errors* no room: what is needed at least.
    fn new(directory: &Path) -> Outcome<Scratch> {
        let at = |e: std::io::Error| Failure::new(format!("{}: {e}", directory.display()));
        std::fs::create_dir_all(directory).map_err(at)?;
        let free = Drive::of(directory).free_bytes.unwrap_or(0);
        let bytes = SCRATCH.min(free / 4);
        if bytes < SCRATCH_LEAST {
            return Err(Failure::new(format!(
                "{} has {} free, and {} are needed for a file to read: free some, or name a model \
                 on the drive by --model",
                directory.display(),
                out::size(free),
                out::size(4 * SCRATCH_LEAST)
            )));
        }
        let scratch = Scratch(directory.join(format!(".kvern-probe-{}.part", std::process::id())));
        let written = std::fs::File::create(&scratch.0).and_then(|file| fill(file, bytes));
        written.map_err(|e| {
            Failure::new(format!(
                "{}: {e}; {} are needed for a file to read: free some, or name a model on the \
                 drive by --model",
                scratch.0.display(),
                out::size(bytes)
            ))
        })?;
        Ok(scratch)
    }
}

/// Writes bytes that no drive makes smaller, to the drive.
fn fill(mut file: std::fs::File, bytes: u64) -> std::io::Result<()> {
    const CHUNK: usize = 1 << 20;
    let (mut chunk, mut state) = (vec![0_u8; CHUNK], 1_u64);
    for _ in 0..bytes / CHUNK as u64 {
        for word in chunk.chunks_exact_mut(8) {
            // Xorshift (Marsaglia 2003).
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&chunk)?;
    }
    file.sync_all()
}

fn drive(asked: &Asked<'_>) -> Outcome<DriveCeiling> {
    let scratch = match largest(&asked.files) {
        Some(_) => None,
        None => {
            log::line(3, &format!("writing a file to read in {}", asked.cache_dir.display()));
            Some(Scratch::new(asked.cache_dir)?)
        }
    };
    let made = scratch.as_ref().map(|scratch| scratch.0.as_path());
    let named = largest(&asked.files);
    let file = named.as_deref().or(made).unwrap_or(asked.cache_dir);
    let told = |e: std::io::Error| Failure::new(format!("{}: {e}", file.display()));
    let device = device_number(file).map_err(told)?;
    let here = |path: &&Path| device_number(path).is_ok_and(|number| number == device);
    let mut files: Vec<&Path> = asked.files.iter().map(|(path, _)| &**path).filter(here).collect();
    if files.is_empty() {
        files.push(file);
    }
    // The largest first: out of the page cache it alone is read.
    files.sort_by_key(|path| *path != file);
    let mut lengths = Vec::new();
    for file in &files {
        lengths.push(std::fs::metadata(file).map_err(told)?.len());
    }
    let bytes = lengths.iter().sum();
    log::line(3, &format!("reading {} and {} more files", file.display(), files.len() - 1));
    let service = Service::new(ServiceSpec { path: asked.path, ..ServiceSpec::default() });
    let direct_refused = service.facts(service.open(file, OpenHow::Direct)?)?.refused;
    let memory = staging(asked.machine.memory_free_bytes)?;
    let mut ways = ways(direct_refused.is_none(), &lengths, memory.bytes());
    for round in 0..ROUNDS {
        for (index, way) in ways.iter_mut().enumerate() {
            interrupt::check()?;
            // Each time elsewhere: a drive may have a cache of its own.
            let from = place(round * PLACES + index, bytes);
            way.samples.push(way.read(&files, asked.path, from, &memory, asked.slices.0)?);
        }
    }
    let mut drive = DriveCeiling {
        device,
        file_system: Drive::of(file.parent().unwrap_or(Path::new("/"))).file_system,
        file: file.into(),
        path: service.path_kind().into(),
        path_reason: service.path_reason().map(Into::into),
        direct_refused,
        rates: ways.into_iter().map(Way::rate).collect(),
        sustained: Vec::new(),
        measured_at: Timestamp::now().to_string(),
    };
    let chosen = [How::Direct, How::Cold].into_iter().flat_map(|how| drive.candidates(how));
    let mut chosen: Vec<Way> = chosen.map(Way::of).collect();
    for round in 0..LONG_ROUNDS {
        for (index, way) in chosen.iter_mut().enumerate() {
            interrupt::check()?;
            let from = place(round * PLACES + index, bytes);
            way.samples.push(way.read(&files, asked.path, from, &memory, asked.slices.1)?);
        }
    }
    drive.sustained = chosen.into_iter().map(Way::rate).collect();
    Ok(drive)
}

/// Memory as weights are streamed to: more than a cache holds, in use already.
fn staging(free: Option<u64>) -> Outcome<Arc<Region>> {
    let bytes = free.map_or(MEMORY, |free| MEMORY.min(free / 4));
    let memory = Region::in_huge_pages(bytes as usize)?;
    memory.lend(0, memory.bytes())?.fill(1);
    Ok(memory)
}

/// More than there are ways.
const PLACES: usize = 97;

/// The n-th place in a file: multiples of the golden ratio spread evenly, however many there are.
fn place(n: usize, bytes: u64) -> u64 {
    let part = (n as f64 * 0.618_033_988_749_895).fract();
    (part * bytes as f64) as u64
}

/// A way to read, and its rates.
struct Way {
    how: How,
    block: usize,
    depth: usize,
    samples: Vec<f64>,
}

/// All ways that files of such lengths and so much memory are large enough for.
fn ways(direct: bool, lengths: &[u64], memory: usize) -> Vec<Way> {
    let grid = |how, blocks: &[usize], depths: &[usize]| {
        let of = |block: &usize| depths.iter().map(|d| (*block, *d)).collect::<Vec<_>>();
        let pairs = blocks.iter().flat_map(of).collect::<Vec<_>>();
        let ways = pairs.into_iter().map(move |(block, depth)| {
            let samples = Vec::new();
            Way { how, block, depth, samples }
        });
        ways.collect::<Vec<_>>()
    };
    let mut ways = if direct { grid(How::Direct, &BLOCKS, &DEPTHS) } else { Vec::new() };
    ways.extend(grid(How::Cold, &COLD_BLOCKS, &COLD_DEPTHS));
    ways.extend(grid(How::Cached, &CACHED_BLOCKS, &CACHED_DEPTHS));
    ways.retain(|way| {
        let blocks = |bytes: u64| bytes / way.block as u64;
        let blocks = match way.how {
            How::Cached => blocks(lengths.first().map_or(0, |bytes| (*bytes).min(CACHED))),
            How::Direct | How::Cold => lengths.iter().map(|bytes| blocks(*bytes)).sum(),
        };
        blocks >= way.depth as u64 && way.block * way.depth <= memory
    });
    ways
}

impl Way {
    /// One to measure anew.
    fn of(rate: ReadRate) -> Way {
        let (block, depth) = (rate.block_bytes as usize, rate.depth as usize);
        Way { how: rate.how, block, depth, samples: Vec::new() }
    }

    fn read(
        &self,
        files: &[&Path],
        path: PathChoice,
        from: u64,
        memory: &Arc<Region>,
        most: Duration,
    ) -> Outcome<f64> {
        let (within, open) = match self.how {
            How::Direct => (None, OpenHow::Direct),
            How::Cold => (None, OpenHow::Passing),
            How::Cached => (Some(CACHED), OpenHow::Read),
        };
        let how = ProbeHow { block_bytes: self.block, depth: self.depth, from, within, open, path };
        match self.how {
            How::Direct => (),
            How::Cold => files.iter().for_each(|file| drop_pages(file)),
            // The first time around fills the page cache.
            How::Cached => warm(files[0])?,
        }
        let files = if self.how == How::Cached { &files[..1] } else { files };
        Ok(drive_rate(files, how, memory, most)?.bytes_per_second)
    }

    fn rate(mut self) -> ReadRate {
        self.samples.sort_by(f64::total_cmp);
        let at = |index: usize| self.samples.get(index).copied().unwrap_or(0.0);
        ReadRate {
            how: self.how,
            block_bytes: self.block as u64,
            depth: self.depth as u32,
            best: at(self.samples.len().saturating_sub(1)),
            median: at(self.samples.len() / 2),
        }
    }
}

/// Brings the first bytes of a file into the page cache.
fn warm(file: &Path) -> Outcome<()> {
    let read = |file: std::fs::File| std::io::copy(&mut file.take(CACHED), &mut std::io::sink());
    let told = |e: std::io::Error| Failure::new(format!("{}: {e}", file.display()));
    std::fs::File::open(file).and_then(read).map(drop).map_err(told)
}

/// Asks the kernel to forget a file's bytes; where it does not, the rate is the page cache's.
fn drop_pages(file: &Path) {
    if let Ok(file) = std::fs::File::open(file) {
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked<'a>(machine: &'a Machine, file: &Path, cache_dir: &'a Path) -> Asked<'a> {
        let device = Err("no device".into());
        let files = vec![(file.to_owned(), 1 << 20)];
        let slices = (Duration::from_millis(3), Duration::from_millis(5));
        Asked { machine, files, cache_dir, slices, path: PathChoice::Auto, threads: 1, device }
    }

    #[test]
    fn a_full_drive_is_told() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("it is there");
        let error = fill(full, 1 << 20).expect_err("it is full");
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        let refused =
            Scratch::new(Path::new("/proc/nowhere")).err().expect("nothing is made there");
        assert!(refused.message.contains("/proc/nowhere"), "{refused:?}");
    }

    #[test]
    fn places_are_spread_over_the_file_and_never_beyond_it() {
        let mut places: Vec<u64> = (0..100).map(|n| place(n, 1000)).collect();
        places.sort_unstable();
        assert!(places[99] < 1000);
        let widest = places.windows(2).map(|two| two[1] - two[0]).max().expect("gaps");
        assert!(widest <= 30, "{widest}");
    }

    #[test]
    fn a_file_is_read_in_every_way_that_it_is_large_enough_for_and_stays() {
        let dir = std::env::temp_dir().join(format!("kvern-probe-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let file = dir.join("weights");
        std::fs::write(&file, vec![7; 1 << 20]).expect("a file");
        let machine = Machine::read();
        let found = drive(&asked(&machine, &file, &dir)).expect("it is read");
        assert!(found.rates.iter().all(|r| r.block_bytes * u64::from(r.depth) <= 1 << 20));
        assert!(found.rates.iter().all(|r| r.best >= r.median && r.median > 0.0), "{found:?}");
        let direct = found.rates.iter().filter(|r| r.how == How::Direct).count();
        assert_eq!(direct, if found.direct_refused.is_some() { 0 } else { 6 }, "{found:?}");
        for how in [How::Cold, How::Cached] {
            assert!(found.choice(how).is_some(), "{found:?}");
        }
        let files: Vec<_> = std::fs::read_dir(&dir).expect("a directory").flatten().collect();
        assert_eq!(files.len(), 1, "{files:?}");
        std::fs::remove_dir_all(&dir).expect("it goes");
    }

    #[test]
    fn files_that_are_small_leave_out_the_ways_that_they_are_too_small_for() {
        let block = |way: &Way| (way.how, way.block, way.depth);
        let of = |lengths: &[u64], memory| {
            let ways = ways(true, lengths, memory);
            ways.iter().map(block).collect::<Vec<_>>()
        };
        assert_eq!(of(&[], 1 << 30), []);
        let memory = 256 << 20;
        let all = of(&[1 << 30], memory);
        assert_eq!(all.len(), 20 + 4 + 4);
        // Together as much, but no block of 4 MiB in any of them.
        let parts = of(&[3 << 20; 342], memory);
        assert!(parts.iter().all(|(_, block, _)| *block < 4 << 20) && parts.len() > 15);
        assert_eq!(of(&[1 << 30], 128 << 10).iter().filter(|way| way.2 == 1).count(), 3);
    }

    #[test]
    fn a_small_file_before_a_large_one_fails_nothing() {
        let dir = std::env::temp_dir().join(format!("kvern-probe-two-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let of = |name: &str, bytes: usize| {
            let path = dir.join(name);
            std::fs::write(&path, vec![7; bytes]).expect("a file");
            (path, bytes as u64)
        };
        let files = vec![of("a", 5000), of("b", 9 << 20)];
        let machine = Machine::read();
        let asked = asked(&machine, &files[1].0, &dir);
        let found = drive(&Asked { files: files.clone(), ..asked }).expect("they are read");
        assert_eq!(found.file, files[1].0);
        assert!(found.choice(How::Cached).is_some(), "{found:?}");
        std::fs::remove_dir_all(&dir).expect("it goes");
    }

    #[test]
    fn what_needs_more_than_half_of_the_memory_is_not_measured() {
        assert!(room(50, Some(100)).is_ok() && room(1 << 40, None).is_ok());
        let refused = room(51, Some(100)).expect_err("too much");
        assert!(refused.message.contains("51 bytes"), "{refused:?}");
    }
}
