//! The leases that hold, on the disk: a routerd that starts again has its lines at once, while the clients ask their
//! servers anew. Over a reboot nothing is kept: no flow outlives it, and a client that begins is answered within seconds.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use config::units::{Family, WanName};
use mwan::lease::Lease;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::history::replace;
use crate::lease::{News, Told};

#[derive(Debug, Clone)]
pub(super) struct Keep {
    folder: PathBuf,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Kept {
    boot_id: String,
    leases: BTreeMap<WanName, BTreeMap<Family, One>>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct One {
    lease: Lease,
    /// On the clock since boot.
    until: Option<Duration>,
}

impl Keep {
    pub(super) fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    pub(super) fn load(&self) -> io::Result<Vec<Told>> {
        let (now, clock) = (Instant::now(), since_boot()?);
        let mut told = Vec::new();
        for (wan, families) in self.read()?.leases {
            for (family, One { lease, until }) in families {
                let left = match until.map(|until| until.checked_sub(clock)) {
                    Some(None) => continue,
                    Some(Some(left)) => Some(now + left),
                    None => None,
                };
                told.push(Told { wan: wan.clone(), family, news: News::Held { lease, until: left } });
            }
        }
        Ok(told)
    }

    pub(super) fn take(&self, told: &Told) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        // What cannot be read is begun anew.
        let mut kept = self.read().unwrap_or_default();
        kept.boot_id = boot()?;
        let families = kept.leases.entry(told.wan.clone()).or_default();
        match &told.news {
            News::Held { lease, until } => {
                let clock = since_boot()?;
                let until = until.map(|until| clock + until.saturating_duration_since(Instant::now()));
                families.insert(told.family, One { lease: lease.clone(), until });
            }
            News::Gone(_) => {
                families.remove(&told.family);
            }
        }
        replace(&self.file(), &serde_json::to_vec_pretty(&kept)?)
    }

    /// None of another boot.
    fn read(&self) -> io::Result<Kept> {
        let text = match fs::read(self.file()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kept::default()),
            text => text?,
        };
        let kept: Kept = serde_json::from_slice(&text)?;
        Ok(if kept.boot_id == boot()? { kept } else { Kept::default() })
    }

    fn file(&self) -> PathBuf {
        self.folder.join("leases.json")
    }
}

fn boot() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

fn since_boot() -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_BOOTTIME)?.into())
}

#[cfg(test)]
mod tests {
    use mwan::lease::Gone;

    use super::*;

    fn told(wan: &str, seconds: Option<u64>) -> Told {
        let lease = Lease {
            addresses: vec!["198.51.100.7/24".parse().unwrap()],
            gateway: Some("198.51.100.1".parse().unwrap()),
            ..Lease::default()
        };
        let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        Told { wan: wan.parse().unwrap(), family: Family::V4, news: News::Held { lease, until } }
    }

    #[test]
    fn what_holds_is_there_again_and_what_is_over_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let keep = Keep::at(folder.path().join("dhcpcd"));
        assert_eq!(keep.load().unwrap(), []);
        for one in [told("wan1", Some(600)), told("wan2", Some(0)), told("wan3", None), told("wan4", Some(600))] {
            keep.take(&one).unwrap();
        }
        keep.take(&Told { news: News::Gone(Gone::Refused), ..told("wan4", None) }).unwrap();
        let found = keep.load().unwrap();
        let names: Vec<_> = found.iter().map(|told| told.wan.as_str()).collect();
        assert_eq!(names, ["wan1", "wan3"]);
        let News::Held { lease, until: Some(until) } = &found[0].news else { panic!("{found:?}") };
        assert_eq!(lease.to_string(), "198.51.100.7/24, gateway 198.51.100.1");
        assert!(until.saturating_duration_since(Instant::now()) > Duration::from_secs(500));
        assert_eq!(found[1].news, told("wan3", None).news);
    }

    #[test]
    fn leases_of_another_boot_are_none_and_a_broken_file_is_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let keep = Keep::at(folder.path().to_owned());
        keep.take(&told("wan1", Some(600))).unwrap();
        let text = fs::read_to_string(keep.file()).unwrap();
        fs::write(keep.file(), text.replace(&boot().unwrap(), "another")).unwrap();
        assert_eq!(keep.load().unwrap(), []);
        fs::write(keep.file(), "{").unwrap();
        keep.load().unwrap_err();
        keep.take(&told("wan2", Some(600))).unwrap();
        assert_eq!(keep.load().unwrap().len(), 1);
    }
}
