//! `routerctl import`: finds out which file is which, reads them and writes what comes of it. The only part of the
//! import that touches files.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use clap::Args;

use super::{Imported, Sources};

/// The files of an OpenWrt router.
#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "each is called as its option is")]
pub struct Mwan3 {
    /// Files of /etc/config, known by their names: network, mwan3, firewall, dhcp.
    files: Vec<PathBuf>,
    /// The network file, whatever its name.
    #[arg(long, value_name = "FILE")]
    network: Option<PathBuf>,
    /// The file of mwan3.
    #[arg(long, value_name = "FILE")]
    mwan3: Option<PathBuf>,
    /// The firewall's file.
    #[arg(long, value_name = "FILE")]
    firewall: Option<PathBuf>,
    /// The file of dnsmasq: static leases become hosts.
    #[arg(long, value_name = "FILE")]
    dhcp: Option<PathBuf>,
    /// Write the site file here instead of the standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Overwrite the file of --output.
    #[arg(long)]
    force: bool,
}

impl Mwan3 {
    /// The import, written if a file was named for it; or why not, and what to do.
    pub fn run(&self) -> Result<Imported, String> {
        let mut paths = [self.network.as_ref(), self.mwan3.as_ref(), self.firewall.as_ref(), self.dhcp.as_ref()];
        for path in &self.files {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
            let known = NAMES.iter().position(|known| name.split('.').next() == Some(known));
            let Some(place) = known.and_then(|at| paths.get_mut(at)) else {
                return Err(format!(
                    "cannot tell by its name which file {} is\n  say it: --network, --mwan3, --firewall or --dhcp FILE",
                    path.display()
                ));
            };
            if let Some(before) = place.replace(path) {
                return Err(format!(
                    "{} and {} are both the same kind of file\n  give one of them, or say which it is: --network, --mwan3, \
                     --firewall or --dhcp FILE",
                    before.display(),
                    path.display()
                ));
            }
        }
        if paths[0].is_none() {
            return Err("no network file is given, and lines and VLANs stand in it\n  add /etc/config/network, or --network FILE".to_owned());
        }
        if paths[1].is_none() {
            return Err(
                "no file of mwan3 is given, and policies stand in it\n  add /etc/config/mwan3, or --mwan3 FILE"
                    .to_owned(),
            );
        }
        let mut texts = Vec::new();
        for path in paths {
            texts.push(path.map(|path| text(path)).transpose()?);
        }
        let source =
            |at: usize| texts.get(at).and_then(Option::as_ref).map(|(name, text)| (name.as_str(), text.as_str()));
        let sources = Sources { network: source(0), mwan3: source(1), firewall: source(2), dhcp: source(3) };
        let imported = super::mwan3(&sources)
            .map_err(|faults| faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))?;
        if let Some(path) = &self.output {
            self.write(path, &imported.site)?;
        }
        Ok(imported)
    }

    /// Whether the site file went into a file.
    pub fn written(&self) -> Option<&Path> {
        self.output.as_deref()
    }

    fn write(&self, path: &Path, site: &str) -> Result<(), String> {
        let opened = if self.force { File::create(path) } else { File::create_new(path) };
        opened.and_then(|mut file| file.write_all(site.as_bytes())).map_err(|error| {
            let path = path.display();
            if error.kind() == ErrorKind::AlreadyExists {
                return format!("{path} is there already\n  name another file, or add --force to overwrite it");
            }
            format!("cannot write {path}: {error}\n  name a file in a folder you may write to")
        })
    }
}

/// Descriptions may be in an old character set; what is not UTF-8 in them matters to nobody.
fn text(path: &Path) -> Result<(String, String), String> {
    let bytes = fs::read(path).map_err(|error| {
        format!("cannot read {}: {error}\n  copy it from the router: scp root@ROUTER:/etc/config/* .", path.display())
    })?;
    Ok((path.display().to_string(), String::from_utf8_lossy(&bytes).into_owned()))
}

const NAMES: [&str; 4] = ["network", "mwan3", "firewall", "dhcp"];
