//! Loading, adopting and attaching.
//!
//! A daemon that starts finds the programs and maps of the one before. Maps of the same layout and sizes are adopted,
//! others are made anew. Programs of the same object and the same maps are adopted too; else the object is loaded,
//! and every link that is pinned gets its program by link update: there is no moment without one.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::MapInfo;
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::xdp::XdpLink;
use aya::programs::{LinkOrder, Program, ProgramError, ProgramInfo, SchedClassifier, TcAttachType, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use aya_obj::generated::bpf_map_type;
use aya_obj::programs::XdpAttachType;
use tracing::{debug, info};

use crate::pins::{self, Hook};
use abi::name;

/// Why there is no fast path.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("no BPF file system at {}: {source}", directory.display())]
    FileSystem { directory: PathBuf, source: io::Error },
    #[error("this is no eBPF object: {reason}")]
    Object { reason: String },
    #[error("the object has no {kind} {name}")]
    Missing { kind: &'static str, name: String },
    #[error("the kernel does not take the maps: {reason}")]
    Maps { reason: String },
    /// The verifier's last lines, where it said something.
    #[error("the kernel does not take {program}: {source}{}", if log.is_empty() { String::new() } else { format!("\n{log}") })]
    Program { program: &'static str, source: io::Error, log: String },
    #[error("cannot pin or read {}: {reason}", path.display())]
    Pin { path: PathBuf, reason: String },
}

#[derive(Debug, thiserror::Error)]
#[error("cannot attach {hook} to interface {interface}: {reason}")]
pub struct AttachError {
    pub hook: &'static str,
    pub interface: u32,
    pub reason: String,
}

/// Where packets of a port meet the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// In the driver.
    Xdp,
    /// Behind it, once there is an skb.
    Tcx,
}

/// What is attached to an interface.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attached {
    pub port: Option<Mode>,
    /// The program that measures what leaves.
    pub line: bool,
}

/// The programs in the kernel.
#[derive(Debug)]
pub struct Programs {
    layout: PathBuf,
    xdp_port: Xdp,
    tc_port: SchedClassifier,
    tc_line: SchedClassifier,
    /// They were there before.
    pub adopted: bool,
}

impl Programs {
    /// Loads `object`, or adopts what is pinned under `directory`. `flows` is how many entries each of the two tables
    /// of flows has.
    pub fn load(object: &[u8], flows: u32, directory: &Path) -> Result<Self, LoadError> {
        let layout = pins::prepare(directory)
            .map_err(|source| LoadError::FileSystem { directory: directory.to_owned(), source })?;
        let home = pins::programs(&layout, &crate::digest(object));
        let adopted = adopt_maps(object, flows, &layout)? && PROGRAMS.iter().all(|name| home.join(name).exists());
        if !adopted {
            load(object, flows, &layout, &home)?;
        }
        let pin = |path: &Path, error: ProgramError| LoadError::Pin { path: path.to_owned(), reason: chain(&error) };
        let classifier = |name| {
            let path = home.join(name);
            SchedClassifier::from_pin(&path).map_err(|error| pin(&path, error))
        };
        let xdp = home.join(name::XDP_PORT);
        let mut programs = Self {
            xdp_port: Xdp::from_pin(&xdp, XdpAttachType::Interface).map_err(|error| pin(&xdp, error))?,
            tc_port: classifier(name::TC_PORT)?,
            tc_line: classifier(name::TC_LINE)?,
            layout,
            adopted,
        };
        programs.take_over_links(&home)?;
        info!(adopted, "the programs of the fast path are in the kernel");
        Ok(programs)
    }

    /// By index of the interface.
    pub fn attached(&self) -> io::Result<BTreeMap<u32, Attached>> {
        let mut all: BTreeMap<u32, Attached> = BTreeMap::new();
        for (hook, interface) in pins::links(&self.layout)? {
            let one = all.entry(interface).or_default();
            match hook {
                Hook::Xdp => one.port = Some(Mode::Xdp),
                Hook::Ingress => one.port = Some(Mode::Tcx),
                Hook::Egress => one.line = true,
            }
        }
        Ok(all)
    }

    /// Makes it so, the wanted program before the other goes: for a moment a packet may meet both.
    pub fn attach(&mut self, interface: u32, want: Attached) -> Result<(), AttachError> {
        let hooks = [
            (Hook::Xdp, want.port == Some(Mode::Xdp)),
            (Hook::Ingress, want.port == Some(Mode::Tcx)),
            (Hook::Egress, want.line),
        ];
        let fail = |hook, reason| AttachError { hook: word(hook), interface, reason };
        for (hook, _) in hooks.into_iter().filter(|(_, wanted)| *wanted) {
            if !hook.pin(&self.layout, interface).exists() {
                self.link(hook, interface).map_err(|reason| fail(hook, reason))?;
            }
        }
        for (hook, _) in hooks.into_iter().filter(|(_, wanted)| !*wanted) {
            let pin = hook.pin(&self.layout, interface);
            pins::remove(&pin).map_err(|error| fail(hook, error.to_string()))?;
        }
        Ok(())
    }

    /// The ids of the programs, as `bpftool` tells them.
    pub fn ids(&self) -> io::Result<Vec<u32>> {
        let infos = [self.xdp_port.info(), self.tc_port.info(), self.tc_line.info()];
        infos.into_iter().map(|info| info.map(|info| info.id()).map_err(io::Error::other)).collect()
    }

    /// The ids of the programs pinned under `directory`.
    pub fn pinned(directory: &Path) -> io::Result<Vec<u32>> {
        let mut ids = Vec::new();
        for home in pins::other_programs(&pins::layout(directory), Path::new(""))? {
            for name in PROGRAMS {
                ids.push(ProgramInfo::from_pin(home.join(name)).map_err(io::Error::other)?.id());
            }
        }
        Ok(ids)
    }

    /// Removes everything of ours: links, programs, maps.
    pub fn remove(directory: &Path) -> io::Result<()> {
        match std::fs::remove_dir_all(pins::layout(directory)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Removes what daemons with another [`abi::LAYOUT`] left.
    pub fn remove_other_layouts(directory: &Path) -> io::Result<()> {
        pins::other_layouts(directory)?.into_iter().try_for_each(std::fs::remove_dir_all)
    }

    fn link(&mut self, hook: Hook, interface: u32) -> Result<(), String> {
        let link = match hook {
            Hook::Xdp => {
                let id = self.xdp_port.attach_to_if_index(interface, XdpMode::Driver).map_err(|error| chain(&error))?;
                let link = self.xdp_port.take_link(id).map_err(|error| chain(&error))?;
                FdLink::try_from(link)
            }
            Hook::Ingress => FdLink::try_from(tcx(&mut self.tc_port, interface, TcAttachType::Ingress)?),
            Hook::Egress => FdLink::try_from(tcx(&mut self.tc_line, interface, TcAttachType::Egress)?),
        };
        let link = link.map_err(|error| chain(&error))?;
        link.pin(hook.pin(&self.layout, interface)).map_err(|error| chain(&error))?;
        Ok(())
    }

    /// Gives every pinned link our programs, and removes those whose interface is gone.
    fn take_over_links(&mut self, home: &Path) -> Result<(), LoadError> {
        let pin = |path: &Path, reason: String| LoadError::Pin { path: path.to_owned(), reason };
        for (hook, interface) in pins::links(&self.layout).map_err(|error| pin(&self.layout, error.to_string()))? {
            let path = hook.pin(&self.layout, interface);
            if let Err(reason) = self.update(hook, &path) {
                debug!(link = %path.display(), %reason, "a link that cannot be taken over is made again");
                pins::remove(&path).map_err(|error| pin(&path, error.to_string()))?;
            }
        }
        for old in pins::other_programs(&self.layout, home).map_err(|error| pin(&self.layout, error.to_string()))? {
            std::fs::remove_dir_all(&old).map_err(|error| pin(&old, error.to_string()))?;
        }
        Ok(())
    }

    fn update(&mut self, hook: Hook, path: &Path) -> Result<(), String> {
        let link = FdLink::from(PinnedLink::from_pin(path).map_err(|error| chain(&error))?);
        let runs = link.info().map_err(|error| chain(&error))?.program_id();
        let program = match hook {
            Hook::Xdp => self.xdp_port.info(),
            Hook::Ingress => self.tc_port.info(),
            Hook::Egress => self.tc_line.info(),
        };
        if program.map_err(|error| chain(&error))?.id() == runs {
            return Ok(());
        }
        // The link itself stays where it is pinned; what is taken back here is a descriptor.
        match hook {
            Hook::Xdp => {
                let link = XdpLink::try_from(link).map_err(|error| chain(&error))?;
                let id = self.xdp_port.attach_to_link(link).map_err(|error| chain(&error))?;
                self.xdp_port.take_link(id).map(drop).map_err(|error| chain(&error))
            }
            Hook::Ingress | Hook::Egress => {
                let classifier = if hook == Hook::Egress { &mut self.tc_line } else { &mut self.tc_port };
                let link = SchedClassifierLink::try_from(link).map_err(|error| chain(&error))?;
                let id = classifier.attach_to_link(link).map_err(|error| chain(&error))?;
                classifier.take_link(id).map(drop).map_err(|error| chain(&error))
            }
        }
    }
}

fn tcx(program: &mut SchedClassifier, interface: u32, to: TcAttachType) -> Result<SchedClassifierLink, String> {
    // aya attaches by name, and a link is attached by what the name means at that moment.
    let name = nix::net::if_::if_indextoname(interface).map_err(|error| error.to_string())?;
    let name = name.to_str().map_err(|error| error.to_string())?;
    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program.attach_with_options(name, to, options).map_err(|error| chain(&error))?;
    program.take_link(id).map_err(|error| chain(&error))
}

/// Removes pinned maps that are not as `object` wants them. Whether all were.
fn adopt_maps(object: &[u8], flows: u32, layout: &Path) -> Result<bool, LoadError> {
    let object = aya_obj::Object::parse(object).map_err(|error| LoadError::Object { reason: chain(&error) })?;
    let missing = |kind, name: &str| LoadError::Missing { kind, name: name.to_owned() };
    if let Some(name) = MAPS.iter().find(|name| !object.maps.contains_key(**name)) {
        return Err(missing("map", name));
    }
    if let Some(name) = PROGRAMS.iter().find(|name| !object.programs.contains_key(**name)) {
        return Err(missing("program", name));
    }
    let mut all = true;
    for (name, want) in &object.maps {
        let path = layout.join(name);
        let entries = if FLOWS.contains(&name.as_str()) { flows } else { want.max_entries() };
        let fits = path.exists()
            && MapInfo::from_pin(&path).is_ok_and(|have| {
                // The kernel's own kinds of value: a record has no size, and a port may have a program.
                let own_value = want.map_type() == bpf_map_type::BPF_MAP_TYPE_DEVMAP_HASH as u32
                    || want.map_type() == bpf_map_type::BPF_MAP_TYPE_RINGBUF as u32;
                have.map_type().is_ok_and(|kind| kind as u32 == want.map_type())
                    && have.max_entries() == entries
                    && have.key_size() == want.key_size()
                    && (own_value || have.value_size() == want.value_size())
            });
        if !fits {
            all = false;
            pins::remove(&path).map_err(|error| LoadError::Pin { path, reason: error.to_string() })?;
        }
    }
    Ok(all)
}

/// Maps and programs of the object, pinned.
fn load(object: &[u8], flows: u32, layout: &Path, home: &Path) -> Result<(), LoadError> {
    let names: Vec<String> = aya_obj::Object::parse(object)
        .map_err(|error| LoadError::Object { reason: chain(&error) })?
        .maps
        .into_keys()
        .collect();
    let mut loader = EbpfLoader::new();
    for name in &names {
        loader.map_pin_path(name, layout.join(name));
    }
    for name in FLOWS {
        loader.map_max_entries(name, flows);
    }
    let mut ebpf = loader.load(object).map_err(|error| LoadError::Maps { reason: chain(&error) })?;
    // What a daemon that was killed meanwhile may have left.
    if home.exists() {
        std::fs::remove_dir_all(home)
            .map_err(|error| LoadError::Pin { path: home.to_owned(), reason: error.to_string() })?;
    }
    std::fs::create_dir(home).map_err(|error| LoadError::Pin { path: home.to_owned(), reason: error.to_string() })?;
    for name in PROGRAMS {
        load_program(&mut ebpf, name, home)?;
    }
    Ok(())
}

fn load_program(ebpf: &mut Ebpf, name: &'static str, home: &Path) -> Result<(), LoadError> {
    let missing = || LoadError::Missing { kind: "program", name: name.to_owned() };
    let program = ebpf.program_mut(name).ok_or_else(missing)?;
    let loaded = if name == name::XDP_PORT {
        <&mut Xdp>::try_from(&mut *program).and_then(Xdp::load)
    } else {
        <&mut SchedClassifier>::try_from(&mut *program).and_then(SchedClassifier::load)
    };
    loaded.map_err(|error| refused(name, error))?;
    let path = home.join(name);
    Program::pin(program, &path).map_err(|error| LoadError::Pin { path, reason: chain(&error) })
}

fn refused(program: &'static str, error: ProgramError) -> LoadError {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        let log = verifier_log.to_string();
        let lines: Vec<_> = log.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        let last = lines.get(lines.len().saturating_sub(VERIFIER_LINES)..).unwrap_or_default();
        return LoadError::Program { program, source: io_error, log: last.join("\n") };
    }
    LoadError::Program { program, source: io::Error::other(chain(&error)), log: String::new() }
}

/// An error with all that caused it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors speak for their source already.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn word(hook: Hook) -> &'static str {
    match hook {
        Hook::Xdp => name::XDP_PORT,
        Hook::Ingress => name::TC_PORT,
        Hook::Egress => name::TC_LINE,
    }
}

const PROGRAMS: [&str; 3] = [name::XDP_PORT, name::TC_PORT, name::TC_LINE];
/// Those whose size is configured.
const FLOWS: [&str; 2] = [name::FLOWS4, name::FLOWS6];
const MAPS: [&str; 17] = [
    name::ZONES,
    name::HOMES4,
    name::HOMES6,
    name::DENIED_PAIRS,
    name::DENIALS,
    name::VERDICTS,
    name::FLOWS4,
    name::FLOWS6,
    name::GENERATIONS,
    name::PORTS,
    name::SETTINGS,
    name::NEWCOMERS,
    name::LINES,
    name::SILENCES,
    name::HANDSHAKES,
    name::DENIED,
    name::PASSIVE,
];
/// The reason stands at the end of the verifier's log.
const VERIFIER_LINES: usize = 8;
