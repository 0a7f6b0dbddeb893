//! Opens Intel's multi-buffer libraries, `libcrypto_mb` and `libIPSec_MB`, where they are installed. Like those of
//! QuickAssist they stay open until the process ends. Called by `qat::batch` alone.

use std::ffi::OsStr;
use std::fmt;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library as Handle, RTLD_NOW};

use crate::crypto_mb::CryptoMb;
use crate::ipsec_mb::IpsecMb;
use crate::loader::{NotOpened, mapped};

/// A library that is open.
pub struct Multi<F> {
    functions: ManuallyDrop<F>,
    path: PathBuf,
}

/// The one at `path`, or the one that is installed.
pub fn crypto_mb(path: Option<&Path>) -> Result<Multi<CryptoMb>, NotOpened> {
    let (handle, name) = open(path, CRYPTO_MB)?;
    // SAFETY: the types of the functions come from the headers of the version that the name of the file stands for.
    let functions = unsafe { CryptoMb::from_library(handle) }.map_err(|error| failed(name, error.to_string()))?;
    let address = functions.mbx_get_algo_info.as_ref().ok().map(|call| *call as usize);
    Multi::of(functions, address, name)
}

/// The one at `path`, or the one that is installed.
pub fn ipsec_mb(path: Option<&Path>) -> Result<Multi<IpsecMb>, NotOpened> {
    let (handle, name) = open(path, IPSEC_MB)?;
    // SAFETY: as above; its major version is in its name, and with it the layout of its structures.
    let functions = unsafe { IpsecMb::from_library(handle) }.map_err(|error| failed(name, error.to_string()))?;
    let address = functions.imb_get_mb_mgr_size.as_ref().ok().map(|call| *call as usize);
    Multi::of(functions, address, name)
}

impl<F> Multi<F> {
    /// Without an address, the functions are not those that the library should have.
    fn of(functions: F, address: Option<usize>, name: &Path) -> Result<Self, NotOpened> {
        let Some(address) = address else {
            return Err(failed(name, "it has none of the functions: not the library it is taken for".to_owned()));
        };
        let path = mapped(address).unwrap_or_else(|| name.to_owned());
        Ok(Self { functions: ManuallyDrop::new(functions), path })
    }

    pub fn functions(&self) -> &F {
        &self.functions
    }

    /// The file the loader found.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl<F> fmt::Debug for Multi<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Multi").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The name of a library and the package of Debian 13 that has it.
type Installed = (&'static str, &'static str);

fn open(path: Option<&Path>, (name, package): Installed) -> Result<(Handle, &Path), NotOpened> {
    let given = path.unwrap_or(Path::new(name));
    let file: &OsStr = given.as_os_str();
    // SAFETY: the initialisers of these libraries have no requirement on the process that opens them.
    match unsafe { Handle::open(Some(file), RTLD_NOW) } {
        Ok(handle) => Ok((handle, given)),
        Err(error) if path.is_none() => Err(failed(given, format!("{error}; the package {package} has it"))),
        Err(error) => Err(failed(given, error.to_string())),
    }
}

fn failed(path: &Path, why: String) -> NotOpened {
    NotOpened { tried: vec![(path.to_owned(), why)] }
}

const CRYPTO_MB: Installed = ("libcrypto_mb.so.11", "libcrypto-mb11");
const IPSEC_MB: Installed = ("libIPSec_MB.so.2", "libipsec-mb2");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_told_with_the_package_that_has_it() {
        let told = open(None, ("libnowhere.so.1", "libnowhere1")).unwrap_err().to_string();
        assert!(told.starts_with("libnowhere.so.1: "), "{told}");
        assert!(told.ends_with("; the package libnowhere1 has it"), "{told}");
    }

    #[test]
    fn what_is_another_library_is_told_as_such() {
        let libc = Path::new("libc.so.6");
        for told in [crypto_mb(Some(libc)).unwrap_err().to_string(), ipsec_mb(Some(libc)).unwrap_err().to_string()] {
            assert!(told.contains("not the library it is taken for"), "{told}");
        }
    }
}
