//! From another router's files to a site file, with a list of what did not fit. Text in, text out; only `command`
//! reads and writes files.
//!
//! What cannot be said exactly is left out or narrowed, so that the site allows no more between its VLANs and towards
//! the router than the files did; where the way to the Internet becomes wider, that is told before everything else.

pub mod command;
mod firewall;
mod mwan3;
mod network;
mod site;
pub mod uci;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};

use serde::Serialize;

use uci::{Fault, File, Section, shown};

/// The files of one router: what each is called in notes, and its text.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sources<'a> {
    pub network: Option<(&'a str, &'a str)>,
    pub mwan3: Option<(&'a str, &'a str)>,
    pub firewall: Option<(&'a str, &'a str)>,
    pub dhcp: Option<(&'a str, &'a str)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// A site file; the notes stand at its head as a comment.
    pub site: String,
    pub notes: Notes,
}

/// Something the site file does not say as the router's files did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Note {
    pub kind: Kind,
    pub why: String,
    pub places: Vec<Place>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Something passes that did not.
    Wider,
    /// The operator must write what no file says.
    Missing,
    /// Carried over, and not quite the same.
    Changed,
    /// Not carried over.
    Left,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Wider, Self::Missing, Self::Changed, Self::Left];

    fn heading(self) -> &'static str {
        match self {
            Self::Wider => "Allows more than before; look at these first",
            Self::Missing => "To be filled in before this file is applied",
            Self::Changed => "Carried over, and works differently here",
            Self::Left => "Left out",
        }
    }
}

/// Where the other router says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Place {
    pub file: String,
    pub line: u32,
    /// The section and option, as `uci show` names them, with the value.
    pub what: String,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Only what stands in the site file has no line in the other router's.
        if self.line == 0 {
            return write!(f, "{}  {}", self.file, self.what);
        }
        write!(f, "{}:{}  {}", self.file, self.line, self.what)
    }
}

/// Notes of one kind and reason stand together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Notes(Vec<Note>);

impl Notes {
    fn tell(&mut self, kind: Kind, place: Place, why: impl Into<String>) {
        let why = why.into();
        match self.0.iter_mut().find(|note| note.kind == kind && note.why == why) {
            Some(note) if note.places.contains(&place) => {}
            Some(note) => note.places.push(place),
            None => self.0.push(Note { kind, why, places: vec![place] }),
        }
    }
}

impl fmt::Display for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for kind in Kind::ALL {
            let mut notes = self.0.iter().filter(|note| note.kind == kind).peekable();
            if notes.peek().is_some() {
                writeln!(f, "\n{}:", kind.heading())?;
            }
            for note in notes {
                for place in &note.places {
                    writeln!(f, "  {place}")?;
                }
                for line in wrapped(&note.why) {
                    writeln!(f, "      {line}")?;
                }
            }
        }
        Ok(())
    }
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + word.chars().count() < 100 => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) | None => lines.push(word.to_owned()),
        }
    }
    lines
}

/// A site file from what an OpenWrt router with mwan3 has under `/etc/config`, or every place of the files that is
/// not UCI.
pub fn mwan3(sources: &Sources<'_>) -> Result<Imported, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut read = |source: Option<(&str, &str)>| {
        let (name, text) = source?;
        uci::parse(name, text).map_err(|mut more| faults.append(&mut more)).ok()
    };
    let (network, mwan3) = (read(sources.network), read(sources.mwan3));
    let (firewall, dhcp) = (read(sources.firewall), read(sources.dhcp));
    if !faults.is_empty() {
        return Err(faults);
    }
    let files = Files { network, mwan3, firewall, dhcp };
    let mut draft = Draft::default();
    let zones = firewall::zones(&files);
    network::read(&files, &zones, &mut draft);
    mwan3::read(&files, &mut draft);
    firewall::read(&files, &zones, &mut draft);
    network::hosts(&files, &mut draft);
    let site = site::write(&mut draft);
    let mut notes = draft.notes;
    notes.0.sort_by_key(|note| note.kind);
    let names = [&files.network, &files.mwan3, &files.firewall, &files.dhcp];
    let names: Vec<_> = names.into_iter().flatten().map(|file| shown(&file.name)).collect();
    let mut head = format!("Imported from {}.\n", names.join(", "));
    write!(head, "{notes}").unwrap_or(());
    let head: String =
        head.lines().map(|line| format!("# {}", shown_whole(line)).trim_end().to_owned() + "\n").collect();
    Ok(Imported { site: head + "\n" + &site, notes })
}

/// As `shown`, and not cut.
fn shown_whole(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[derive(Debug)]
struct Files {
    network: Option<File>,
    mwan3: Option<File>,
    firewall: Option<File>,
    dhcp: Option<File>,
}

/// The site as far as it is known.
#[derive(Debug, Default)]
struct Draft {
    notes: Notes,
    wans: Vec<Wan>,
    vlans: Vec<Vlan>,
    /// Which line, and which VLAN, a network of OpenWrt became.
    wan_of: BTreeMap<String, usize>,
    vlan_of: BTreeMap<String, usize>,
    policies: Vec<Policy>,
    default_policy: Option<String>,
    steers: Vec<Steer>,
    cells: Vec<Cell>,
    egress: Vec<Egress>,
    hosts: Vec<(String, String)>,
}

#[derive(Debug, Default)]
struct Wan {
    name: String,
    interface: String,
    addresses: Vec<String>,
    gateway: Option<String>,
    gateway6: Option<String>,
    mtu: Option<u32>,
    metric: u32,
    /// Addresses stand in it that somebody must replace.
    placeholder4: bool,
    placeholder6: bool,
    /// Where it says that its provider gives addresses of IPv4, and of IPv6.
    dhcp4: Option<Place>,
    dhcp6: Option<Place>,
    /// The length of the prefix to ask for.
    prefix: Option<u8>,
    input: Vec<String>,
    targets: Vec<String>,
    /// Further keys of its probe, ready to be written.
    probe: Vec<String>,
    comments: Vec<String>,
}

impl Wan {
    fn is_leased(&self) -> bool {
        self.dhcp4.is_some() || self.dhcp6.is_some()
    }
}

#[derive(Debug, Default)]
struct Vlan {
    name: String,
    id: Option<u16>,
    addresses: Vec<String>,
    /// With whether frames are tagged there.
    ports: Vec<(String, bool)>,
    internet: Vec<String>,
    input: Vec<String>,
    comments: Vec<String>,
}

#[derive(Debug, Clone, Default)]
struct Policy {
    name: String,
    /// Line, weight, tier.
    members: Vec<(usize, u32, u32)>,
    last_resort: &'static str,
    balance: Option<&'static str>,
    comments: Vec<String>,
}

#[derive(Debug, Default)]
struct Steer {
    name: String,
    from: Option<String>,
    source: Vec<String>,
    destination: Vec<String>,
    source_ports: Vec<String>,
    ports: Vec<String>,
    policy: String,
}

#[derive(Debug, Default)]
struct Cell {
    name: String,
    from: Vec<usize>,
    to: Vec<usize>,
    /// `None` is any.
    services: Option<Vec<String>>,
    from_hosts: Vec<String>,
    hosts: Vec<String>,
    enabled: bool,
    comment: String,
}

#[derive(Debug, Default)]
struct Egress {
    name: String,
    to: Vec<String>,
    ports: Vec<String>,
}

/// A section while it is carried over: it knows which of its options were looked at, so that the rest can be told.
#[derive(Debug)]
struct Sec<'a> {
    file: &'a str,
    section: &'a Section,
    /// As `uci show` names it: `wan`, `@rule[3]`.
    label: String,
    taken: RefCell<BTreeSet<&'a str>>,
}

impl<'a> Sec<'a> {
    /// The sections of one kind.
    fn of(file: Option<&'a File>, kind: &str) -> Vec<Self> {
        let Some(file) = file else { return Vec::new() };
        let sections = file.sections.iter().filter(|section| section.kind == kind);
        let label = |(index, section): (usize, &Section)| match &section.name {
            Some(name) => name.clone(),
            None => format!("@{kind}[{index}]"),
        };
        let wrap = |(index, section)| Self {
            file: &file.name,
            section,
            label: label((index, section)),
            taken: RefCell::default(),
        };
        sections.enumerate().map(wrap).collect()
    }

    fn name(&self) -> &'a str {
        self.section.name.as_deref().unwrap_or("")
    }

    /// The value of an option without blanks around it; `None` where it is empty.
    fn text(&self, option: &str) -> Option<&'a str> {
        let setting = self.section.options.iter().find(|setting| setting.name == option)?;
        self.taken.borrow_mut().insert(&setting.name);
        setting.values.last().map(|value| value.text.trim()).filter(|text| !text.is_empty())
    }

    /// The words of an option or list, each with its line.
    fn list(&self, option: &str) -> Vec<(&'a str, u32)> {
        let Some(setting) = self.section.options.iter().find(|setting| setting.name == option) else {
            return Vec::new();
        };
        self.taken.borrow_mut().insert(&setting.name);
        let words = |value: &'a uci::Value| value.text.split_whitespace().map(move |word| (word, value.line));
        setting.values.iter().flat_map(words).collect()
    }

    fn flag(&self, option: &str, default: bool) -> bool {
        match self.text(option) {
            Some("1" | "on" | "true" | "yes" | "enabled") => true,
            Some("0" | "off" | "false" | "no" | "disabled") => false,
            Some(_) | None => default,
        }
    }

    fn number(&self, option: &str) -> Option<u32> {
        self.text(option)?.parse().ok()
    }

    fn has(&self, option: &str) -> bool {
        self.section.options.iter().any(|setting| setting.name == option)
    }

    /// Where an option stands, or the section if it is not there.
    fn at(&self, option: &str) -> Place {
        let Some(setting) = self.section.options.iter().find(|setting| setting.name == option) else {
            return self.here();
        };
        self.taken.borrow_mut().insert(&setting.name);
        // What opens a door is not repeated.
        let secret = ["password", "pincode", "private_key", "key", "psk", "preshared_key"].contains(&option);
        let values: Vec<_> = setting.values.iter().map(|value| shown(&value.text)).collect();
        let values = if secret { "…".to_owned() } else { values.join(" ") };
        let line = setting.values.first().map_or(self.section.line, |value| value.line);
        Place { file: self.file.to_owned(), line, what: format!("{}.{option} '{values}'", self.label) }
    }

    fn here(&self) -> Place {
        let told = self.section.options.iter().find(|setting| setting.name == "name").and_then(|s| s.values.last());
        let told = told.filter(|_| self.section.name.is_none());
        let told = told.map(|value| format!(" '{}'", shown(&value.text))).unwrap_or_default();
        let (kind, label) = (shown(&self.section.kind), shown(&self.label));
        let what = if self.section.name.is_some() { format!("{kind} {label}") } else { format!("{label}{told}") };
        Place { file: self.file.to_owned(), line: self.section.line, what }
    }

    /// Everything in the section counts as told by what was said of the section.
    fn settled(&self) {
        let names = self.section.options.iter().map(|setting| setting.name.as_str());
        self.taken.borrow_mut().extend(names);
    }

    /// The whole section is left out for this.
    fn out(&self, place: Place, why: &str, draft: &mut Draft) {
        self.settled();
        draft.notes.tell(Kind::Left, place, why);
    }

    /// Tells the options nothing looked at, with the reason if there is one for it.
    fn leave(&self, notes: &mut Notes, reasons: &[(&str, &str)]) {
        for setting in &self.section.options {
            if self.taken.borrow().contains(setting.name.as_str()) {
                continue;
            }
            let why = reasons.iter().find(|(option, _)| *option == setting.name).map_or(NO_COUNTERPART, |(_, why)| why);
            notes.tell(Kind::Left, self.at(&setting.name), why);
        }
    }
}

/// Sections of other kinds than these.
fn leave_others(file: Option<&File>, known: &[&str], reasons: &[(&str, &str)], notes: &mut Notes) {
    let Some(file) = file else { return };
    let kinds: BTreeSet<&str> = file.sections.iter().map(|section| section.kind.as_str()).collect();
    for kind in kinds.into_iter().filter(|kind| !known.contains(kind)) {
        let why = reasons.iter().find(|(of, _)| *of == kind).map_or(NO_COUNTERPART, |(_, why)| why);
        for section in Sec::of(Some(file), kind) {
            notes.tell(Kind::Left, section.here(), why);
        }
    }
}

const NO_COUNTERPART: &str = "a site file has nothing that corresponds to it";
