//! What the cgroups of this process allow: the tightest limits over its own groups and their
//! parents, in version 1, version 2 and both at once.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};

/// Limits of the groups that this process is in.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Cgroup {
    /// The tightest memory limit in bytes, and the file that says so.
    pub memory_limit: Option<(u64, PathBuf)>,
    /// The least memory that a limited group has left, in bytes; page cache that the kernel can
    /// take back counts as left.
    pub memory_left: Option<u64>,
    /// The tightest processor limit, in cores.
    pub cores: Option<f64>,
}

/// A mounted hierarchy.
struct Mount {
    unified: bool,
    /// Whether it has the memory or the processor controller; of version 2, always.
    ours: bool,
    /// Which of its groups is mounted, as this process's namespace names it.
    root: PathBuf,
    at: PathBuf,
}

/// Where a hierarchy is mounted where `mountinfo` says nothing: version 2 alone, beside version 1,
/// and version 1.
const USUAL: [(bool, &str); 4] = [
    (true, "sys/fs/cgroup"),
    (true, "sys/fs/cgroup/unified"),
    (false, "sys/fs/cgroup/memory"),
    (false, "sys/fs/cgroup/cpu"),
];

impl Cgroup {
    /// Reads the groups of this process.
    pub fn read() -> Cgroup {
        Cgroup::under(Path::new("/"))
    }

    /// The same of a tree with `proc/self` and the mounts in it.
    fn under(tree: &Path) -> Cgroup {
        let mut out = Cgroup::default();
        let mounts = mounts(tree);
        let groups = read_to_string(tree.join("proc/self/cgroup")).unwrap_or_default();
        for line in groups.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
            let unified = controllers.is_empty();
            let relevant = |c: &str| matches!(c, "memory" | "cpu");
            if !unified && !controllers.split(',').any(relevant) {
                continue;
            }
            for mount in mounts.iter().filter(|m| m.unified == unified && m.ours) {
                for group in groups_of(mount, Path::new(path)) {
                    out.add(&group, unified);
                }
            }
        }
        out
    }

    /// Counts a group's limits in.
    fn add(&mut self, group: &Path, unified: bool) {
        let names: &[&str] =
            if unified { &["memory.max", "memory.high"] } else { &["memory.limit_in_bytes"] };
        let limit = names.iter().filter_map(|name| {
            let file = group.join(name);
            memory_limit(&file).map(|bytes| (bytes, file))
        });
        if let Some((bytes, file)) = limit.min_by_key(|(bytes, _)| *bytes) {
            if let Some(used) = used(group, unified) {
                let left = bytes.saturating_sub(used);
                self.memory_left = Some(self.memory_left.map_or(left, |least| least.min(left)));
            }
            if self.memory_limit.as_ref().is_none_or(|(least, _)| bytes < *least) {
                self.memory_limit = Some((bytes, file));
            }
        }
        if let Some(cores) = core_limit(group, unified) {
            self.cores = Some(self.cores.map_or(cores, |least| least.min(cores)));
        }
    }
}

/// The mounted hierarchies: those of `mountinfo`, and the usual places where it names none of a
/// kind.
fn mounts(tree: &Path) -> Vec<Mount> {
    let text = read_to_string(tree.join("proc/self/mountinfo")).unwrap_or_default();
    let mut found: Vec<Mount> = text.lines().filter_map(|line| mount(tree, line)).collect();
    for (unified, place) in USUAL {
        if !found.iter().any(|m| m.unified == unified) {
            found.push(Mount { unified, ours: true, root: "/".into(), at: tree.join(place) });
        }
    }
    found
}

/// A line of `mountinfo`: `id parent device root place options [tags] - type source options`.
fn mount(tree: &Path, line: &str) -> Option<Mount> {
    let (mounted, kind) = line.split_once(" - ")?;
    let mut kind = kind.split(' ');
    let (unified, ours) = match kind.next()? {
        "cgroup2" => (true, true),
        "cgroup" => {
            let controllers = kind.nth(1).unwrap_or_default();
            (false, controllers.split(',').any(|c| matches!(c, "memory" | "cpu")))
        }
        _ => return None,
    };
    let mut mounted = mounted.split(' ').skip(3);
    let (root, at) = (mounted.next()?, mounted.next()?);
    let at = tree.join(unescaped(at).trim_start_matches('/'));
    Some(Mount { unified, ours, root: unescaped(root).into(), at })
}

/// Blanks in a path are octal there.
fn unescaped(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

/// The directories of a group and its parents, as far as the mount shows them; the mount's own
/// directory is always a parent, unless the group is outside of it.
fn groups_of(mount: &Mount, path: &Path) -> Vec<PathBuf> {
    let above = |p: &Path| p.components().any(|c| c == std::path::Component::ParentDir);
    let inside = match path.strip_prefix(&mount.root) {
        Ok(inside) => inside,
        // A mount from outside of the namespace: where in it this process is cannot be known, but
        // its own directory is a parent.
        Err(_) if above(&mount.root) && !above(path) => Path::new(""),
        Err(_) => return Vec::new(),
    };
    if above(inside) {
        return Vec::new();
    }
    inside.ancestors().map(|p| mount.at.join(p)).collect()
}

/// `max`, and the number close to 2^63 by which version 1 says the same, are no limit.
fn memory_limit(file: &Path) -> Option<u64> {
    let bytes = read_to_string(file).ok()?.trim().parse::<u64>().ok()?;
    (bytes < 1 << 62).then_some(bytes)
}

/// Bytes that a group cannot do without: what it uses less the file pages that the kernel takes
/// back when memory is short.
fn used(group: &Path, unified: bool) -> Option<u64> {
    let (usage, files) = if unified {
        ("memory.current", ["active_file", "inactive_file"])
    } else {
        ("memory.usage_in_bytes", ["total_active_file", "total_inactive_file"])
    };
    let used = read_to_string(group.join(usage)).ok()?.trim().parse::<u64>().ok()?;
    let stat = read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cached = stat.lines().filter_map(|line| {
        let (name, bytes) = line.split_once(' ')?;
        files.contains(&name).then(|| bytes.trim().parse::<u64>().ok()).flatten()
    });
    Some(used.saturating_sub(cached.sum()))
}

fn core_limit(group: &Path, unified: bool) -> Option<f64> {
    let read = |name: &str| read_to_string(group.join(name)).ok();
    let text = if unified {
        read("cpu.max")?
    } else {
        format!("{} {}", read("cpu.cfs_quota_us")?.trim(), read("cpu.cfs_period_us")?.trim())
    };
    let mut parts = text.split_whitespace();
    let (quota, period) = (parts.next()?.parse::<f64>().ok()?, parts.next()?.parse::<f64>().ok()?);
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree with these files, removed at the end.
    struct Tree(PathBuf);

    impl Tree {
        fn of(name: &str, files: &[(&str, &str)]) -> Tree {
            let root = std::env::temp_dir().join(format!("kvern-{name}-{}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, text).unwrap();
            }
            Tree(root)
        }
        fn limit(&self) -> Option<(u64, String)> {
            let (bytes, file) = Cgroup::under(&self.0).memory_limit?;
            Some((bytes, file.strip_prefix(&self.0).unwrap().display().to_string()))
        }
    }
    impl Drop for Tree {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    const UNIFIED: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";

    #[test]
    fn the_tightest_of_a_group_and_its_parents_counts() {
        let tree = Tree::of(
            "nested",
            &[
                ("proc/self/cgroup", "0::/a/b\n"),
                ("proc/self/mountinfo", UNIFIED),
                ("sys/fs/cgroup/a/b/memory.max", "max\n"),
                ("sys/fs/cgroup/a/b/memory.current", "1000\n"),
                ("sys/fs/cgroup/a/memory.max", "2147483648\n"),
                ("sys/fs/cgroup/a/memory.current", "1073741824\n"),
                ("sys/fs/cgroup/a/memory.stat", "anon 1\nactive_file 100\ninactive_file 24\n"),
                ("sys/fs/cgroup/a/cpu.max", "150000 100000\n"),
                ("sys/fs/cgroup/cpu.max", "max 100000\n"),
            ],
        );
        assert_eq!(tree.limit(), Some((2 << 30, "sys/fs/cgroup/a/memory.max".into())));
        let found = Cgroup::under(&tree.0);
        assert_eq!(found.memory_left, Some((1 << 30) + 124), "page cache is left");
        assert_eq!(found.cores, Some(1.5));
    }

    #[test]
    fn the_threshold_above_which_a_group_is_slowed_is_a_limit_too() {
        let tree = Tree::of(
            "high",
            &[
                ("proc/self/cgroup", "0::/a\n"),
                ("proc/self/mountinfo", UNIFIED),
                ("sys/fs/cgroup/a/memory.max", "4000000\n"),
                ("sys/fs/cgroup/a/memory.high", "3000000\n"),
            ],
        );
        assert_eq!(tree.limit(), Some((3_000_000, "sys/fs/cgroup/a/memory.high".into())));
    }

    #[test]
    fn version_one_says_its_limit_under_another_name_and_none_by_a_large_number() {
        let mounts = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";
        let tree = Tree::of(
            "one",
            &[
                ("proc/self/cgroup", "4:memory:/a/b\n3:cpu,cpuacct:/a\n1:name=systemd:/\n"),
                ("proc/self/mountinfo", mounts),
                ("sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n"),
                ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "1073741824\n"),
                ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", "1000000\n"),
                ("sys/fs/cgroup/memory/a/memory.stat", "total_inactive_file 400000\n"),
                ("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "50000\n"),
                ("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n"),
                ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n"),
                ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
            ],
        );
        let file = "sys/fs/cgroup/memory/a/memory.limit_in_bytes";
        assert_eq!(tree.limit(), Some((1 << 30, file.into())));
        let found = Cgroup::under(&tree.0);
        assert_eq!(found.memory_left, Some((1 << 30) - 600_000));
        assert_eq!(found.cores, Some(0.5));
    }

    #[test]
    fn of_both_versions_at_once_the_tighter_one_counts() {
        let mounts = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let files = |two: &'static str| {
            [
                ("proc/self/cgroup", "4:memory:/a\n0::/u\n"),
                ("proc/self/mountinfo", mounts),
                ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "2000000\n"),
                ("sys/fs/cgroup/unified/u/memory.max", two),
            ]
        };
        let tree = Tree::of("hybrid", &files("1000000\n"));
        assert_eq!(tree.limit(), Some((1_000_000, "sys/fs/cgroup/unified/u/memory.max".into())));
        drop(tree);
        let tree = Tree::of("hybrid", &files("max\n"));
        assert_eq!(tree.limit().unwrap().0, 2_000_000);
    }

    #[test]
    fn a_container_sees_its_group_at_the_mount_itself() {
        // No namespace: the path is the host's, and so is the root of the mount.
        let mounts = "35 31 0:32 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let tree = Tree::of(
            "host-path",
            &[
                ("proc/self/cgroup", "4:memory:/docker/x/sub\n"),
                ("proc/self/mountinfo", mounts),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "5000000\n"),
                ("sys/fs/cgroup/memory/sub/memory.limit_in_bytes", "6000000\n"),
            ],
        );
        assert_eq!(tree.limit().unwrap().0, 5_000_000);
        // A mount that was made outside of the namespace: the path is not in it.
        let mounts = "30 23 0:26 /.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let tree = Tree::of(
            "namespace",
            &[
                ("proc/self/cgroup", "0::/\n"),
                ("proc/self/mountinfo", mounts),
                ("sys/fs/cgroup/memory.max", "7000000\n"),
            ],
        );
        assert_eq!(tree.limit().unwrap().0, 7_000_000);
    }

    #[test]
    fn the_limit_of_a_group_that_this_process_is_not_in_is_none_of_its_limits() {
        let tree = Tree::of(
            "outside",
            &[
                ("proc/self/cgroup", "0::/../other\n"),
                ("proc/self/mountinfo", UNIFIED),
                ("sys/fs/cgroup/memory.max", "7000000\n"),
            ],
        );
        assert_eq!(tree.limit(), None);
    }

    #[test]
    fn without_a_list_of_mounts_the_usual_places_are_looked_at() {
        let tree = Tree::of(
            "usual",
            &[("proc/self/cgroup", "0::/a\n"), ("sys/fs/cgroup/a/memory.max", "123456\n")],
        );
        assert_eq!(tree.limit().unwrap().0, 123_456);
        assert_eq!(Cgroup::under(Path::new("/nowhere")), Cgroup::default());
    }
}
