//! Where the lab's router and its tools run: in the Debian 13 root that `make` builds, or directly on a system
//! whose nft is recent enough.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::netns::{Netns, run};

/// The oldest nft whose maps can be trusted.
pub const NFT: (u32, u32, u32) = (1, 1, 3);

/// A system with the tools of Debian 13.
#[derive(Debug, Clone)]
pub enum Root {
    /// This system itself.
    Host,
    /// A directory holding one.
    Directory(PathBuf),
}

impl Root {
    /// `QUADWAY_ROOT`, else this system if its nft will do, else what `make` has built.
    pub fn find() -> Result<Self> {
        if let Some(directory) = std::env::var_os("QUADWAY_ROOT") {
            let directory = std::path::absolute(directory)?;
            if !directory.join("usr/sbin/nft").exists() {
                bail!("QUADWAY_ROOT is {}, which has no usr/sbin/nft", directory.display());
            }
            return Ok(Self::Directory(directory));
        }
        if host_nft().is_some_and(|version| version >= NFT) {
            return Ok(Self::Host);
        }
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/root-trixie");
        match built.canonicalize() {
            Ok(directory) => Ok(Self::Directory(directory)),
            Err(_absent) => bail!(
                "the lab needs nft {}.{}.{} or later: `make root` builds a Debian 13 root that has it",
                NFT.0,
                NFT.1,
                NFT.2
            ),
        }
    }

    /// A tool of this system, to be run in `namespace`.
    pub fn command(&self, namespace: &Netns, tool: impl AsRef<OsStr>) -> Command {
        match self {
            Self::Host => namespace.command(tool),
            Self::Directory(directory) => {
                let mut command = namespace.command("sh");
                command.args(["-c", include_str!("../root/enter"), "enter"]).arg(directory).arg(tool);
                command
            }
        }
    }

    /// A program built on the host, to be run in `namespace` with the tools of this system around it.
    pub fn program(&self, namespace: &Netns, program: &Path) -> Command {
        match self {
            // /sys must show the interfaces of the namespace, as it does in the other arm.
            Self::Host => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace.name()]).arg(program);
                command
            }
            Self::Directory(_) => {
                let mut inside = PathBuf::from("/host");
                inside.extend(program.components().skip(1));
                self.command(namespace, inside)
            }
        }
    }
}

fn host_nft() -> Option<(u32, u32, u32)> {
    version(&run(Command::new("nft").arg("--version")).ok()?)
}

/// `nftables v1.1.3 (Commodore Bullmoose #4)`
fn version(text: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = text.split_once('v')?.1.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let mut next = || numbers.next()?.ok();
    Some((next()?, next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_nft_is_read() {
        assert_eq!(version("nftables v1.1.3 (Commodore Bullmoose #4)\n"), Some((1, 1, 3)));
        assert!(version("nftables v1.0.6 (Lester Gooch #5)").unwrap() < NFT);
        assert_eq!(version("nftables"), None);
    }
}
