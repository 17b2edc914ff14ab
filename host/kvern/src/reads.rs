//! How bytes come from the drive in a run: the service that was asked for, and what it did as the
//! report tells it.

use crate::cli::IoPath;
use crate::fail::{Failure, Outcome};
use crate::log;
use crate::metrics::ms;
use crate::read_path::Reading;
use crate::settings::Settings;
use kvern_engine::Facts;
use kvern_report::{NullReasons, Storage};
use kvern_storage::{PathChoice, Service, ServiceSpec};
use std::sync::Arc;

/// What was chosen before anything was read.
#[derive(Clone, PartialEq, Debug)]
pub struct Reads {
    /// Round the page cache or through it.
    pub reading: Reading,
    /// Why files are read by threads, where the ring was refused.
    pub ring_refused: Option<String>,
    /// Bytes a second that the drive gives at best, where that was measured.
    pub ceiling: Option<f64>,
}

/// What moves the bytes.
pub fn path(settings: &Settings) -> PathChoice {
    match settings.io {
        IoPath::Auto | IoPath::IoUring => PathChoice::Auto,
        IoPath::Pread => PathChoice::Pool,
    }
}

/// The storage service that was asked for, with the bytes of one operation and the operations at
/// once that were the drive's best, where that was measured.
pub fn spec(settings: &Settings, best: Option<(usize, usize)>) -> ServiceSpec {
    let usual = ServiceSpec::default();
    let (piece_bytes, depth) = best.unwrap_or((usual.piece_bytes, usual.depth));
    ServiceSpec {
        path: path(settings),
        threads: best.map_or(usual.threads, |(_, depth)| depth),
        depth,
        piece_bytes,
        bytes_per_second: settings.drive_rate,
    }
}

/// Starts it; answers why it has no ring where one was refused. *Errors*: a ring was asked for by
/// name and the kernel refuses it.
pub fn service(settings: &Settings, spec: ServiceSpec) -> Outcome<(Arc<Service>, Option<String>)> {
    let service = Service::new(spec);
    let refused = service.path_reason().map(str::to_owned);
    match &refused {
        Some(reason) if settings.io == IoPath::IoUring => {
            return Err(Failure::new(format!(
                "--io io_uring: {reason}; leave it out, or use --io pread"
            )));
        }
        Some(reason) => log::line(3, &format!("files are read by threads: {reason}")),
        None => (),
    }
    Ok((service, refused))
}

/// What moved between two looks.
pub fn storage(reads: &Reads, before: &Facts, after: &Facts) -> Storage {
    let (was, is) = (&before.storage, &after.storage);
    let (stream_was, stream) = (&before.stream, &after.stream);
    let bytes_read = is.bytes_read - was.bytes_read;
    let time = is.read_time.saturating_sub(was.read_time);
    let rate = (bytes_read > 0 && !time.is_zero()).then(|| bytes_read as f64 / time.as_secs_f64());
    // What ran, which is not always what was chosen.
    let (read_path, read_path_reason) = match (stream.direct, &stream.refused) {
        (true, _) => ("direct", reads.reading.reason.clone()),
        (false, Some(refused)) => ("buffered", refused.clone()),
        (false, None) => ("buffered", reads.reading.reason.clone()),
    };
    let mut out = Storage {
        read_path: read_path.into(),
        read_path_reason,
        io_path: stream.path.into(),
        io_path_reason: reads.ring_refused.clone(),
        bytes_read,
        direct_bytes: is.direct_bytes - was.direct_bytes,
        mapped_bytes: is.mapped_bytes - was.mapped_bytes,
        reads: is.reads - was.reads,
        registered_reads: is.registered_reads - was.registered_reads,
        copied_bytes: is.copied_bytes - was.copied_bytes,
        retries: is.retries - was.retries,
        read_ms: ms(time),
        read_bytes_per_second: rate,
        ceiling_bytes_per_second: reads.ceiling,
        fraction_of_ceiling: rate.zip(reads.ceiling).map(|(rate, most)| rate / most),
        sweeps: stream.sweeps - stream_was.sweeps,
        sweep_bytes: stream.sweep_bytes,
        streamed_bytes: stream.streamed_bytes - stream_was.streamed_bytes,
        staging_bytes: stream.staging_bytes,
        read_ahead_units: u64::from(stream.read_ahead_units),
        waited_ms: ms(stream.waited.saturating_sub(stream_was.waited)),
        misaligned_tensors: stream.copied_tensors,
        misaligned_bytes: stream.copied_bytes,
        null_reasons: NullReasons::new(),
    };
    let (nothing, unknown) =
        ("nothing was read", "the drive was not probed: run `kvern doctor --probe`");
    let fraction = if rate.is_none() { nothing } else { unknown };
    let reasons = [
        ("io_path_reason", out.io_path_reason.is_none(), "no other path was refused"),
        ("read_bytes_per_second", rate.is_none(), nothing),
        ("ceiling_bytes_per_second", reads.ceiling.is_none(), unknown),
        ("fraction_of_ceiling", out.fraction_of_ceiling.is_none(), fraction),
    ];
    let missing = reasons.into_iter().filter(|(_, missing, _)| *missing);
    out.null_reasons = missing.map(|(key, _, why)| (key.into(), why.into())).collect();
    out
}
