//! The last metre: what we want of the kernel, and what we find. Two methods; [`LinuxKernel`] does them, the fake
//! of the tests is `KernelState::apply` plus scripted faults.
//!
//! Below: netlink for links, addresses, rules, routes, conntrack, bucket maps and nflog; `nft` as a child process
//! for whole rulesets. Nothing on the failover path (`SetBuckets`, `Bury`, `Revive`) runs another program.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use config::Config;
use config::model::Kick;
use config::units::{Family, IfName, Mark};
use mwan::matrix::{self, Protocol};
use mwan::state::{AUDIT_GRACE, Address, FlowClass, LinkPair};
use mwan::{KernelState, Step};

use self::burial::Burials;
pub use self::burial::{Buried, Ledger};
pub use self::conntrack::Tuple;
use self::fast_path::FastPath;
use self::named::Lineage;
use self::netlink::{NETLINK_NETFILTER, NETLINK_ROUTE, Socket};
use self::rtnl::Rtnl;
use crate::counters::Counters;
use crate::talkers::Tally;

pub mod apart;
mod burial;
mod conntrack;
pub mod crypto;
mod elements;
pub mod fake;
pub mod fast_path;
pub mod feeder;
pub mod foreign;
mod interfaces;
mod kick;
mod links;
mod listing;
pub mod named;
mod netlink;
pub mod nflog;
mod routing;
mod rtnl;
mod ruleset;
pub(crate) mod sysctl;
pub mod trace;
pub mod tunnels;
pub mod watch;

/// The kernel could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {what} from the kernel: {source}")]
pub struct ObserveError {
    pub what: &'static str,
    #[source]
    pub source: io::Error,
}

/// One step failed. The next plan begins from a new observation.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct StepError {
    /// The step, told to a person: "add address 10.10.10.1/24 to vlan10".
    pub step: String,
    #[source]
    pub source: io::Error,
}

pub trait Kernel: Send {
    /// Everything of ours, and those ports and sysctls that `want` names.
    fn observe(&mut self, want: &KernelState) -> impl Future<Output = Result<KernelState, ObserveError>> + Send;

    /// Idempotent: what is already so is a success.
    fn apply(&mut self, step: &Step) -> impl Future<Output = Result<(), StepError>> + Send;
}

/// The kernel of the network namespace this was opened in.
#[derive(Debug)]
pub struct LinuxKernel {
    rtnl: Rtnl,
    table: ruleset::Table,
    burials: Burials,
    fast_path: FastPath,
}

impl LinuxKernel {
    /// `run` is the daemon's directory for what must survive a restart and not a reboot. Fails where `nft` is missing
    /// or too old.
    pub async fn open(run: &Path) -> io::Result<Self> {
        let table = ruleset::Table::open(run).await?;
        Ok(Self { rtnl: Rtnl::open()?, table, burials: Burials::open()?, fast_path: FastPath::none() })
    }

    /// With the programs of `source` at the ports, where the wanted state asks for them. Without this no packet meets
    /// any.
    #[must_use]
    pub fn with_fast_path(mut self, source: fast_path::Source) -> Self {
        self.fast_path = FastPath::new(source);
        self
    }

    pub fn fast_path(&self) -> fast_path::Watcher {
        self.fast_path.watcher()
    }

    /// What became of the flows of lines that were lost.
    pub fn ledger(&self) -> Ledger {
        self.burials.ledger()
    }

    /// Transactions of others in this process that change nothing of what is observed.
    pub fn lineage(&self) -> Lineage {
        self.table.lineage()
    }

    async fn carry_out(&mut self, step: &Step) -> io::Result<()> {
        let rtnl = &mut self.rtnl;
        match step {
            Step::CloseDoor => {
                self.fast_path.bump_all();
                self.table.close_door().await
            }
            Step::SetLink { name, link } => links::set(rtnl, name, link).await,
            Step::SetSysctl { name, value } | Step::SetLateSysctl { name, value } => sysctl::set(name, value),
            Step::AddAddress(address) => routing::add_address(rtnl, address).await,
            Step::SetRoute { key, hop } => routing::set_route(rtnl, key, hop).await,
            Step::AddRule(rule) => routing::add_rule(rtnl, rule).await,
            Step::LoadRuleset { ruleset, buckets, dead } => {
                // What other rules allowed is judged again.
                self.fast_path.watcher().close(dead.iter().copied().collect());
                self.fast_path.bump_all();
                self.burials.keep(dead);
                self.table.load(ruleset, buckets, dead).await
            }
            Step::SetFastPath(path) => {
                let links = links::Table::read(rtnl).await?;
                self.fast_path.set(path.as_deref(), &links).await;
                Ok(())
            }
            Step::EndAudit(pair) => {
                self.table.end_audit(pair)?;
                let links = links::Table::read(rtnl).await?;
                let addresses = routing::addresses(rtnl, &links).await?;
                end_audited_flows(pair.clone(), addresses).await
            }
            Step::BeginAudit { pair, span } => self.table.begin_audit(pair, *span + AUDIT_GRACE),
            Step::Revive(class) => {
                self.burials.stop(*class);
                self.table.remove_dead(*class)?;
                self.fast_path.watcher().reopen(*class);
                Ok(())
            }
            Step::SetBuckets { key, buckets } => self.table.set_buckets(key, buckets),
            Step::Bury(classes) => {
                let dead = classes.iter().map(|(class, _)| *class);
                // First the ruleset, which a flow that is called back meets: from then on nothing leaves by the line.
                let added = self.table.add_dead(dead.clone());
                self.fast_path.bump(dead);
                added?;
                self.burials.begin(classes.iter().copied().collect()).await
            }
            Step::DeleteRule(rule) => routing::delete_rule(rtnl, rule).await,
            Step::DeleteRoute(key) => routing::delete_route(rtnl, key).await,
            Step::DeleteAddress(address) => routing::delete_address(rtnl, address).await,
            Step::DeleteLink(name) => links::delete(rtnl, name).await,
        }
    }
}

impl Kernel for LinuxKernel {
    async fn observe(&mut self, want: &KernelState) -> Result<KernelState, ObserveError> {
        let rtnl = &mut self.rtnl;
        let links = read("links", links::Table::read(rtnl).await)?;
        let table = read("the nft table", self.table.observe())?;
        self.fast_path.watcher().close(table.dead.iter().copied().collect());
        Ok(KernelState {
            links: links.observed(want),
            addresses: read("addresses", routing::addresses(rtnl, &links).await)?,
            sysctls: read("sysctls", sysctl::observed(&want.sysctls))?,
            rules: read("rules", routing::rules(rtnl).await)?,
            routes: read("routes", routing::routes(rtnl, &links).await)?,
            ruleset: table.state,
            buckets: table.buckets,
            // The kernel knows which classes are dead, not what their inside ends were told.
            dead: table
                .dead
                .into_iter()
                .map(|class| (class, want.dead.get(&class).copied().unwrap_or(Kick::All)))
                .collect(),
            fast_path: self.fast_path.observe(want.fast_path.as_ref(), &links),
            audited: read("the audited pairs", self.table.audited())?,
        })
    }

    async fn apply(&mut self, step: &Step) -> Result<(), StepError> {
        self.carry_out(step).await.map_err(|source| StepError { step: step.to_string(), source })
    }
}

/// Everything the kernel counts for us, read on sockets of its own: any task may ask.
pub async fn counters() -> io::Result<Counters> {
    // Some hundred thousand flows take a tenth of a second to count.
    aside(|| {
        let mut socket = Socket::open(NETLINK_NETFILTER)?;
        let links = interfaces::links(&mut Socket::open(NETLINK_ROUTE)?)?;
        let (flows, conntrack) = (conntrack::count(&mut socket)?, sysctl::conntrack());
        Ok(Counters { flows, conntrack, links, ..elements::counters(&mut socket)? })
    })
    .await
}

/// Packets that the table refused. As quick where there are many flows.
pub async fn denials() -> io::Result<u64> {
    aside(|| elements::denials(&mut Socket::open(NETLINK_NETFILTER)?)).await
}

/// The live flows by line and by who opened them. As long a walk as that of [`counters`].
pub async fn talkers() -> io::Result<Tally> {
    aside(|| {
        let mut tally = Tally::default();
        conntrack::each(&mut Socket::open(NETLINK_NETFILTER)?, |class, source, bytes| {
            tally.add(class.map(|class| class.wan), source, bytes);
        })?;
        Ok(tally)
    })
    .await
}

/// Ends the flows that an audit let pass from one link to the other. The rules deny them already; without their entries
/// their ends begin anew under what the config says then.
async fn end_audited_flows((from, to): LinkPair, addresses: BTreeSet<Address>) -> io::Result<()> {
    aside(move || {
        let behind = |link: &IfName, host: IpAddr| {
            addresses.iter().any(|address| address.link == *link && address.net.contains(&host))
        };
        let condemned = |mark: Mark, tuple: conntrack::Tuple, _| {
            is_audited(mark) && behind(&from, tuple.source) && behind(&to, tuple.destination)
        };
        conntrack::sweep(&mut Socket::open(NETLINK_NETFILTER)?, condemned, true).map(drop)
    })
    .await
}

/// A flow that no cell allows, in the audit of one.
pub(crate) fn is_audited(mark: Mark) -> bool {
    mark.0 & FlowClass::MASK == Mark::AUDIT.0
}

/// How many live flows this config denies or leaves without their line; with `end`, none of them lives on.
pub async fn doomed_flows(config: Arc<Config>, end: bool) -> io::Result<u64> {
    aside(move || {
        let condemned = |mark, tuple: conntrack::Tuple, back: conntrack::Tuple| {
            let (source, destination) = (tuple.source_port, tuple.destination_port);
            let protocol = match tuple.protocol {
                6 => Protocol::Tcp { source, destination },
                17 => Protocol::Udp { source, destination },
                // Conntrack makes flows of ICMP queries only.
                1 | 58 => Protocol::Ping,
                other => Protocol::Other(other),
            };
            let class = FlowClass::from_mark(Family::of(tuple.source), mark);
            // An audit ends with the config it began under; what it let pass begins anew under this one.
            is_audited(mark)
                || class.is_some_and(|class| matrix::loses_line(&config, class, tuple.source, back.destination))
                || matrix::would_deny(&config, tuple.source, tuple.destination, protocol, class.map(|class| class.wan))
        };
        conntrack::sweep(&mut Socket::open(NETLINK_NETFILTER)?, condemned, end)
    })
    .await
}

/// Work that may take long enough to make others wait.
pub(crate) async fn aside<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

fn read<T>(what: &'static str, result: io::Result<T>) -> Result<T, ObserveError> {
    result.map_err(|source| ObserveError { what, source })
}
