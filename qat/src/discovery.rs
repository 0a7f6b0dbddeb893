//! What there is, step by step, each with its reason: what `routerctl qat status` shows, and what to look at first where a
//! card is in the machine and not in use.

use std::fmt;
use std::path::PathBuf;

/// Every step that was gone, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Discovery {
    pub steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub what: &'static str,
    /// What was found, or why nothing was.
    pub found: Result<String, String>,
}

/// Where the system tells of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct System {
    /// `/`, but for tests.
    pub root: PathBuf,
}

impl Default for System {
    fn default() -> Self {
        Self { root: PathBuf::from("/") }
    }
}

impl Discovery {
    /// Looks at the card, its driver, its firmware and the kernel's own use of it. Changes nothing.
    pub(crate) fn of(system: &System) -> Self {
        let mut discovery = Self::default();
        discovery.note("card", system.card());
        discovery.note("driver", system.driver());
        discovery.note("firmware", system.firmware());
        discovery.note("kernel crypto", system.kernel_crypto());
        discovery.note("cpu", system.cpu());
        discovery
    }

    pub(crate) fn note(&mut self, what: &'static str, found: Result<String, String>) {
        self.steps.push(Step { what, found });
    }

    /// Notes a step and hands on what it gave.
    pub(crate) fn step<T, E: fmt::Display>(
        &mut self,
        what: &'static str,
        result: Result<T, E>,
        tell: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        self.note(what, result.as_ref().map(tell).map_err(ToString::to_string));
        result.ok()
    }

    /// The first step without which there is no device, and why it failed.
    pub fn missing(&self) -> Option<&Step> {
        let needed = ["library", "start", "instances", "pinned memory"];
        self.steps.iter().find(|step| needed.contains(&step.what) && step.found.is_err())
    }
}

impl fmt::Display for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Step { what, found } in &self.steps {
            match found {
                Ok(found) => writeln!(f, "{what:<14} {found}")?,
                Err(reason) => writeln!(f, "{what:<14} - {reason}")?,
            }
        }
        Ok(())
    }
}

impl System {
    fn read(&self, path: &str) -> Option<String> {
        Some(std::fs::read_to_string(self.root.join(path)).ok()?.trim().to_owned())
    }

    /// PCI addresses of endpoints and virtual functions of a C62x, in order.
    fn functions(&self) -> Vec<(String, bool)> {
        let Ok(folder) = std::fs::read_dir(self.root.join("sys/bus/pci/devices")) else { return Vec::new() };
        let mut functions: Vec<_> = folder
            .flatten()
            .filter_map(|entry| {
                let address = entry.file_name().into_string().ok()?;
                let of = |file: &str| self.read(&format!("sys/bus/pci/devices/{address}/{file}"));
                let ours = of("vendor")? == INTEL;
                match of("device")?.as_str() {
                    ENDPOINT if ours => Some((address, false)),
                    VIRTUAL if ours => Some((address, true)),
                    _ => None,
                }
            })
            .collect();
        functions.sort();
        functions
    }

    fn card(&self) -> Result<String, String> {
        let functions = self.functions();
        if functions.is_empty() {
            return Err(format!("no PCI device {INTEL}:{ENDPOINT} or :{VIRTUAL} (C62x): a QAT 8970 has three"));
        }
        let tell = |(address, is_virtual): &(String, bool)| {
            if *is_virtual { format!("{address} (virtual)") } else { address.clone() }
        };
        Ok(functions.iter().map(tell).collect::<Vec<_>>().join(", "))
    }

    fn driver(&self) -> Result<String, String> {
        let functions = self.functions();
        if functions.is_empty() {
            return Err("there is no card to drive".to_owned());
        }
        let driver = |address: &str| {
            let link = std::fs::read_link(self.root.join(format!("sys/bus/pci/devices/{address}/driver"))).ok()?;
            Some(link.file_name()?.to_string_lossy().into_owned())
        };
        let drivers: Vec<_> = functions.iter().map(|(address, _)| (address, driver(address))).collect();
        if drivers.iter().all(|(_, driver)| driver.is_none()) {
            return Err("no driver is bound: Intel's out-of-tree QAT.L driver for user space, or the kernel's qat_c62x for IPsec".to_owned());
        }
        let tell = |(address, driver): &(&String, Option<String>)| {
            format!("{address} {}", driver.as_deref().unwrap_or("none"))
        };
        Ok(drivers.iter().map(tell).collect::<Vec<_>>().join(", "))
    }

    fn firmware(&self) -> Result<String, String> {
        let there = |name: &&str| {
            ["", ".xz", ".zst"].iter().any(|ending| self.root.join(format!("lib/firmware/{name}{ending}")).exists())
        };
        let missing: Vec<_> = FIRMWARE.into_iter().filter(|name| !there(name)).collect();
        if missing.is_empty() {
            Ok(FIRMWARE.join(", "))
        } else {
            Err(format!("/lib/firmware lacks {}: install firmware-intel-misc (non-free-firmware)", missing.join(", ")))
        }
    }

    fn kernel_crypto(&self) -> Result<String, String> {
        let text = self.read("proc/crypto").ok_or("/proc/crypto cannot be read")?;
        let drivers: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("driver")?.split_once(':').map(|(_, driver)| driver.trim()))
            .filter(|driver| driver.contains("qat"))
            .collect();
        if drivers.is_empty() {
            Err("the kernel has no algorithm of the card's".to_owned())
        } else {
            Ok(drivers.join(", "))
        }
    }

    fn cpu(&self) -> Result<String, String> {
        let text = self.read("proc/cpuinfo").ok_or("/proc/cpuinfo cannot be read")?;
        let flags = text.lines().find_map(|line| line.strip_prefix("flags")?.split_once(':')).map_or("", |(_, f)| f);
        let has: Vec<_> = FLAGS.into_iter().filter(|flag| flags.split_whitespace().any(|own| own == *flag)).collect();
        if has.is_empty() { Err(format!("none of {}", FLAGS.join(", "))) } else { Ok(has.join(" ")) }
    }
}

const INTEL: &str = "0x8086";
const ENDPOINT: &str = "0x37c8";
const VIRTUAL: &str = "0x37c9";
const FIRMWARE: [&str; 2] = ["qat_c62x.bin", "qat_c62x_mmp.bin"];
/// What OpenSSL, `crypto_mb` and ipsec-mb are fast by.
const FLAGS: [&str; 8] = ["aes", "pclmulqdq", "sha_ni", "avx2", "avx512f", "avx512ifma", "vaes", "vpclmulqdq"];

#[cfg(test)]
mod tests {
    use super::*;

    fn found(root: &std::path::Path, what: &str) -> Result<String, String> {
        let discovery = Discovery::of(&System { root: root.to_owned() });
        discovery.steps.into_iter().find(|step| step.what == what).unwrap().found
    }

    #[test]
    fn an_empty_system_has_a_reason_at_every_step() {
        let root = tempfile::tempdir().unwrap();
        for what in ["card", "driver", "firmware", "kernel crypto", "cpu"] {
            assert!(!found(root.path(), what).unwrap_err().is_empty(), "{what}");
        }
    }

    #[test]
    fn a_card_is_found_with_its_driver_firmware_and_algorithms() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for (address, device) in [("0000:b1:00.0", "0x37c8"), ("0000:3d:00.0", "0x37c8"), ("0000:00:1f.0", "0xa1c3")] {
            write(&format!("sys/bus/pci/devices/{address}/vendor"), "0x8086\n");
            write(&format!("sys/bus/pci/devices/{address}/device"), &format!("{device}\n"));
        }
        assert_eq!(found(root.path(), "card").unwrap(), "0000:3d:00.0, 0000:b1:00.0");
        assert!(found(root.path(), "driver").unwrap_err().contains("no driver is bound"));
        std::os::unix::fs::symlink("../../drivers/c6xx", root.path().join("sys/bus/pci/devices/0000:3d:00.0/driver"))
            .unwrap();
        assert_eq!(found(root.path(), "driver").unwrap(), "0000:3d:00.0 c6xx, 0000:b1:00.0 none");
        write("lib/firmware/qat_c62x.bin.xz", "");
        assert!(found(root.path(), "firmware").unwrap_err().contains("lacks qat_c62x_mmp.bin:"));
        write("lib/firmware/qat_c62x_mmp.bin", "");
        assert!(found(root.path(), "firmware").is_ok());
        write(
            "proc/crypto",
            "name         : rsa\ndriver       : qat-rsa\npriority     : 1000\n\nname: x\ndriver : x-generic\n",
        );
        assert_eq!(found(root.path(), "kernel crypto").unwrap(), "qat-rsa");
        write("proc/cpuinfo", "model name : X\nflags\t\t: fpu aes avx2 aesx\n");
        assert_eq!(found(root.path(), "cpu").unwrap(), "aes avx2");
    }
}
