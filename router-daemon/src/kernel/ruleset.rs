//! The table `inet quadway` as a whole. `nft` runs as a child with the script on its standard input: libnftables
//! has crashed on inputs, and a crash of the child costs one failed step.
//!
//! The kernel rewrites what it is given, so what stands there cannot be compared with the text that was loaded.
//! Instead the table is listed once after loading, and the digest of that is the baseline that later listings must
//! equal. It is kept in the run directory under the generation it belongs to, so that a restarted daemon adopts
//! what it finds.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use mwan::script::{Inventory, close_door_script};
use mwan::state::{BucketKey, Buckets, FlowClass, LinkPair, Ruleset, RulesetState};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::elements::{self, Generation};
use super::listing::Listing;
use super::named::Lineage;
use super::netlink::{NETLINK_NETFILTER, Socket, errno};

/// The table as it stands.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) state: RulesetState,
    pub(crate) buckets: BTreeMap<BucketKey, Buckets>,
    pub(crate) dead: BTreeSet<FlowClass>,
    inventory: Inventory,
}

#[derive(Debug)]
pub(crate) struct Table {
    nft: Nft,
    socket: Socket,
    baseline: Baseline,
    baseline_file: PathBuf,
    /// What stood there at this generation. Valid as long as the kernel still has it.
    seen: Option<(Generation, Seen)>,
    /// Generations since which nothing differs that is seen here.
    lineage: Lineage,
}

/// Which listing belongs to which generation of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Baseline {
    generation: String,
    listing: String,
    /// The rules as they were given to nft.
    #[serde(default)]
    chains: BTreeMap<String, Vec<String>>,
}

impl Table {
    pub(crate) async fn open(run: &Path) -> io::Result<Self> {
        let baseline_file = run.join("ruleset.json");
        // Missing or damaged: the table is then loaded again.
        let baseline = std::fs::read(&baseline_file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let nft = Nft::find().await?;
        let mut socket = Socket::open(NETLINK_NETFILTER)?;
        Generation::read(&mut socket).map_err(|error| match errno(&error).map(Errno::from_raw) {
            // What nfnetlink says of a part that is not there (net/netfilter/nfnetlink.c).
            Some(Errno::EINVAL) => io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel has no nf_tables, and its module cannot be loaded; see what `modprobe nf_tables` says",
            ),
            _ => error,
        })?;
        Ok(Self {
            nft,
            socket,
            baseline: baseline.unwrap_or_default(),
            baseline_file,
            seen: None,
            lineage: Lineage::default(),
        })
    }

    /// Costs one question to the kernel while no nft transaction has happened anywhere in the namespace.
    pub(crate) fn observe(&mut self) -> io::Result<Seen> {
        for _ in 0..TRIES {
            let before = Generation::read(&mut self.socket)?;
            if let Some(seen) = self.still(before) {
                return Ok(seen.clone());
            }
            let seen = self.read()?;
            if Generation::read(&mut self.socket)? == before {
                self.seen = Some((before, seen.clone()));
                return Ok(seen);
            }
        }
        Err(io::Error::other("somebody else keeps changing nftables"))
    }

    /// Everything at once: rules, buckets and dead classes.
    pub(crate) async fn load(
        &mut self,
        ruleset: &Ruleset,
        buckets: &[(BucketKey, Buckets)],
        dead: &[FlowClass],
    ) -> io::Result<()> {
        let found = self.observe()?;
        let known = matches!(found.state, RulesetState::Installed(_));
        let inventory = Inventory {
            rules: if known { self.baseline.chains.clone() } else { BTreeMap::new() },
            buckets: found.buckets,
            dead: found.dead,
            ..found.inventory
        };
        let gentle = ruleset.script(&inventory, buckets, dead);
        if let Err(error) = self.nft.load(&gentle).await {
            if found.state == RulesetState::Absent {
                return Err(error);
            }
            tracing::warn!(%error, "the table cannot be changed into the wanted one and is replaced, counters and all");
            self.nft.load(&ruleset.script_from_nothing(buckets, dead)).await?;
        }
        let before = Generation::read(&mut self.socket)?;
        let listing = Listing::read(&mut self.socket)?;
        if !listing.inventory.chains.contains(&generation_chain(&ruleset.generation)) {
            return Err(io::Error::other("nft reported success, and the table is not there"));
        }
        self.baseline = Baseline {
            generation: ruleset.generation.clone(),
            listing: listing.digest.clone(),
            chains: ruleset.chains.clone(),
        };
        save(&self.baseline_file, &self.baseline)?;
        let seen = self.seen_in(listing)?;
        self.seen = (Generation::read(&mut self.socket)? == before).then_some((before, seen));
        Ok(())
    }

    /// Denies everything but the router itself, where there is no table of ours.
    pub(crate) async fn close_door(&mut self) -> io::Result<()> {
        if elements::table_exists(&mut self.socket)? {
            return Ok(());
        }
        self.nft.load(&close_door_script()).await
    }

    pub(crate) fn set_buckets(&mut self, key: &BucketKey, want: &Buckets) -> io::Result<()> {
        self.change(|socket, generation, seen| {
            let have = seen.and_then(|seen| seen.buckets.get(key));
            elements::set_buckets(socket, generation, key, have, want)
        })?;
        // Read back: what is buried next must not be chosen again.
        if elements::buckets(&mut self.socket, key)?.as_ref() != Some(want) {
            self.seen = None;
            return Err(io::Error::other("the buckets are not what was written"));
        }
        if let Some((_, seen)) = &mut self.seen {
            seen.buckets.insert(key.clone(), want.clone());
        }
        Ok(())
    }

    pub(crate) fn add_dead(&mut self, classes: impl Iterator<Item = FlowClass>) -> io::Result<()> {
        let unknown: Vec<_> = classes.filter(|class| self.knows(*class) != Some(true)).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        self.change(|socket, generation, _| elements::add_dead(socket, generation, &unknown))?;
        if let Some((_, seen)) = &mut self.seen {
            seen.dead.extend(unknown);
        }
        Ok(())
    }

    pub(crate) fn remove_dead(&mut self, class: FlowClass) -> io::Result<()> {
        if self.knows(class) == Some(false) {
            return Ok(());
        }
        self.change(|socket, generation, _| elements::remove_dead(socket, generation, class))?;
        if let Some((_, seen)) = &mut self.seen {
            seen.dead.remove(&class);
        }
        Ok(())
    }

    /// What passes for an audit. Asked each time: the kernel takes elements out without a transaction.
    pub(crate) fn audited(&mut self) -> io::Result<BTreeMap<LinkPair, Duration>> {
        elements::audited(&mut self.socket)
    }

    pub(crate) fn begin_audit(&mut self, pair: &LinkPair, timeout: Duration) -> io::Result<()> {
        self.change(|socket, generation, _| elements::add_audited(socket, generation, pair, timeout))
    }

    pub(crate) fn end_audit(&mut self, pair: &LinkPair) -> io::Result<()> {
        self.change(|socket, generation, _| elements::remove_audited(socket, generation, pair))
    }

    /// Whether a class is dead, where what was seen still stands.
    fn knows(&mut self, class: FlowClass) -> Option<bool> {
        let now = Generation::read(&mut self.socket).ok()?;
        self.still(now).map(|seen| seen.dead.contains(&class))
    }

    /// What was seen, if it is so at this generation too.
    fn still(&mut self, now: Generation) -> Option<&Seen> {
        let Self { seen, lineage, .. } = self;
        let (then, seen) = seen.as_mut()?;
        if *then != now {
            if !lineage.joins(*then, now) {
                return None;
            }
            *then = now;
        }
        Some(seen)
    }

    pub(crate) fn lineage(&self) -> Lineage {
        self.lineage.clone()
    }

    /// One transaction of ours. What was seen stays valid across it, unless somebody else's came between.
    fn change(
        &mut self,
        transaction: impl Fn(&mut Socket, Generation, Option<&Seen>) -> io::Result<()>,
    ) -> io::Result<()> {
        for _ in 0..TRIES {
            let before = Generation::read(&mut self.socket)?;
            self.still(before);
            let known = self.seen.take().filter(|(generation, _)| *generation == before).map(|(_, seen)| seen);
            match transaction(&mut self.socket, before, known.as_ref()) {
                Ok(()) => {
                    let after = Generation::read(&mut self.socket)?;
                    // Equal: there was nothing to change.
                    self.seen = known.filter(|_| after == before || after == before.next()).map(|seen| (after, seen));
                    return Ok(());
                }
                Err(error) if errno(&error) == Some(ERESTART) => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("somebody else keeps changing nftables"))
    }

    fn read(&mut self) -> io::Result<Seen> {
        if !elements::table_exists(&mut self.socket)? {
            return Ok(Seen::default());
        }
        let listing = Listing::read(&mut self.socket)?;
        self.seen_in(listing)
    }

    /// The listing, with the live elements it does not show.
    fn seen_in(&mut self, listing: Listing) -> io::Result<Seen> {
        let Baseline { generation, listing: digest, .. } = &self.baseline;
        let adopted = *digest == listing.digest && listing.inventory.chains.contains(&generation_chain(generation));
        let state = if adopted {
            RulesetState::Installed(Ruleset {
                generation: generation.clone(),
                sets: BTreeMap::new(),
                maps: BTreeMap::new(),
                chains: BTreeMap::new(),
            })
        } else {
            RulesetState::Unknown
        };
        let mut buckets = BTreeMap::new();
        for key in listing.inventory.maps.iter().filter_map(|name| BucketKey::from_map_name(name)) {
            if let Some(found) = elements::buckets(&mut self.socket, &key)? {
                buckets.insert(key, found);
            }
        }
        Ok(Seen { state, buckets, dead: elements::dead(&mut self.socket)?, inventory: listing.inventory })
    }
}

fn generation_chain(generation: &str) -> String {
    format!("gen_{generation}")
}

/// Written beside and moved into place: a crash leaves the old one or the new one.
fn save(file: &Path, baseline: &Baseline) -> io::Result<()> {
    let draft = file.with_extension("draft");
    std::fs::write(&draft, serde_json::to_vec(baseline)?)?;
    std::fs::rename(draft, file)
}

/// The program.
#[derive(Debug)]
struct Nft(OsString);

impl Nft {
    /// `QUADWAY_NFT`, else `nft` on PATH, if it is new enough.
    async fn find() -> io::Result<Self> {
        let nft = Self(std::env::var_os("QUADWAY_NFT").unwrap_or_else(|| "nft".into()));
        let version = nft.run(&["--version"], None).await?;
        let version = String::from_utf8_lossy(&version).trim().to_owned();
        if !is_new_enough(&version) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!(
                    "{} is {version:?}: older versions than 1.1.3 misread maps; install nftables 1.1.3 or later, or \
                     name one in QUADWAY_NFT",
                    nft.name()
                ),
            ));
        }
        Ok(nft)
    }

    async fn load(&self, script: &str) -> io::Result<()> {
        self.run(&["-f", "-"], Some(script)).await.map(drop)
    }

    async fn run(&self, arguments: &[&str], input: Option<&str>) -> io::Result<Vec<u8>> {
        let mut child = Command::new(&self.0)
            .args(arguments)
            .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                let remedy = "install nftables 1.1.3 or later, or name one in QUADWAY_NFT";
                io::Error::new(error.kind(), format!("cannot run {}: {error}; {remedy}", self.name()))
            })?;
        let stdin = child.stdin.take();
        let conversation = async {
            if let (Some(mut stdin), Some(input)) = (stdin, input) {
                // A child that gives up early says why on its standard error.
                let _broken_pipe = stdin.write_all(input.as_bytes()).await;
            }
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(PATIENCE, conversation)
            .await
            .map_err(|_elapsed| io::Error::new(io::ErrorKind::TimedOut, format!("{} hangs", self.name())))??;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let words = String::from_utf8_lossy(&output.stderr);
        let words: Vec<_> = words.lines().take(WORDS).collect();
        Err(io::Error::other(format!(
            "{} {}: {}: {}",
            self.name(),
            arguments.join(" "),
            output.status,
            words.join("\n")
        )))
    }

    fn name(&self) -> String {
        self.0.to_string_lossy().into_owned()
    }
}

/// `nftables v1.1.3 (Commodore Bullmoose #4)`
fn is_new_enough(version: &str) -> bool {
    let number = version.split_whitespace().find_map(|word| word.strip_prefix('v')).unwrap_or_default();
    let parts: Vec<u32> = number.split('.').map_while(|part| part.parse().ok()).collect();
    parts >= vec![1, 1, 3]
}

/// Another transaction came between: the batch is asked again.
const ERESTART: i32 = 85;
const TRIES: usize = 16;
/// A table of thousands of rules takes a second on the smallest machines.
const PATIENCE: Duration = Duration::from_secs(30);
/// Lines of an nft error worth repeating.
const WORDS: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_versions_are_refused() {
        for (version, fine) in [
            ("nftables v1.0.6 (Lester Gooch #5)", false),
            ("nftables v1.1.2 (x)", false),
            ("nftables v1.1.3 (Commodore Bullmoose #4)", true),
            ("nftables v1.1.10 (x)", true),
            ("nftables v2.0 (x)", true),
            ("", false),
            ("nftables", false),
        ] {
            assert_eq!(is_new_enough(version), fine, "{version}");
        }
    }
}
