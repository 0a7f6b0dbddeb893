//! The last metre: what we want of the kernel, and what we find. Two methods; [`LinuxKernel`] does them, the fake
//! of the tests is `KernelState::apply` plus scripted faults.
//!
//! Below: netlink for links, addresses, rules, routes, conntrack, bucket maps and nflog; `nft` as a child process
//! for whole rulesets. Nothing on the failover path (`SetBuckets`, `Bury`, `Revive`) runs another program.

use std::future::Future;
use std::io;
use std::path::Path;

use mwan::{KernelState, Step};

use links::Table;
use netlink::{NETLINK_ROUTE, Socket};

mod links;
mod netlink;
mod routing;
mod sysctl;

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
    route: Socket,
}

impl LinuxKernel {
    /// `run` is the daemon's directory for what must survive a restart and not a reboot.
    pub async fn open(_run: &Path) -> io::Result<Self> {
        Ok(Self { route: Socket::open(NETLINK_ROUTE)? })
    }

    async fn carry_out(&mut self, step: &Step) -> io::Result<()> {
        match step {
            Step::SetLink { name, link } => links::set(&mut self.route, name, link),
            Step::SetSysctl { name, value } | Step::OpenForwarding { name, value } => sysctl::set(name, value),
            Step::AddAddress(address) => {
                let links = self.links()?;
                routing::add_address(&mut self.route, &links, address)
            }
            Step::SetRoute { key, hop } => {
                let links = self.links()?;
                routing::set_route(&mut self.route, &links, key, hop)
            }
            Step::AddRule(rule) => routing::add_rule(&mut self.route, rule),
            Step::CloseDoor
            | Step::LoadRuleset { .. }
            | Step::Revive(_)
            | Step::SetBuckets { .. }
            | Step::Bury { .. } => Err(io::ErrorKind::Unsupported.into()),
            Step::DeleteRule(rule) => routing::delete_rule(&mut self.route, rule),
            Step::DeleteRoute(key) => routing::delete_route(&mut self.route, key),
            Step::DeleteAddress(address) => {
                let links = self.links()?;
                routing::delete_address(&mut self.route, &links, address)
            }
            Step::DeleteLink(name) => links::delete(&mut self.route, name),
        }
    }

    fn links(&mut self) -> io::Result<Table> {
        Table::read(&mut self.route)
    }
}

impl Kernel for LinuxKernel {
    async fn observe(&mut self, want: &KernelState) -> Result<KernelState, ObserveError> {
        let links = read("links", self.links())?;
        Ok(KernelState {
            links: links.observed(want),
            addresses: read("addresses", routing::addresses(&mut self.route, &links))?,
            sysctls: read("sysctls", sysctl::observed(&want.sysctls))?,
            rules: read("rules", routing::rules(&mut self.route))?,
            routes: read("routes", routing::routes(&mut self.route, &links))?,
            ..KernelState::default()
        })
    }

    async fn apply(&mut self, step: &Step) -> Result<(), StepError> {
        self.carry_out(step).await.map_err(|source| StepError { step: format!("{step:?}"), source })
    }
}

fn read<T>(what: &'static str, result: io::Result<T>) -> Result<T, ObserveError> {
    result.map_err(|source| ObserveError { what, source })
}
