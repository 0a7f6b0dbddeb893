//! IPsec to other sites by strongSwan's charon, which the supervisor runs. Nothing of a tunnel is in its file: connections
//! and what proves who we are go to it over VICI, so that no secret is written anywhere.
//!
//! ```text
//!   config ──▶ strongswan.conf ──▶ supervisor ──▶ charon-systemd ◀── VICI ── driver.rs: loads, calls, looks ──▶ Tunnels
//!   health ──▶ mwan: the line of each tunnel ──▶ route to the other end ──▶ charon sees it and moves
//! ```
//!
//! **How a tunnel moves.** charon takes the routes of one table of ours for the way to its peers, and for the source
//! address there, and looks again when one changes. So the routes are the failover, without a call from here: a peer with
//! MOBIKE (RFC 4555) is told the other address, one without gets a second association before the first is dropped. What
//! still leaves from the old address leaves by the old line, until the peer has answered.
//!
//! **Without ESP in the kernel** charon does it itself, over one TUN device for all there is (kernel-libipsec): that is
//! for one tunnel whose `interface` is `ipsec0`, and slow.

mod driver;
mod vici;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use config::Config;
use config::units::{Mark, WanId};
use futures_util::future::BoxFuture;

pub use self::driver::{Rekey, start};
use super::Places;
use super::component::{Component, Control, Folder, Reload, Rendered};
use crate::kernel::tunnels;

/// charon, where a tunnel needs it.
pub(super) fn component(config: &Config, places: &Places) -> Option<Component> {
    config.tunnels().find_map(|(_, tunnel)| tunnel.ipsec())?;
    let run = places.run.join(NAME);
    let file = run.join("strongswan.conf");
    let path = |path: &Path| path.display().to_string();
    Some(Component {
        name: NAME.to_owned(),
        package: "charon-systemd strongswan-swanctl libstrongswan-standard-plugins libcharon-extra-plugins",
        program: "charon-systemd".to_owned(),
        environment: [("STRONGSWAN_CONF".to_owned(), path(&file))].into(),
        folders: vec![Folder::new(&run, 0o700)],
        files: vec![Rendered { path: file, text: settings(&run, tunnels::has_esp()), mode: 0o600 }],
        reload: Reload::Restart,
        control: Arc::new(Charon { socket: socket(&run) }),
        ..Component::default()
    })
}

fn socket(run: &Path) -> PathBuf {
    run.join("charon.vici")
}

fn settings(run: &Path, esp: bool) -> String {
    // First come, first served: whichever plugin offers ESP before the other has it.
    let own_esp = if esp { "" } else { "kernel-libipsec " };
    // Of all routes charon shall believe those of one table, or any line would do.
    let mut others = String::new();
    for table in 1000..=1000 + u32::from(WanId::MAX) + 1 {
        write!(others, " {table}").unwrap_or(());
    }
    let (socket, mark) = (socket(run), Mark::TUNNEL);
    let socket = socket.display();
    format!(
        "charon-systemd {{
    load_modular = no
    load = {own_esp}random nonce openssl pem pkcs1 pkcs8 x509 pubkey constraints revocation drbg gcm kernel-netlink socket-default vici
    # The rule for its own routes comes after those that are ours.
    routing_table_prio = {RULE}
    ignore_routing_tables ={others}
    # A connection that is asked for is a new one, and the old goes when that stands.
    reuse_ikesa = no
    make_before_break = yes
    retransmit_timeout = 1.0
    retransmit_base = 1.5
    retransmit_tries = 4
    plugins {{
        vici {{
            socket = unix://{socket}
        }}
        socket-default {{
            fwmark = {mark}
        }}
    }}
    journal {{
        default = -1
    }}
    syslog {{
        daemon {{
            default = -1
        }}
        auth {{
            default = -1
        }}
    }}
    filelog {{
        stderr {{
            path = stderr
            default = 0
            ike = 1
            flush_line = yes
        }}
    }}
}}
"
    )
}

/// charon answers. What it has been told is the driver's business.
#[derive(Debug)]
struct Charon {
    socket: PathBuf,
}

impl Control for Charon {
    fn reload(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn verify<'a>(&'a self, _files: &'a [Rendered]) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async { vici::Charon::at(&self.socket).await?.version().await.map(drop) })
    }
}

const NAME: &str = "charon";
/// Behind all of ours, which end at 13000.
const RULE: u32 = 20_000;
/// Nothing of VICI takes longer where charon lives.
const ANSWER: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charon_believes_no_table_of_a_line_and_does_esp_only_where_the_kernel_does_not() {
        let text = settings(Path::new("/run/quadway/charon"), true);
        assert!(text.contains("ignore_routing_tables = 1000 1001 ") && text.contains(" 1120 1121\n"), "{text}");
        assert!(text.contains("fwmark = 0x7d000000") && !text.contains("libipsec"), "{text}");
        assert!(settings(Path::new("/r"), false).contains("load = kernel-libipsec "));
    }
}
