//! The config and the history of a box as one signed archive: what `routerctl save` writes and `routerctl restore`
//! reads. Bytes in, bytes out; only [`key`] touches the disk.
//!
//! A bundle is a plain tar archive, so that it can be looked into without a router:
//!
//! | member | |
//! |---|---|
//! | `manifest.json` | [`Manifest`]: who made it, when, of what, and the digest of each member below |
//! | `config.toml` | the config in force |
//! | `history/41.json` | an entry of the history as the state folder holds it; what waits for its confirmation is none |
//! | `signature.json` | the public key of the box, and its signature of every byte before this member |
//!
//! Nothing in it is packed, so nothing in it is larger than it. [`read`] believes no byte of it: a member that is no
//! file, that leads elsewhere, that is not named by the manifest or not as the manifest has it is refused by its name.
//! What it gives is whole and was signed by somebody; whether by somebody who counts here, [`Bundle::trusted`] says.

pub mod key;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::time::SystemTime;

use base64::prelude::{BASE64_STANDARD, Engine};
use config::Config;
use config::model::{Api, Hook, Identity, Material, Secret, Syslog, Tls, TlsCertificate, Webhook};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tar::{Archive, EntryType, Header};

use crate::ask::ApplyReport;
use crate::history::{Kept, Outcome, digest};

/// The one format there is.
pub const FORMAT: u32 = 1;
/// The largest bundle, in bytes: one travels in base64 in a line of the API.
pub const LARGEST: usize = 3_000_000;

/// What a bundle says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Manifest {
    /// Of the bundle; members may be added within one.
    pub format: u32,
    /// Of the routerd that made it.
    pub version: String,
    /// The box that made it.
    pub host: String,
    /// As the config names it.
    pub site: String,
    /// When; UTC.
    pub time: String,
    /// SHA-256 of the config's text.
    pub config: String,
    /// The files that the config names: keys, certificates, secrets, programs. None of them is in the bundle.
    pub files: BTreeSet<String>,
    /// Entries of the history there was no room for: the oldest.
    pub left_out: usize,
    /// SHA-256 of each other member, but of the signature.
    pub members: BTreeMap<String, String>,
}

/// What `save` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SaveReport {
    pub manifest: Manifest,
    /// SHA-256 of the public key: what `--trust` of another box wants.
    pub fingerprint: String,
    /// Ed25519, in base64.
    pub public_key: String,
    /// In base64.
    pub bundle: String,
}

/// What `restore` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RestoreReport {
    #[serde(flatten)]
    pub apply: ApplyReport,
    /// SHA-256 of the bundle.
    pub bundle: String,
    /// Of the key that signed it.
    pub fingerprint: String,
    /// The box that made it.
    pub host: String,
    /// When; UTC.
    pub time: String,
    /// Files that the config names and this box has not.
    pub missing: Vec<String>,
}

/// What a bundle is made of.
#[derive(Debug)]
pub struct Contents<'a> {
    pub text: &'a str,
    pub config: &'a Config,
    /// Oldest first.
    pub history: &'a [Kept],
    pub host: &'a str,
    pub now: SystemTime,
}

/// A bundle that is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    pub manifest: Manifest,
    pub text: String,
    /// Oldest first.
    pub history: Vec<Kept>,
    /// Of the key that signed it.
    pub fingerprint: String,
    /// SHA-256 of all of it.
    pub digest: String,
}

/// Why it is none, or not one for this box.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("a bundle has at most {LARGEST} bytes, and this has {0}")]
    TooLarge(usize),
    #[error("this is no bundle, or what is left of one: {0}")]
    NoArchive(String),
    #[error("{name}: {why}")]
    Member { name: String, why: String },
    #[error(
        "signature.json: the key of `{host}` that signed it is neither this box's nor one named with --trust\n  its \
         fingerprint is {fingerprint}; if `routerctl save` told the same when it made the bundle, add `--trust \
         {fingerprint}`"
    )]
    Untrusted { host: String, fingerprint: String },
}

impl Bundle {
    /// Whether it is signed by this box, or by whom an operator named.
    pub fn trusted(&self, own: &str, named: Option<&str>) -> Result<(), Unfit> {
        let signed_by = |key: &str| self.fingerprint.eq_ignore_ascii_case(key);
        if signed_by(own) || named.is_some_and(signed_by) {
            return Ok(());
        }
        Err(Unfit::Untrusted { host: self.manifest.host.clone(), fingerprint: self.fingerprint.clone() })
    }

    /// For the history: which one it was.
    pub fn title(&self) -> String {
        let Manifest { host, time, .. } = &self.manifest;
        format!("restored from bundle {} of {host}, {time}", self.digest.get(..12).unwrap_or(&self.digest))
    }
}

/// The files a config names.
pub fn files(config: &Config) -> BTreeSet<String> {
    let mut paths = Vec::new();
    if let Some(Api { certificate, key, client_ca, listen: _, vlan: _, clients: _ }) = &config.api {
        paths.extend([certificate, key, client_ca]);
    }
    for Syslog { tls, server: _, events: _, denied: _, queue: _, line: _ } in &config.syslog {
        if let Some(Tls { ca, identity, name: _ }) = tls {
            paths.push(ca);
            paths.extend(identity.iter().flat_map(|Identity { certificate, key }| [certificate, key]));
        }
    }
    for Webhook { secret, ca, url: _, events: _, timeout: _, line: _ } in &config.webhooks {
        paths.extend(secret.iter().map(|Secret { file, header: _ }| file));
        paths.extend(ca);
    }
    paths.extend(config.hooks.iter().map(|Hook { run, events: _, timeout: _, line: _ }| run));
    for offload in config.tls_offload.values() {
        for TlsCertificate { certificate, key, ocsp, names: _ } in &offload.certificates {
            paths.extend([certificate, key].into_iter().filter_map(|material| match material {
                Material::File(path) => Some(path),
                Material::Credential(_) => None,
            }));
            paths.extend(ocsp);
        }
        paths.extend(offload.clients.as_ref().map(|clients| &clients.ca));
        paths.extend(offload.backend_tls.as_ref().and_then(|tls| tls.ca.as_ref()));
    }
    paths.into_iter().map(|path| path.display().to_string()).collect()
}

/// The files of a list that this machine has not.
pub fn missing(files: &BTreeSet<String>) -> Vec<String> {
    files.iter().filter(|file| !Path::new(file).exists()).cloned().collect()
}

/// SHA-256 of a public key.
pub fn fingerprint(key: &Ed25519KeyPair) -> String {
    digest(key.public_key().as_ref())
}

/// A bundle of this, and what it says of itself. Where there is no room for all of the history, the oldest is left out.
pub fn make(contents: &Contents<'_>, key: &Ed25519KeyPair) -> Result<(Vec<u8>, Manifest), Unfit> {
    let Contents { text, config, history, host, now } = *contents;
    let mut files = vec![(CONFIG.to_owned(), text.as_bytes().to_vec())];
    let mut room = LARGEST.saturating_sub(MANIFEST_ROOM + padded(text.len()));
    if room == 0 {
        return Err(Unfit::TooLarge(text.len() + MANIFEST_ROOM));
    }
    let decided: Vec<_> = history.iter().filter(|kept| kept.entry.outcome != Outcome::Unconfirmed).collect();
    for kept in decided.iter().rev() {
        let contents = serde_json::to_vec(kept).map_err(|error| Unfit::NoArchive(error.to_string()))?;
        let Some(left) = room.checked_sub(padded(contents.len())) else { break };
        room = left;
        files.push((format!("{HISTORY}{}.json", kept.entry.number), contents));
    }
    files[1..].reverse();
    let manifest = Manifest {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: host.to_owned(),
        site: config.site.clone(),
        time: humantime::format_rfc3339_seconds(now).to_string(),
        config: digest(text),
        files: self::files(config),
        left_out: decided.len() - (files.len() - 1),
        members: files.iter().map(|(name, contents)| (name.clone(), digest(contents))).collect(),
    };
    let told = serde_json::to_vec_pretty(&manifest).map_err(|error| Unfit::NoArchive(error.to_string()))?;
    files.insert(0, (MANIFEST.to_owned(), told));
    let bytes = pack(files.iter().map(|(name, contents)| (name.as_str(), contents.as_slice())), key);
    if bytes.len() > LARGEST {
        return Err(Unfit::TooLarge(bytes.len()));
    }
    Ok((bytes, manifest))
}

/// These members, and the signature of them.
pub fn pack<'a>(files: impl IntoIterator<Item = (&'a str, &'a [u8])>, key: &Ed25519KeyPair) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, contents) in files {
        put(&mut bytes, name, contents);
    }
    let seal = Seal {
        public_key: BASE64_STANDARD.encode(key.public_key()),
        signature: BASE64_STANDARD.encode(key.sign(message(&bytes).as_bytes())),
    };
    bytes.extend(seal.written());
    bytes
}

/// What is in it, if it is whole and signed.
pub fn read(bytes: &[u8]) -> Result<Bundle, Unfit> {
    if bytes.len() > LARGEST {
        return Err(Unfit::TooLarge(bytes.len()));
    }
    let Members { mut files, seal, signed } = Members::of(bytes)?;
    let manifest = Manifest::read(files.remove(MANIFEST).ok_or_else(|| unfit(MANIFEST, "is not there"))?)?;
    if let Some(name) = files.keys().find(|name| !manifest.members.contains_key(*name)) {
        return Err(unfit(name, "the manifest does not name it"));
    }
    for (name, right) in &manifest.members {
        let contents = files.get(name).ok_or_else(|| unfit(name, "is not there, and the manifest names it"))?;
        if digest(contents) != *right {
            return Err(unfit(name, "its SHA-256 is not the manifest's: it was changed or damaged"));
        }
    }
    let text = files.get(CONFIG).ok_or_else(|| unfit(CONFIG, "is not there"))?;
    let text = std::str::from_utf8(text).map_err(|error| unfit(CONFIG, error))?.to_owned();
    if digest(&text) != manifest.config {
        return Err(unfit(CONFIG, "the manifest gives its SHA-256 twice, and not the same"));
    }
    let mut history = Vec::new();
    for (name, contents) in &files {
        if let Some(Name::History(number)) = Name::of(name) {
            history.push(entry(name, number, contents)?);
        }
    }
    history.sort_by_key(|kept: &Kept| kept.entry.number);
    let fingerprint = seal.verify(&bytes[..signed])?;
    if bytes[signed..] != seal.written() {
        return Err(unfit(SIGNATURE, "something beside the signature is in it, or follows it, or is cut off"));
    }
    Ok(Bundle { manifest, text, history, fingerprint, digest: digest(bytes) })
}

impl Manifest {
    fn read(bytes: &[u8]) -> Result<Self, Unfit> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let Format { format } = serde_json::from_slice(bytes).map_err(|error| unfit(MANIFEST, error))?;
        if format != FORMAT {
            let why =
                format!("its format is {format}, and this routerd reads {FORMAT}: restore it with a later version");
            return Err(unfit(MANIFEST, why));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| unfit(MANIFEST, error))?;
        // These are shown to a person before anybody has said that he trusts the key.
        for (what, word) in [("host", &manifest.host), ("version", &manifest.version)] {
            if word.is_empty() || word.len() > 255 || !word.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(unfit(MANIFEST, format!("`{what}` is no name")));
            }
        }
        humantime::parse_rfc3339(&manifest.time).map_err(|error| unfit(MANIFEST, format!("`time`: {error}")))?;
        Ok(manifest)
    }
}

/// A member that belongs into a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name {
    Manifest,
    Config,
    History(u64),
    Signature,
}

impl Name {
    fn of(name: &str) -> Option<Self> {
        match name {
            MANIFEST => Some(Self::Manifest),
            CONFIG => Some(Self::Config),
            SIGNATURE => Some(Self::Signature),
            _ => {
                let number: u64 = name.strip_prefix(HISTORY)?.strip_suffix(".json")?.parse().ok()?;
                // One number has one name.
                (number > 0 && name == format!("{HISTORY}{number}.json")).then_some(Self::History(number))
            }
        }
    }
}

/// What an archive holds, by name.
struct Members<'a> {
    /// All but the signature.
    files: BTreeMap<String, &'a [u8]>,
    seal: Seal,
    /// How many bytes are signed.
    signed: usize,
}

impl<'a> Members<'a> {
    fn of(bytes: &'a [u8]) -> Result<Self, Unfit> {
        let broken = |error: std::io::Error| Unfit::NoArchive(error.to_string());
        let (mut files, mut sealed) = (BTreeMap::new(), None);
        // Raw: what would stand for other members (long names, sparse files) is a member, of a kind that is refused.
        for member in Archive::new(bytes).entries().map_err(broken)?.raw(true) {
            let member = member.map_err(broken)?;
            let name = shown(&member.path_bytes());
            if sealed.is_some() {
                return Err(unfit(&name, "it follows the signature, which is the last member"));
            }
            let kind = member.header().entry_type();
            if kind != EntryType::Regular {
                return Err(unfit(&name, format!("it is {}, and a bundle holds files alone", kind_told(kind))));
            }
            let Some(known) = Name::of(&name) else {
                let leads_out = name.starts_with('/') || name.split('/').any(|part| part == "..");
                let why = if leads_out { "it leads out of the bundle" } else { "it does not belong into a bundle" };
                return Err(unfit(&name, why));
            };
            let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
            let (begin, size) = (place(member.raw_file_position()), place(member.size()));
            let Some(contents) = begin.checked_add(size).and_then(|end| bytes.get(begin..end)) else {
                let left = bytes.len().saturating_sub(begin);
                return Err(unfit(&name, format!("it says that it has {size} bytes, and {left} are left: cut off")));
            };
            if known == Name::Signature {
                let seal = serde_json::from_slice(contents).map_err(|error| unfit(SIGNATURE, error))?;
                sealed = Some((seal, place(member.raw_header_position())));
            } else if files.insert(name.clone(), contents).is_some() {
                return Err(unfit(&name, "it is there twice"));
            } else if files.len() > MOST_MEMBERS {
                return Err(unfit(&name, format!("a bundle has at most {MOST_MEMBERS} members beside its signature")));
            }
        }
        let (seal, signed) = sealed.ok_or_else(|| unfit(SIGNATURE, "is not there: cut off, or never signed"))?;
        Ok(Self { files, seal, signed })
    }
}

/// The last member.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seal {
    public_key: String,
    signature: String,
}

impl Seal {
    /// The fingerprint of who signed these bytes.
    fn verify(&self, signed: &[u8]) -> Result<String, Unfit> {
        let read = |text: &str| {
            BASE64_STANDARD.decode(text).map_err(|error| unfit(SIGNATURE, format!("it is no base64: {error}")))
        };
        let (key, signature) = (read(&self.public_key)?, read(&self.signature)?);
        UnparsedPublicKey::new(&ED25519, &key).verify(message(signed).as_bytes(), &signature).map_err(
            |_unspecified| {
                unfit(
                    SIGNATURE,
                    "it is not the signature of this bundle: something in it was changed after it was signed",
                )
            },
        )?;
        Ok(digest(&key))
    }

    /// The member and the end of the archive: always the same bytes.
    fn written(&self) -> Vec<u8> {
        let Self { public_key, signature } = self;
        let mut bytes = Vec::new();
        // Base64 has nothing that JSON quotes.
        let text = format!("{{\"public_key\":\"{public_key}\",\"signature\":\"{signature}\"}}\n");
        put(&mut bytes, SIGNATURE, text.as_bytes());
        bytes.resize(bytes.len() + 2 * BLOCK, 0);
        bytes
    }
}

/// What is signed: the key may come to sign other things too.
fn message(bytes: &[u8]) -> String {
    format!("Quadway bundle {FORMAT}\n{}\n", digest(bytes))
}

fn entry(name: &str, number: u64, contents: &[u8]) -> Result<Kept, Unfit> {
    let kept: Kept = serde_json::from_slice(contents).map_err(|error| unfit(name, error))?;
    let why = if kept.entry.number != number {
        "the number in it is another"
    } else if kept.entry.digest != digest(&kept.text) {
        "the SHA-256 in it is not that of its text"
    } else if kept.entry.outcome == Outcome::Unconfirmed {
        "it waits for a confirmation"
    } else {
        return Ok(kept);
    };
    Err(unfit(name, why))
}

fn put(bytes: &mut Vec<u8>, name: &str, contents: &[u8]) {
    let mut header = Header::new_ustar();
    #[expect(clippy::expect_used, reason = "the names of members are short and ours")]
    header.set_path(name).expect("a short relative path");
    header.set_entry_type(EntryType::Regular);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(contents.len() as u64);
    header.set_cksum();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(contents);
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
}

/// With its header.
fn padded(contents: usize) -> usize {
    contents.next_multiple_of(BLOCK) + BLOCK
}

fn unfit(name: &str, why: impl fmt::Display) -> Unfit {
    Unfit::Member { name: name.to_owned(), why: why.to_string() }
}

/// A name from elsewhere, as a terminal may have it.
fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).escape_debug().to_string()
}

fn kind_told(kind: EntryType) -> &'static str {
    if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_hard_link() {
        "a hard link"
    } else if kind.is_dir() {
        "a folder"
    } else if kind.is_character_special() || kind.is_block_special() {
        "a device"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_gnu_sparse() {
        "a sparse file"
    } else {
        "something that stands for other members"
    }
}

const MANIFEST: &str = "manifest.json";
const CONFIG: &str = "config.toml";
const HISTORY: &str = "history/";
const SIGNATURE: &str = "signature.json";
/// More than the history keeps.
const MOST_MEMBERS: usize = 200;
/// What is left to the manifest, the signature and the end of the archive.
const MANIFEST_ROOM: usize = 100_000;
const BLOCK: usize = 512;

#[cfg(test)]
mod tests;
