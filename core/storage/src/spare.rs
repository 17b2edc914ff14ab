//! What a process holds beside its budget, kept small. Within a limit this is what is left for the
//! program's own code: where the kernel has no room for that, it drops code that runs, and reads it
//! again with megabytes around it, which push out more of it.
#![allow(unsafe_code)]

use std::fs;

/// Gives memory that the allocator keeps for nobody back to the system, and has the program's code
/// read by single pages from now on. For when everything is loaded; best effort.
pub fn give_back() {
    trim();
    for (start, bytes) in code(&fs::read_to_string("/proc/self/maps").unwrap_or_default()) {
        // SAFETY: advice about reading ahead changes no byte, whatever is mapped there by now.
        unsafe { libc::madvise(start as *mut libc::c_void, bytes, libc::MADV_RANDOM) };
    }
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: it takes the allocator's own locks, and touches no memory that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators keep little.
#[cfg(not(target_env = "gnu"))]
fn trim() {}

/// Where files are mapped that are not written to, with lengths in bytes: code, and the constants
/// beside it.
fn code(maps: &str) -> Vec<(usize, usize)> {
    let one = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (range, how) = (words.next()?, words.next()?);
        let path = words.nth(3)?;
        let (start, end) = range.split_once('-')?;
        let start = usize::from_str_radix(start, 16).ok()?;
        let bytes = usize::from_str_radix(end, 16).ok()?.checked_sub(start)?;
        (how.starts_with("r-") && path.starts_with('/')).then_some((start, bytes))
    };
    maps.lines().filter_map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number of KiB of this process, by its name.
    fn status(name: &str) -> u64 {
        let text = fs::read_to_string("/proc/self/status").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn code_is_what_is_mapped_from_files_and_not_written_to() {
        let maps = "\
            1000-3000 r-xp 00000000 fe:00 77   /usr/bin/a program\n\
            3000-4000 rw-p 00002000 fe:00 77   /usr/bin/a program\n\
            5000-6000 r--p 00000000 fe:00 78   /usr/lib/libc.so.6\n\
            7000-8000 r-xp 00000000 00:00 0    [vdso]\n\
            9000-a000 r--p 00000000 00:00 0 \n\
            broken\n";
        assert_eq!(code(maps), [(0x1000, 0x2000), (0x5000, 0x1000)]);
    }

    #[test]
    fn freed_memory_goes_back_and_code_is_not_read_around() {
        let mut blocks: Vec<Vec<u8>> = (0..64 * 1024).map(|_| vec![1; 1024]).collect();
        // What is in use on top keeps the allocator from giving back what is below.
        let kept = blocks.split_off(blocks.len() - 1);
        drop(blocks);
        let before = status("RssAnon");
        give_back();
        let after = status("RssAnon");
        assert!(after + 32 * 1024 < before, "{after} of {before} KiB are left");
        drop(kept);
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let flags = |line: &str| line.starts_with("VmFlags") && line.contains(" ex ");
        let read = smaps.lines().filter(|line| flags(line)).filter(|line| line.contains(" rr "));
        assert!(read.count() > 0, "no code with the advice");
    }
}
