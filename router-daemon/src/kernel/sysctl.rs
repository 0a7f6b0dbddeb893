//! Values below `/proc/sys`. The files of the network part show the namespace of the thread that opens them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use config::units::IfName;

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

/// Has the kernel give an interface its link-local address (RFC 4291, appendix A), where somebody told it not to. True if
/// that was so.
pub(crate) fn own_link_local(interface: &IfName) -> io::Result<bool> {
    let file = Path::new(ROOT).join(format!("net/ipv6/conf/{interface}/addr_gen_mode"));
    if fs::read_to_string(&file)?.trim() == "0" {
        return Ok(false);
    }
    fs::write(file, "0").map(|()| true)
}

const ROOT: &str = "/proc/sys";
