//! The lab: a whole site in network namespaces, with Internet lines that can be broken the way lines break.
//!
//! It is what `make lab` shows and what the whole-system tests run on. [`lab::Lab`] builds and breaks it,
//! [`world`] answers in it, [`traffic`] measures through it.

pub mod branch;
pub mod crowd;
pub mod demo;
pub mod failover;
pub mod frames;
pub mod lab;
pub mod link;
pub mod listing;
pub mod netns;
pub mod resolver;
pub mod root;
pub mod site;
pub mod tls;
pub mod traffic;
pub mod watch;
pub mod world;

/// How long to wait for what takes this long where nothing is slow: the guest is emulated.
pub fn patience(span: std::time::Duration) -> std::time::Duration {
    if std::env::var_os("QUADWAY_GUEST").is_some() { span * 5 } else { span }
}

/// Whether labs can be built here; if not, why. With `QUADWAY_MUST_RUN` set, as `make test` sets it, a test may
/// not be skipped for that.
pub fn can_run() -> anyhow::Result<()> {
    let possible = if nix::unistd::geteuid().is_root() {
        root::Root::find().map(drop)
    } else {
        Err(anyhow::anyhow!("network namespaces need root"))
    };
    match possible {
        Err(reason) if std::env::var_os("QUADWAY_MUST_RUN").is_some() => {
            panic!("this must run here, but {reason:#}")
        }
        other => other,
    }
}
