//! Values below `/proc/sys`. The files of the network part show the namespace of the thread that opens them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use crate::counters::Conntrack;

/// Those that `want` names. What the kernel has no file for is left out.
pub(crate) fn observed(want: &BTreeMap<String, String>) -> io::Result<BTreeMap<String, String>> {
    let mut observed = BTreeMap::new();
    for (name, wanted) in want {
        match fs::read_to_string(Path::new(ROOT).join(name)) {
            Ok(value) => drop(observed.insert(name.clone(), value.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_optional(name) && !awaits_conntrack(name) => {
                observed.insert(name.clone(), wanted.clone());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(observed)
}

pub(crate) fn set(name: &str, value: &str) -> io::Result<()> {
    match fs::write(Path::new(ROOT).join(name), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && is_optional(name) => Ok(()),
        other => other,
    }
}

/// How full conntrack's table is; `None` where the kernel does not tell.
pub(crate) fn conntrack() -> Option<Conntrack> {
    let number = |name: &str| fs::read_to_string(Path::new(ROOT).join(CONNTRACK).join(name)).ok()?.trim().parse().ok();
    Some(Conntrack { entries: number("nf_conntrack_count")?, limit: number("nf_conntrack_max")? })
}

/// Without `br_netfilter` bridged frames pass no filter: what we would switch off is off. Once somebody
/// loads it, the files appear and count. A kernel may lack some of conntrack's.
fn is_optional(name: &str) -> bool {
    ["net/bridge/", CONNTRACK].iter().any(|folder| name.starts_with(folder))
}

/// Conntrack comes with the first ruleset; without it nobody can say which of its files there will be.
fn awaits_conntrack(name: &str) -> bool {
    name.starts_with(CONNTRACK) && !Path::new(ROOT).join(CONNTRACK).join("nf_conntrack_max").exists()
}

const CONNTRACK: &str = "net/netfilter/";

const ROOT: &str = "/proc/sys";
