//! Making it true: netlink, nftables, sockets. Deciding is `mwan`'s; this crate carries facts in and steps out.

mod accept;
pub mod alarm;
pub mod apart;
pub mod api;
pub mod ask;
pub mod audits;
pub mod bundle;
pub mod counters;
pub mod crypto;
pub mod difference;
pub mod event_log;
pub mod event_loop;
#[cfg(test)]
mod fixture;
pub mod flows;
pub mod guard;
mod handshake;
pub mod happening;
pub mod history;
pub mod import;
pub mod journald;
pub mod kernel;
pub mod lease;
pub mod metrics;
pub mod outside;
pub mod passive;
pub mod probe;
pub mod reconcile;
mod resolve;
pub mod service;
pub mod session;
pub mod shell;
pub mod simulate;
pub mod status;
pub mod talkers;
pub mod trace;
pub mod tui;
