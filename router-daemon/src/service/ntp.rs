//! The time: chrony, for the router's own clock and for the VLANs that may ask. It is asked how it fares over its unix
//! socket; its port for that in the network is shut.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use config::Config;
use config::model::Ntp;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::Places;
use super::component::{Component, Control, Folder, Reload, Rendered};

/// How the clock is, as chrony last told. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Clock(Arc<Mutex<Option<ClockStatus>>>);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ClockStatus {
    pub synchronised: bool,
    /// Servers of ours count from this; 0 while it is not synchronised.
    pub stratum: u8,
    /// How far the clock is ahead of the true time, as far as chrony knows.
    pub offset_seconds: f64,
    /// The server it follows, if any.
    pub server: Option<String>,
}

impl Clock {
    pub fn status(&self) -> Option<ClockStatus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tell(&self, status: Option<ClockStatus>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}

impl ClockStatus {
    /// A line of `status`.
    pub(crate) fn summary(&self) -> String {
        let Self { synchronised, stratum, offset_seconds, server } = self;
        match server {
            Some(server) if *synchronised => {
                format!("time: synchronised with {server}, stratum {stratum}, off by {offset_seconds:.6} s")
            }
            Some(_) | None => "time: not synchronised".to_owned(),
        }
    }
}

pub(super) fn component(config: &Config, places: &Places, clock: &Clock) -> Option<Component> {
    let Some(ntp) = &config.ntp else {
        clock.tell(None);
        return None;
    };
    let (run, state) = (places.run.join(NAME), places.state.join(NAME));
    let (file, socket) = (run.join("chrony.conf"), run.join("own").join("chronyd.sock"));
    let path = file.display().to_string();
    // In the foreground, with what it says on its standard error.
    let mut arguments = vec!["-d".to_owned(), "-f".to_owned(), path.clone()];
    if !ntp.set_clock {
        arguments.push("-x".to_owned());
    }
    Some(Component {
        name: NAME.to_owned(),
        package: "chrony",
        program: "chronyd".to_owned(),
        arguments,
        // It gives its rights up, and then makes files in these.
        folders: vec![
            Folder::new(&run, 0o755),
            Folder::new(run.join("own"), 0o750).of(USER),
            Folder::new(&state, 0o750).of(USER),
        ],
        files: vec![Rendered { path: file, text: settings(config, ntp, places), mode: 0o644 }],
        validator: Some(["chronyd", "-p", "-f", &path].map(str::to_owned).to_vec()),
        reload: Reload::Restart,
        control: Arc::new(Chrony { socket, clock: clock.clone() }),
        ..Component::default()
    })
}

fn settings(config: &Config, ntp: &Ntp, places: &Places) -> String {
    let (own, state) = (places.run.join(NAME).join("own"), places.state.join(NAME));
    let mut text = String::new();
    let mut line = |line: String| writeln!(text, "{line}").unwrap_or(());
    for server in &ntp.servers {
        line(format!("server {server} iburst"));
    }
    line(format!("driftfile {}", state.join("drift").display()));
    line(format!("pidfile {}", own.join("chronyd.pid").display()));
    line(format!("bindcmdaddress {}", own.join("chronyd.sock").display()));
    line("cmdport 0".to_owned());
    if ntp.set_clock {
        // Far off at a start, it is set at once; later it is only slowed down or sped up.
        line("makestep 1.0 3".to_owned());
        line("rtcsync".to_owned());
    }
    for net in ntp.vlans.iter().filter_map(|name| config.vlans.get(name)).flat_map(|vlan| &vlan.addresses) {
        line(format!("allow {}", net.trunc()));
    }
    text
}

#[derive(Debug)]
struct Chrony {
    socket: PathBuf,
    clock: Clock,
}

impl Control for Chrony {
    fn reload(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    /// That it has no server to follow is no failure of its own: the file is in force.
    fn verify<'a>(&'a self, _files: &'a [Rendered]) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async {
            let mut command = Command::new("chronyc");
            command.arg("-h").arg(&self.socket).args(["-c", "tracking"]).stdin(Stdio::null()).kill_on_drop(true);
            let output = command.output().await.map_err(|error| format!("cannot run chronyc: {error}"))?;
            let text = String::from_utf8_lossy(&output.stdout);
            if !output.status.success() {
                return Err(format!("chronyc: {}", text.trim()));
            }
            let status = tracking(text.trim()).ok_or_else(|| format!("chronyc says {:?}", text.trim()))?;
            self.clock.tell(Some(status));
            Ok(())
        })
    }
}

/// `C0000201,192.0.2.1,3,1763777777.1,0.000001,…,Normal`: the name, the stratum, and how far the clock is slow.
fn tracking(line: &str) -> Option<ClockStatus> {
    let fields: Vec<_> = line.split(',').collect();
    let [_, name, stratum, _, slow, ..] = fields.as_slice() else { return None };
    let synchronised = *fields.last()? != "Not synchronised";
    Some(ClockStatus {
        synchronised,
        stratum: stratum.parse().ok()?,
        // chrony tells what is to be added to the clock.
        offset_seconds: 0.0 - slow.parse::<f64>().ok()?,
        server: (synchronised && !name.is_empty()).then(|| (*name).to_owned()),
    })
}

const NAME: &str = "chrony";
const USER: &str = "_chrony";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_chronyc_says_is_read() {
        let line = "C0000201,192.0.2.1,3,1763777777.123456789,0.000012345,-0.000001,0.0001,-2.3,0.1,0.5,0.02,0.001,64.1,Normal";
        let status = tracking(line).unwrap();
        assert_eq!((status.synchronised, status.stratum), (true, 3));
        assert_eq!(status.server.as_deref(), Some("192.0.2.1"));
        assert!((status.offset_seconds + 0.000_012_345).abs() < 1e-12, "{status:?}");
        let none = "00000000,,0,0.000000000,0.000000000,0.0,0.0,0.000,0.000,0.000,1.0,1.0,0.0,Not synchronised";
        let wanted = ClockStatus { synchronised: false, stratum: 0, offset_seconds: 0.0, server: None };
        assert_eq!(tracking(none), Some(wanted));
        assert_eq!(tracking("506 Cannot talk to daemon"), None);
    }
}
