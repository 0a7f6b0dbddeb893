//! Opens the library of the driver that is installed, and tells which one it is. Called once per process by
//! `qat::device`; a library is never closed, since its threads and the device may still be at work.

use std::ffi::OsStr;
use std::fmt;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library as Handle, RTLD_GLOBAL, RTLD_NOW};

use crate::{Cpa, Usdm};

/// A library that is open. It stays so until the process ends.
pub struct Library {
    pub cpa: ManuallyDrop<Cpa>,
    /// The library of pinned memory; another file than that of [`Self::cpa`].
    pub usdm: ManuallyDrop<Usdm>,
    path: PathBuf,
    version: Option<Version>,
}

impl Library {
    /// The out-of-tree driver's library, which is the one that drives a C62x; otherwise Debian's.
    pub fn open() -> Result<Self, NotOpened> {
        let mut tried = Vec::new();
        for (cpa, usdm) in INSTALLED {
            match Self::open_at(Path::new(cpa), Path::new(usdm)) {
                Ok(library) => return Ok(library),
                Err(NotOpened { tried: failed }) => tried.extend(failed),
            }
        }
        Err(NotOpened { tried })
    }

    /// The library at `cpa`, with pinned memory from the one at `usdm`: the same file, for the simulator.
    pub fn open_at(cpa: &Path, usdm: &Path) -> Result<Self, NotOpened> {
        // First, and for all to see: the out-of-tree library leaves these symbols to whoever links it.
        let memory = open(usdm.as_os_str(), RTLD_NOW | RTLD_GLOBAL)?;
        let main = open(cpa.as_os_str(), RTLD_NOW)?;
        let failed = |path: &Path, error| NotOpened { tried: vec![(path.to_owned(), error)] };
        // SAFETY: the types of the functions come from the library's own headers; that libraries of either origin have
        // the functions under those types is what the layout tests and the notes on their versions rest on.
        let usdm_functions = unsafe { Usdm::from_library(memory) }.map_err(|e| failed(usdm, e.to_string()))?;
        // SAFETY: as above.
        let functions = unsafe { Cpa::from_library(main) }.map_err(|e| failed(cpa, e.to_string()))?;
        let Ok(start) = functions.icp_sal_userStart.as_ref() else {
            return Err(failed(cpa, "it has no icp_sal_userStart: not a library of QuickAssist".to_owned()));
        };
        let path = mapped(*start as usize).unwrap_or_else(|| cpa.to_owned());
        let version = std::fs::read(&path).ok().and_then(|bytes| Version::in_binary(&bytes));
        Ok(Self { cpa: ManuallyDrop::new(functions), usdm: ManuallyDrop::new(usdm_functions), path, version })
    }

    /// The file the loader found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The version it was built as, where it tells.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    pub fn abi(&self) -> Abi {
        Abi::of(self.version)
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library").field("path", &self.path).field("version", &self.version).finish_non_exhaustive()
    }
}

/// No library could be opened, and why each one could not.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{}", tried.iter().map(|(path, why)| format!("{}: {why}", path.display())).collect::<Vec<_>>().join("; "))]
pub struct NotOpened {
    pub tried: Vec<(PathBuf, String)>,
}

/// The version of a library, as its `icp_sal_versions.h` numbered it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u16,
    pub minor: u16,
    pub patch: u16,
}

impl Version {
    /// Every library carries `QAT_SOFTWARE_VERSION=24.2.0` as a string that its header makes.
    fn in_binary(bytes: &[u8]) -> Option<Self> {
        let labels = bytes.windows(LABEL.len()).enumerate().filter(|(_, window)| *window == LABEL);
        labels.map(|(at, _)| at + LABEL.len()).find_map(|at| Self::at_the_start(&bytes[at..]))
    }

    fn at_the_start(bytes: &[u8]) -> Option<Self> {
        let text = bytes.split(|byte| !byte.is_ascii_digit() && *byte != b'.').next()?;
        let mut numbers = std::str::from_utf8(text).ok()?.split('.').map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Self { major: next()?, minor: next()?, patch: next()? })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}.{}", self.major, self.minor, self.patch)
    }
}

/// What of the bindings fits the library that was opened.
///
/// The structures of RSA, ECDSA, EC and symmetric operations are the same from the out-of-tree 4.5 to 26.08. Those of
/// compression grew on the way to 24.02, so a library of another numbering would read past or write short of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abi {
    pub compression: bool,
}

impl Abi {
    fn of(version: Option<Version>) -> Self {
        Self { compression: version.is_some_and(|version| (FIRST_ALIKE..=LAST_ALIKE).contains(&version)) }
    }
}

fn open(path: &OsStr, flags: std::ffi::c_int) -> Result<Handle, NotOpened> {
    // SAFETY: the initialisers of a QuickAssist library have no requirement on the process that opens it.
    let opened = unsafe { Handle::open(Some(path), flags) };
    opened.map_err(|error| NotOpened { tried: vec![(path.into(), error.to_string())] })
}

/// The file whose code is at `address`.
pub(crate) fn mapped(address: usize) -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (from, to) = range.split_once('-')?;
        let range = usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?;
        let path = range.contains(&address).then(|| rest.find('/').map(|at| &rest[at..]))??;
        Some(PathBuf::from(path))
    })
}

const INSTALLED: [(&str, &str); 2] = [("libqat_s.so", "libusdm_drv_s.so"), ("libqat.so.4", "libusdm.so.0")];
const LABEL: &[u8] = b"QAT_SOFTWARE_VERSION=";
/// Compared by hand: no structure of the headers differs from 24.02 to 26.08.
const FIRST_ALIKE: Version = Version { major: 24, minor: 2, patch: 0 };
const LAST_ALIKE: Version = Version { major: 26, minor: 8, patch: u16::MAX };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_the_binary() {
        let version = |text: &[u8]| Version::in_binary(text);
        assert_eq!(version(b"\0\x7fQAT_SOFTWARE_VERSION=24.2.0\0x"), Some(Version { major: 24, minor: 2, patch: 0 }));
        // Who looks for the label has it too.
        let second = version(b"QAT_SOFTWARE_VERSION=QAT_SOFTWARE_VERSION=4.28.0\0");
        assert_eq!(second, Some(Version { major: 4, minor: 28, patch: 0 }));
        for unreadable in [
            &b"nothing"[..],
            b"QAT_SOFTWARE_VERSION=",
            b"QAT_SOFTWARE_VERSION=24\0",
            b"QAT_SOFTWARE_VERSION=9999999.1.1\0",
        ] {
            assert_eq!(version(unreadable), None);
        }
    }

    #[test]
    fn compression_is_only_for_versions_whose_structures_are_known() {
        let at = |major, minor| Abi::of(Some(Version { major, minor, patch: 0 })).compression;
        assert!(at(24, 2) && at(25, 8) && at(26, 8));
        assert!(!at(4, 28) && !at(23, 11) && !at(26, 9) && !Abi::of(None).compression);
    }

    #[test]
    fn what_is_no_library_is_told_with_its_path() {
        let error = Library::open_at(Path::new("/dev/null"), Path::new("/nowhere/libusdm.so")).unwrap_err();
        assert!(error.to_string().starts_with("/nowhere/libusdm.so: "), "{error}");
        let error = Library::open_at(Path::new("libc.so.6"), Path::new("libc.so.6")).unwrap_err();
        assert!(error.to_string().contains("no icp_sal_userStart"), "{error}");
    }
}
