//! Tells charon of the tunnels, calls their other ends, and looks how they are. On a thread of its own. Rounds are short and
//! repeat: each finds charon as it is, so that one that was killed is told everything again.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use config::Config;
use config::model::{CipherProfile, Ipsec, Proof, Vlan};
use config::units::{IfName, Mark, WanName};
use futures_util::future::BoxFuture;
use mwan::KernelState;
use tokio::runtime::Builder;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep};
use tracing::{debug, error, info, warn};

use super::vici::{Charon, ChildSa, IkeSa, Section, Value, number, section};
use super::{NAME, socket};
use crate::kernel::tunnels::{self, Device, Kind};
use crate::reconcile::Wanted;
use crate::service::tunnels::{TunnelState, Tunnels, any, wanted_lines};
use crate::service::{Places, material};

/// Asks for other keys for every association. Clones ask the same.
#[derive(Debug, Clone)]
pub struct Rekey(mpsc::Sender<Asked>);

/// Where the answer goes.
type Asked = oneshot::Sender<Result<(), String>>;

impl Rekey {
    /// When charon has been told; it makes them from then on, and drops the old ones a moment later.
    pub fn all(self) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async move {
            let (answer, answered) = oneshot::channel();
            self.0.send(answer).await.map_err(|_closed| GONE.to_owned())?;
            answered.await.map_err(|_dropped| GONE.to_owned())?
        })
    }
}

/// Follows the config and the lines that are wanted for the tunnels, until the config's sender is gone.
pub fn start(
    places: &Places,
    config: watch::Receiver<Option<Arc<Config>>>,
    wanted: watch::Receiver<Option<Wanted>>,
    tunnels: Tunnels,
) -> io::Result<Rekey> {
    let socket = socket(&places.run.join(NAME));
    let (rekey, asked) = mpsc::channel(1);
    let asked = Mutex::new(asked);
    let drive = move || {
        let follow = || -> io::Result<()> {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let driver = Driver::new(socket.clone(), tunnels.clone());
            runtime.block_on(async { driver.follow(config.clone(), wanted.clone(), &mut *asked.lock().await).await });
            Ok(())
        };
        loop {
            match catch_unwind(AssertUnwindSafe(follow)) {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error!(%error, "tunnels cannot be run"),
                Err(_panic) => error!("the thread of the tunnels panicked: it begins anew"),
            }
            thread::sleep(BEGIN_ANEW);
        }
    };
    thread::Builder::new().name("ipsec".to_owned()).spawn(drive)?;
    Ok(Rekey(rekey))
}

#[derive(Debug)]
struct Driver {
    socket: PathBuf,
    tunnels: Tunnels,
    /// What charon was told of each, as a digest.
    told: BTreeMap<String, String>,
    /// When that was last compared with the files of this config.
    compared: BTreeMap<String, Instant>,
    /// When each was last called.
    called: BTreeMap<String, Instant>,
    /// By which line each went when last seen.
    lines: BTreeMap<String, WanName>,
}

/// What charon is to know of a tunnel.
#[derive(Debug, PartialEq, Eq)]
struct Loading {
    connection: Section,
    /// Commands that hand over what proves who we are.
    proofs: Vec<(&'static str, Section)>,
}

impl Driver {
    fn new(socket: PathBuf, tunnels: Tunnels) -> Self {
        Self {
            socket,
            tunnels,
            told: BTreeMap::new(),
            compared: BTreeMap::new(),
            called: BTreeMap::new(),
            lines: BTreeMap::new(),
        }
    }

    async fn follow(
        mut self,
        mut config: watch::Receiver<Option<Arc<Config>>>,
        mut wanted: watch::Receiver<Option<Wanted>>,
        asked: &mut mpsc::Receiver<Asked>,
    ) {
        let mut had_any = false;
        let mut last: Option<Arc<Config>> = None;
        loop {
            let now = config.borrow_and_update().clone();
            let state = wanted.borrow_and_update().as_ref().map(|wanted| Arc::clone(&wanted.state));
            if last.as_ref().map(Arc::as_ptr) != now.as_ref().map(Arc::as_ptr) {
                self.compared.clear();
                last.clone_from(&now);
            }
            let has_any = now.as_deref().is_some_and(|config| any(config, true));
            if let Some(config) = now.as_deref().filter(|_| has_any || had_any) {
                self.tunnels.follow(config, true);
                if let Err(why) = self.round(config, state.as_deref()).await {
                    debug!(why, "a round of the tunnels failed");
                    self.told.clear();
                    for (vlan, _) in config.tunnels().filter(|(_, tunnel)| tunnel.ipsec().is_some()) {
                        self.tunnels.change(vlan.name.as_str(), |line| {
                            line.state = TunnelState::Failed;
                            line.why = Some(why.clone());
                        });
                    }
                }
            }
            had_any = has_any;
            // Without a tunnel nobody wakes up for one.
            let pause = if has_any { ROUND } else { Duration::from_hours(24) };
            tokio::select! {
                changed = config.changed() => if changed.is_err() { return },
                _ = wanted.changed(), if has_any => {}
                Some(answer) = asked.recv() => {
                    let rekeyed = if has_any { self.rekey().await } else { Ok(()) };
                    answer.send(rekeyed).ok();
                }
                () = sleep(pause) => {}
            }
        }
    }

    /// Has charon make other keys for the packets of every tunnel.
    async fn rekey(&self) -> Result<(), String> {
        let mut charon = Charon::at(&self.socket).await?;
        for which in carrying(&charon.associations().await?) {
            info!(association = %which, "other keys are made");
            charon.tell("rekey", section([("child-id", which.into())])).await?;
        }
        Ok(())
    }

    async fn round(&mut self, config: &Config, state: Option<&KernelState>) -> Result<(), String> {
        let esp = tunnels::has_esp();
        let mut troubles = near_ends(config, esp).await?;
        let of_ours = config.tunnels().filter_map(|(vlan, tunnel)| Some((vlan, tunnel.ipsec()?))).collect::<Vec<_>>();
        let mut charon = match Charon::at(&self.socket).await {
            Ok(charon) => charon,
            Err(_) if of_ours.is_empty() => return Ok(()),
            Err(why) => return Err(why),
        };
        let known: BTreeSet<_> = charon.connections().await?.into_iter().collect();
        for name in known.iter().filter(|name| !of_ours.iter().any(|(vlan, _)| vlan.name.as_str() == *name)) {
            info!(tunnel = %name, "the tunnel is no longer wanted");
            charon.tell("unload-conn", section([("name", name.as_str().into())])).await?;
            charon.tell("unload-shared", section([("id", name.as_str().into())])).await.ok();
            charon.tell("terminate", gone([("ike", name.as_str().into())])).await.ok();
            self.told.remove(name);
        }
        for (vlan, ipsec) in &of_ours {
            if let Err(why) = self.tell(&mut charon, vlan, ipsec, esp, &known).await {
                troubles.entry(vlan.name.to_string()).or_insert(why);
            }
        }
        let all = charon.associations().await?;
        let lines = state.map(|state| wanted_lines(config, state)).unwrap_or_default();
        for (vlan, ipsec) in of_ours {
            let name = vlan.name.as_str();
            let own: Vec<_> = all.iter().filter(|(of, _)| of == name).map(|(_, sa)| sa).collect();
            self.look(config, name, &own, troubles.get(name));
            if !troubles.contains_key(name) {
                self.act(&mut charon, name, ipsec, &own, lines.get(name).map(|line| source(config, line))).await?;
            }
        }
        Ok(())
    }

    /// Has charon know this tunnel as it is to be.
    async fn tell(
        &mut self,
        charon: &mut Charon,
        vlan: &Vlan,
        ipsec: &Ipsec,
        esp: bool,
        known: &BTreeSet<String>,
    ) -> Result<(), String> {
        let name = vlan.name.as_str();
        let before = self.told.get(name).filter(|_| known.contains(name)).cloned();
        if before.is_some() && self.compared.get(name).is_some_and(|at| at.elapsed() < FILES) {
            return Ok(());
        }
        let loading = loading(vlan, ipsec, esp)?;
        let digest = loading.digest();
        self.compared.insert(name.to_owned(), Instant::now());
        if before.as_ref() == Some(&digest) {
            return Ok(());
        }
        for (command, message) in loading.proofs {
            charon.tell(command, message).await?;
        }
        let connection = [(name.to_owned(), Value::Section(loading.connection))].into();
        charon.tell("load-conn", connection).await?;
        info!(tunnel = %name, anew = before.is_some(), "charon knows the tunnel");
        self.told.insert(name.to_owned(), digest);
        // What stands was agreed on in other words: it goes when another stands.
        self.called.remove(name);
        if before.is_some() && ipsec.remote.is_some() {
            self.call(charon, name).await?;
        }
        Ok(())
    }

    /// Calls whom nobody has called, and drops what another association has taken the place of.
    async fn act(
        &mut self,
        charon: &mut Charon,
        name: &str,
        ipsec: &Ipsec,
        own: &[&IkeSa],
        source: Option<Vec<String>>,
    ) -> Result<(), String> {
        let mut working: Vec<_> = own.iter().filter(|sa| sa.is_established() && sa.installed().is_some()).collect();
        working.sort_by_key(|sa| number(Some(&sa.uniqueid)));
        if let Some((newest, older)) = working.split_last() {
            if number(newest.established.as_ref()) >= SETTLED {
                for sa in older {
                    info!(tunnel = %name, number = %sa.uniqueid, "another association has taken its place");
                    charon.tell("terminate", gone([("ike-id", sa.uniqueid.as_str().into())])).await.ok();
                }
            }
            return Ok(());
        }
        if ipsec.remote.is_none() {
            return Ok(());
        }
        // One that is made over a line that is no longer the one would wait for answers until it gave up.
        let elsewhere = |sa: &&&IkeSa| {
            let from = |source: &Vec<String>| source.contains(&sa.local_host);
            !sa.is_established() && !source.as_ref().is_none_or(from)
        };
        for sa in own.iter().filter(elsewhere) {
            charon.tell("terminate", gone([("ike-id", sa.uniqueid.as_str().into())])).await.ok();
            self.called.remove(name);
        }
        let patience = if own.is_empty() { AGAIN } else { STUCK };
        if self.called.get(name).is_none_or(|at| at.elapsed() >= patience) {
            for sa in own {
                charon.tell("terminate", gone([("ike-id", sa.uniqueid.as_str().into())])).await.ok();
            }
            self.call(charon, name).await?;
        }
        Ok(())
    }

    async fn call(&mut self, charon: &mut Charon, name: &str) -> Result<(), String> {
        self.called.insert(name.to_owned(), Instant::now());
        debug!(tunnel = %name, "the other end is called");
        // At once: what comes of it is seen in the next rounds.
        let message = [("ike", name.into()), ("child", name.into()), ("timeout", "-1".into())];
        charon.tell("initiate", section(message)).await
    }

    fn look(&mut self, config: &Config, name: &str, own: &[&IkeSa], trouble: Option<&String>) {
        let newest = |wanted: &dyn Fn(&IkeSa) -> bool| {
            own.iter().filter(|sa| wanted(sa)).max_by_key(|sa| number(Some(&sa.uniqueid)))
        };
        let works = newest(&|sa| sa.is_established() && sa.installed().is_some());
        let any = works.or_else(|| newest(&|_| true));
        let wan = any.and_then(|sa| line_of(config, &sa.local_host));
        let mut moved = false;
        if let (Some(wan), Some(_)) = (&wan, works) {
            let before = self.lines.insert(name.to_owned(), wan.clone());
            moved = before.as_ref().is_some_and(|before| before != wan);
            if let Some(before) = before.filter(|_| moved) {
                warn!(tunnel = %name, from = %before, to = %wan, "the tunnel took another line");
            }
        }
        self.tunnels.change(name, |line| {
            let was = line.state;
            line.state = match (works, any, trouble) {
                (Some(_), ..) => TunnelState::Up,
                (None, _, Some(_)) => TunnelState::Failed,
                (None, Some(_), None) => TunnelState::Calling,
                (None, None, None) => TunnelState::Waiting,
            };
            if was != line.state {
                info!(tunnel = %name, from = was.word(), to = line.state.word(), "tunnel");
            }
            line.why = trouble.cloned();
            line.wan = wan.map(|wan| wan.to_string());
            line.moves += u64::from(moved);
            if let Some(sa) = any.filter(|sa| !sa.remote_host.is_empty()) {
                line.peer = Some(sa.remote_host.clone());
            }
            line.since_seconds = works.map(|sa| seconds(sa.established.as_ref()));
            let child = works.and_then(|sa| sa.installed());
            line.cipher = child.map(cipher);
            line.rekey_seconds = child.map(|child| seconds(child.rekey_time.as_ref()));
            let count = |of: fn(&ChildSa) -> &Option<String>| child.map_or(0, |child| number(of(child).as_ref()));
            line.received_bytes = count(|child| &child.bytes_in);
            line.sent_bytes = count(|child| &child.bytes_out);
            line.received_packets = count(|child| &child.packets_in);
            line.sent_packets = count(|child| &child.packets_out);
        });
    }
}

/// The interfaces, and what is in the way of which tunnel.
async fn near_ends(config: &Config, esp: bool) -> Result<BTreeMap<String, String>, String> {
    let ours = || config.tunnels().filter(|(_, tunnel)| tunnel.ipsec().is_some()).map(|(vlan, _)| vlan);
    let mut troubles = BTreeMap::new();
    if esp {
        let device = |vlan: &Vlan| (vlan.interface.clone(), Device::Xfrm { number: number_of(vlan) });
        let wanted: BTreeMap<IfName, Device> = ours().map(device).collect();
        let failed = tunnels::keep(Kind::Xfrm, &wanted).await.map_err(|error| format!("interfaces: {error}"))?;
        for vlan in ours() {
            troubles.extend(failed.get(&vlan.interface).map(|why| (vlan.name.to_string(), why.clone())));
        }
        return Ok(troubles);
    }
    let first = ours().find(|vlan| vlan.interface.as_str() == OWN_ESP).map(|vlan| &vlan.name);
    for vlan in ours().filter(|vlan| Some(&vlan.name) != first) {
        troubles.insert(
            vlan.name.to_string(),
            format!(
                "the kernel has no ESP, and strongSwan's own is for one tunnel with `interface = \"{OWN_ESP}\"`: use a \
                 kernel with the modules esp4, esp6 and xfrm_interface, such as Debian's"
            ),
        );
    }
    Ok(troubles)
}

fn loading(vlan: &Vlan, ipsec: &Ipsec, esp: bool) -> Result<Loading, String> {
    let name = vlan.name.as_str();
    let mut proofs = Vec::new();
    let mut local = section([("id", ipsec.local_id.as_str().into())]);
    let mut remote = section([("id", ipsec.remote_id.as_str().into())]);
    let auth = match &ipsec.proof {
        Proof::Psk(psk) => {
            let owners = vec![ipsec.local_id.clone(), ipsec.remote_id.clone()];
            let shared = [
                ("id", name.into()),
                ("type", "IKE".into()),
                ("data", material::word(psk)?.into()),
                ("owners", owners.into()),
            ];
            proofs.push(("load-shared", section(shared)));
            "psk"
        }
        Proof::Certificate { certificate, key, ca } => {
            let ca = material::public(ca)?;
            let own = material::public(certificate)?;
            let authority = [("type", "X509".into()), ("flag", "CA".into()), ("data", ca.clone().into())];
            proofs.push(("load-cert", section(authority)));
            let key = [("type", "any".into()), ("data", material::secret(key)?.into())];
            proofs.push(("load-key", section(key)));
            local.insert("certs".to_owned(), vec![own].into());
            remote.insert("cacerts".to_owned(), vec![ca].into());
            "pubkey"
        }
    };
    local.insert("auth".to_owned(), auth.into());
    remote.insert("auth".to_owned(), auth.into());
    let texts = |nets: &[ipnet::IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
    let beyond = vlan.tunnel.as_ref().map(|tunnel| texts(&tunnel.networks)).unwrap_or_default();
    let mut child = section([
        ("local_ts", texts(&ipsec.local_networks).into()),
        ("remote_ts", beyond.into()),
        ("esp_proposals", proposals(ipsec.profile, esp).into()),
        ("mode", "tunnel".into()),
        ("start_action", "none".into()),
        ("close_action", "none".into()),
        ("dpd_action", "clear".into()),
        ("rekey_time", "1h".into()),
        // Sequence numbers have 32 bits where they are not extended.
        ("rekey_packets", "3800000000".into()),
        ("life_packets", "4200000000".into()),
    ]);
    if esp {
        let number = number_of(vlan).to_string();
        child.insert("if_id_in".to_owned(), number.clone().into());
        child.insert("if_id_out".to_owned(), number.into());
        child.insert("set_mark_out".to_owned(), format!("{}/{:#010x}", Mark::TUNNEL, Mark::WAN_MASK).into());
    }
    let peer = ipsec.remote.map_or_else(|| "%any".to_owned(), |peer| peer.to_string());
    let connection = section([
        ("version", "2".into()),
        ("remote_addrs", vec![peer].into()),
        // Always in UDP: there is one flow to let answers in, and nobody between minds.
        ("encap", "yes".into()),
        ("mobike", "yes".into()),
        ("dpd_delay", "10s".into()),
        ("keyingtries", "1".into()),
        ("unique", "no".into()),
        ("local-1", local.into()),
        ("remote-1", remote.into()),
        ("children", section([(name, child.into())]).into()),
    ]);
    Ok(Loading { connection, proofs })
}

impl Loading {
    fn digest(&self) -> String {
        let Self { connection, proofs } = self;
        ebpf::digest(format!("{connection:?}{proofs:?}").as_bytes())
    }
}

/// Each with fresh keys of its own at first, and without where the other end wants none.
fn proposals(profile: CipherProfile, esp: bool) -> Vec<String> {
    let (ciphers, numbers): (&[&str], &str) = match (profile, esp) {
        (CipherProfile::AesGcm, true) => (&["aes256gcm16", "aes128gcm16"], "-esn-noesn"),
        (CipherProfile::AesGcm, false) => (&["aes256gcm16", "aes128gcm16"], "-noesn"),
        // The card has no extended sequence numbers (authencesn).
        (CipherProfile::Qat, _) => (&["aes256-sha256", "aes128-sha256"], "-noesn"),
    };
    let groups = ["-ecp384-ecp256", ""];
    groups.iter().flat_map(|group| ciphers.iter().map(move |cipher| format!("{cipher}{group}{numbers}"))).collect()
}

/// The numbers of what carries packets and is not being replaced already.
fn carrying(all: &[(String, IkeSa)]) -> Vec<String> {
    let children = all.iter().flat_map(|(_, sa)| sa.child_sas.values());
    children.filter(|child| child.state == "INSTALLED").map(|child| child.uniqueid.clone()).collect()
}

fn gone<const N: usize>(which: [(&str, Value); N]) -> Section {
    let mut message = section(which);
    message.insert("force".to_owned(), "yes".into());
    message.insert("timeout".to_owned(), "-1".into());
    message
}

/// Of the associations of a tunnel, and of its interface.
fn number_of(vlan: &Vlan) -> u32 {
    u32::from(vlan.id.get())
}

fn cipher(child: &ChildSa) -> String {
    let ChildSa { encr_alg, encr_keysize, integ_alg, esn, .. } = child;
    let mut text = encr_alg.clone();
    for more in encr_keysize.iter().chain(integ_alg) {
        text.push('-');
        text.push_str(more);
    }
    if esn.is_some() {
        text.push_str(" ESN");
    }
    text
}

fn seconds(text: Option<&String>) -> f64 {
    text.and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn line_of(config: &Config, address: &str) -> Option<WanName> {
    let has = |wan: &&config::model::Wan| wan.addressing.addresses.iter().any(|net| net.addr().to_string() == address);
    config.wans.values().find(has).map(|wan| wan.name.clone())
}

/// What a tunnel that goes by this line sends from.
fn source(config: &Config, line: &WanName) -> Vec<String> {
    let addresses = config.wans.get(line).into_iter().flat_map(|wan| &wan.addressing.addresses);
    addresses.map(|net| net.addr().to_string()).collect()
}

/// strongSwan's TUN device.
const OWN_ESP: &str = "ipsec0";
const ROUND: Duration = Duration::from_millis(500);
/// Between two looks at the files of what proves who we are.
const FILES: Duration = Duration::from_secs(10);
/// Between two calls of an end that does not answer …
const AGAIN: Duration = Duration::from_secs(2);
/// … or answers and comes to nothing.
const STUCK: Duration = Duration::from_secs(12);
/// For so many seconds the older association is left to end by itself.
const SETTLED: u64 = 3;
const BEGIN_ANEW: Duration = Duration::from_secs(1);
const GONE: &str = "nobody runs the tunnels";

#[cfg(test)]
mod tests {
    use super::*;

    /// The child of the connection that charon is told for a tunnel of this profile.
    fn child(profile: &str, esp: bool) -> String {
        let psk = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(psk.path(), "hunter2\n").unwrap();
        let site = format!(
            "{}[ipsec.branch]\nremote = \"192.0.2.50\"\nlocal_id = \"hq\"\nremote_id = \"branch\"\npsk = \"{}\"\n\
             profile = \"{profile}\"\nlocal_networks = [\"10.0.10.0/24\"]\nremote_networks = [\"10.9.0.0/24\"]\n\
             wans = [\"wan1\"]\n",
            include_str!("../../../../config/examples/minimal.toml"),
            psk.path().display()
        );
        let config = config::parse("site.toml", &site).unwrap_or_else(|problems| panic!("{problems}")).config;
        let (vlan, tunnel) = config.tunnels().next().unwrap();
        let loading = loading(vlan, tunnel.ipsec().unwrap(), esp).unwrap();
        assert!(!format!("{:?}", loading.connection).contains("hunter2"));
        format!("{:?}", loading.connection["children"])
    }

    #[test]
    fn keys_that_carry_packets_are_replaced_once() {
        let child = |uniqueid: &str, state: &str| {
            let (uniqueid, state) = (uniqueid.to_owned(), state.to_owned());
            (format!("branch-{uniqueid}"), ChildSa { uniqueid, state, ..ChildSa::default() })
        };
        let child_sas = [child("1", "REKEYED"), child("2", "INSTALLED"), child("3", "REKEYING")].into();
        let sa = IkeSa { child_sas, ..IkeSa::default() };
        assert_eq!(carrying(&[("branch".to_owned(), sa)]), ["2"]);
    }

    #[tokio::test]
    async fn whoever_asks_for_other_keys_is_told_when_nobody_runs_the_tunnels() {
        let (sender, asked) = mpsc::channel(1);
        drop(asked);
        assert_eq!(Rekey(sender).all().await, Err(GONE.to_owned()));
    }

    #[test]
    fn a_profile_says_how_packets_are_sealed_and_the_kernel_is_told_by_which_interface() {
        let gcm = child("aes-gcm", true);
        assert!(gcm.contains("aes256gcm16-ecp384-ecp256-esn-noesn"), "{gcm}");
        assert!(gcm.contains("\"if_id_out\": Text(\"4096\")") && gcm.contains("0x7d000000/0x7f000000"), "{gcm}");
        let card = child("qat", true);
        assert!(card.contains("aes256-sha256-ecp384-ecp256-noesn") && !card.contains("-esn-"), "{card}");
        assert!(card.contains("\"rekey_packets\": Text(\"3800000000\")"), "{card}");
        let own = child("aes-gcm", false);
        assert!(!own.contains("if_id") && !own.contains("-esn-"), "{own}");
    }
}
