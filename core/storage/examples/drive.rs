//! What the drive under a file gives, by block size, depth and path: `drive FILE [SECONDS]`.

use kvern_storage::{OpenHow, PathChoice, ProbeHow, Region, drive_rate};
use std::time::Duration;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = std::env::args().nth(1).ok_or("usage: drive FILE [SECONDS]")?;
    let seconds = std::env::args().nth(2).map_or(Ok(1.0), |text| text.parse())?;
    let memory = Region::in_huge_pages(256 << 20)?;
    memory.lend(0, memory.bytes())?.fill(1);
    for path in [PathChoice::Auto, PathChoice::Pool] {
        for open in [OpenHow::Direct, OpenHow::Passing, OpenHow::Read] {
            for (block_bytes, depth) in [
                (256 << 10, 8),
                (256 << 10, 16),
                (512 << 10, 16),
                (1 << 20, 8),
                (2 << 20, 8),
                (4 << 20, 16),
            ] {
                let how = ProbeHow { block_bytes, depth, from: 0, within: None, open, path };
                let most = Duration::from_secs_f64(seconds);
                let rate = drive_rate(&[file.as_ref()], how, &memory, most)?;
                println!(
                    "{:10} {:7} {:5} KiB x {depth:2}: {:.2} GB/s",
                    rate.path,
                    format!("{open:?}"),
                    block_bytes >> 10,
                    rate.bytes_per_second / 1e9
                );
            }
        }
    }
    Ok(())
}
