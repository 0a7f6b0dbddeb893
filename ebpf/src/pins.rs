//! The folder that holds the pins:
//!
//! ```text
//! DIR/v1/ZONES …                     maps, by the version of their layout
//! DIR/v1/programs-1f2e3d4c5b6a7988/  the programs of the object with this digest
//! DIR/v1/link-xdp-7                  a program on the interface with index 7
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// The layout's folder below `directory`, on a BPF file system: mounted where there is none.
pub(crate) fn prepare(directory: &Path) -> io::Result<PathBuf> {
    let below = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    if !is_bpf(below)? {
        // In sysfs nobody makes folders: there the mount point is what stands.
        let point = if std::fs::create_dir_all(directory).is_ok() { directory } else { below };
        mount(Some("bpf"), point, Some("bpf"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some("mode=0700"))?;
    }
    let layout = layout(directory);
    std::fs::create_dir_all(&layout)?;
    Ok(layout)
}

pub(crate) fn layout(directory: &Path) -> PathBuf {
    directory.join(format!("v{}", abi::LAYOUT))
}

/// The folders of other layouts.
pub(crate) fn other_layouts(directory: &Path) -> io::Result<Vec<PathBuf>> {
    if !directory.exists() {
        return Ok(Vec::new());
    }
    let ours = layout(directory);
    let mut found = entries(directory)?;
    found.retain(|name, path| {
        name.strip_prefix('v').is_some_and(|version| version.parse::<u32>().is_ok()) && *path != ours
    });
    Ok(found.into_values().collect())
}

/// Where the programs of an object are.
pub(crate) fn programs(layout: &Path, digest: &str) -> PathBuf {
    layout.join(format!("{PROGRAMS}{}", digest.get(..16).unwrap_or(digest)))
}

/// The folders of the programs of all objects but this one.
pub(crate) fn other_programs(layout: &Path, but: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = entries(layout)?;
    found.retain(|name, path| name.starts_with(PROGRAMS) && path != but);
    Ok(found.into_values().collect())
}

/// Where a program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hook {
    Xdp,
    Ingress,
    Egress,
}

impl Hook {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Xdp, "link-xdp-"), (Self::Ingress, "link-tcx-"), (Self::Egress, "link-line-")];

    pub(crate) fn pin(self, layout: &Path, interface: u32) -> PathBuf {
        let prefix = Self::ALL.into_iter().find(|(hook, _)| *hook == self).map_or("link-", |(_, prefix)| prefix);
        layout.join(format!("{prefix}{interface}"))
    }
}

/// Every link that is pinned.
pub(crate) fn links(layout: &Path) -> io::Result<Vec<(Hook, u32)>> {
    let link = |name: &String| {
        Hook::ALL.into_iter().find_map(|(hook, prefix)| Some((hook, name.strip_prefix(prefix)?.parse().ok()?)))
    };
    Ok(entries(layout)?.keys().filter_map(link).collect())
}

/// Unless it is gone already.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn entries(directory: &Path) -> io::Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        found.insert(entry.file_name().to_string_lossy().into_owned(), entry.path());
    }
    Ok(found)
}

fn is_bpf(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.filesystem_type() == BPF_FS_MAGIC)
}

const PROGRAMS: &str = "programs-";
