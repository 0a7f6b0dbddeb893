//! DHCP for the VLANs that may ask for it: Kea's two servers. Their files are made from the config here; whether they do
//! what these say, and how many addresses are out, their control sockets tell.
//!
//! Kea's own check of a file (`-t`) takes files that it then refuses to run with, so it is asked, and not believed. What
//! is believed is a mark in the file that the running server gives back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use config::Config;
use config::model::{Dhcp, Vlan, VlanDhcp};
use config::units::Family;
use futures_util::future::BoxFuture;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use super::Places;
use super::component::{Component, Control, Folder, Reload, Rendered};

/// The addresses that are out, as Kea last told. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Leases(Arc<Mutex<BTreeMap<Family, BTreeMap<String, LeaseCount>>>>);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct LeaseCount {
    leases: u64,
    pool_used: u64,
    pool_size: u64,
}

/// One VLAN in one family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LeaseLine {
    pub vlan: String,
    pub family: Family,
    /// All addresses that are out, reserved ones among them; in IPv6 Kea counts those of the pool alone.
    pub leases: u64,
    /// Those of the pool that are out, and how many it has.
    pub pool_used: u64,
    pub pool_size: u64,
}

impl Leases {
    pub fn lines(&self) -> Vec<LeaseLine> {
        let told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let each =
            told.iter().flat_map(|(family, vlans)| vlans.iter().map(move |(vlan, count)| (*family, vlan, *count)));
        let line = |(family, vlan, count): (Family, &String, LeaseCount)| LeaseLine {
            vlan: vlan.clone(),
            family,
            leases: count.leases,
            pool_used: count.pool_used,
            pool_size: count.pool_size,
        };
        each.map(line).collect()
    }

    fn tell(&self, family: Family, counts: BTreeMap<String, LeaseCount>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(family, counts);
    }

    /// Of the families that somebody serves.
    fn keep(&self, served: &[Family]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|family, _| served.contains(family));
    }
}

/// The servers that this config needs.
pub(super) fn components(config: &Config, places: &Places, leases: &Leases) -> Vec<Component> {
    let served = config.dhcp.as_ref().map(|dhcp| {
        Family::ALL.into_iter().filter_map(|family| component(config, dhcp, family, places, leases)).collect::<Vec<_>>()
    });
    let served = served.unwrap_or_default();
    let families = Family::ALL.into_iter().filter(|family| served.iter().any(|one| one.name == name(*family)));
    leases.keep(&families.collect::<Vec<_>>());
    served
}

/// Whether hosts of this VLAN are to ask DHCPv6 for an address, and whether for anything.
pub(super) fn asks_v6(config: &Config, vlan: &Vlan) -> (bool, bool) {
    let Some(served) = config.dhcp.as_ref().and_then(|dhcp| dhcp.vlans.get(&vlan.name)) else { return (false, false) };
    let address = !served.pool6.is_empty() || served.reservations.iter().any(|one| one.address6.is_some());
    let served_at_all = own_nets(config, vlan).any(|net| matches!(net, IpNet::V6(_)));
    let other = served_at_all && (vlan.takes("dns") || vlan.takes("ntp") || served.domain.is_some());
    (address, other)
}

/// Without what providers delegate: hosts make addresses of that by themselves, and it comes and goes.
fn own_nets<'a>(config: &'a Config, vlan: &'a Vlan) -> impl Iterator<Item = &'a IpNet> {
    let delegated =
        |net: &IpNet| config.delegated_to(&vlan.name).any(|(_, delegated)| IpNet::V6(delegated.own) == *net);
    vlan.addresses.iter().filter(move |net| !delegated(net))
}

fn component(config: &Config, dhcp: &Dhcp, family: Family, places: &Places, leases: &Leases) -> Option<Component> {
    let name = name(family);
    let (run, state) = (places.run.join(name), places.state.join(name));
    let socket = run.join("control.sock");
    let (settings, vlans) = settings(config, dhcp, family, &state, &socket)?;
    let file = run.join("kea.json");
    let path = |path: &Path| path.display().to_string();
    // Kea takes files of its own from these places only.
    let environment = [
        ("KEA_CONTROL_SOCKET_DIR", &run),
        ("KEA_PIDFILE_DIR", &run),
        ("KEA_LOCKFILE_DIR", &run),
        ("KEA_LOG_FILE_DIR", &run),
        ("KEA_DHCP_DATA_DIR", &state),
    ];
    let interfaces: BTreeSet<_> = vlans.values().map(|vlan| vlan.interface.clone()).collect();
    let vlans = vlans.into_iter().map(|(id, vlan)| (id, vlan.name.to_string())).collect();
    Some(Component {
        name: name.to_owned(),
        package: match family {
            Family::V4 => "kea-dhcp4-server",
            Family::V6 => "kea-dhcp6-server",
        },
        program: name.to_owned(),
        arguments: vec!["-c".to_owned(), path(&file)],
        environment: environment.map(|(name, folder)| (name.to_owned(), path(folder))).into(),
        folders: vec![Folder::new(&run, 0o750), Folder::new(&state, 0o750)],
        files: vec![Rendered { path: file.clone(), text: settings, mode: 0o640 }],
        validator: Some(vec![name.to_owned(), "-t".to_owned(), path(&file)]),
        interfaces: interfaces.into_iter().collect(),
        reload: Reload::Call,
        control: Arc::new(Kea { socket, family, vlans, leases: leases.clone(), known: Mutex::default() }),
        ..Component::default()
    })
}

fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "kea-dhcp4",
        Family::V6 => "kea-dhcp6",
    }
}

/// Kea's file, and which of its subnets is whose; `None` where there is nobody to serve.
fn settings<'a>(
    config: &'a Config,
    dhcp: &Dhcp,
    family: Family,
    state: &Path,
    socket: &Path,
) -> Option<(String, BTreeMap<u32, &'a Vlan>)> {
    let mut whose = BTreeMap::new();
    let mut listen = Vec::new();
    let mut networks = Vec::new();
    for (name, served) in &dhcp.vlans {
        let Some(vlan) = config.vlans.get(name) else { continue };
        let nets: Vec<_> = own_nets(config, vlan).filter(|net| Family::of(net.addr()) == family).collect();
        let mut subnets = Vec::new();
        for (nth, net) in (0_u32..).zip(nets) {
            // Kea keeps its leases by this number: it is to stay what it is while the VLAN's is.
            let id = u32::from(vlan.id.get()) + nth * 4096;
            if subnets.is_empty() {
                listen.push(match family {
                    Family::V4 => format!("{}/{}", vlan.interface, net.addr()),
                    Family::V6 => vlan.interface.to_string(),
                });
            }
            subnets.push(subnet(id, net, vlan, served));
            whose.insert(id, vlan);
        }
        if !subnets.is_empty() {
            networks.push(
                json!({ "name": name.as_str(), "interface": vlan.interface.as_str(), subnets_of(family): subnets }),
            );
        }
    }
    if networks.is_empty() {
        return None;
    }
    let (root, leases, program) = match family {
        Family::V4 => ("Dhcp4", "leases4.csv", "kea-dhcp4"),
        Family::V6 => ("Dhcp6", "leases6.csv", "kea-dhcp6"),
    };
    let mut settings = json!({
        // An interface that is not up yet is tried again for ever.
        "interfaces-config": {
            "interfaces": listen,
            "service-sockets-max-retries": 1_000_000_000,
            "service-sockets-retry-wait-time": 2000,
        },
        "control-socket": { "socket-type": "unix", "socket-name": socket },
        "lease-database": { "type": "memfile", "persist": true, "name": state.join(leases), "lfc-interval": 3600 },
        "multi-threading": { "enable-multi-threading": false },
        "host-reservation-identifiers": ["hw-address"],
        "calculate-tee-times": true,
        "shared-networks": networks,
        "loggers": [logger(program, "WARN"), logger(&format!("{program}.alloc-engine"), "ERROR")],
    });
    match family {
        Family::V4 => {
            // Nobody else answers in a VLAN of ours, and a host is its network card, whatever it boots.
            settings["authoritative"] = json!(true);
            settings["match-client-id"] = json!(false);
        }
        Family::V6 => settings["mac-sources"] = json!(["ipv6-link-local", "duid"]),
    }
    settings["user-context"] = json!({ MARK: mark(&settings) });
    Some((format!("{:#}\n", json!({ root: settings })), whose))
}

/// What hands out addresses warns of each request that it has none for: any stranger could fill our log.
fn logger(name: &str, severity: &str) -> Value {
    let output = json!({ "output": "stdout", "pattern": "%-5p %m\n" });
    json!({ "name": name, "severity": severity, "output_options": [output] })
}

fn subnets_of(family: Family) -> &'static str {
    match family {
        Family::V4 => "subnet4",
        Family::V6 => "subnet6",
    }
}

fn subnet(id: u32, net: &IpNet, vlan: &Vlan, served: &VlanDhcp) -> Value {
    let router = net.addr().to_string();
    let mut options = Vec::new();
    let mut option = |name: &str, data: String| options.push(json!({ "name": name, "data": data }));
    let seconds = served.lease.as_secs();
    let mut subnet = json!({ "id": id, "subnet": net.trunc().to_string(), "valid-lifetime": seconds });
    match net {
        IpNet::V4(net) => {
            option("routers", router.clone());
            if vlan.takes("dns") {
                option("domain-name-servers", router.clone());
            }
            if vlan.takes("ntp") {
                option("ntp-servers", router);
            }
            if let Some(domain) = &served.domain {
                option("domain-name", domain.clone());
                option("domain-search", domain.clone());
            }
            if let Some(mtu) = served.mtu {
                option("interface-mtu", mtu.to_string());
            }
            let pools = served.pool4.iter().filter(|pool| net.contains(pool.start()));
            let pools = pools.map(|pool| json!({ "pool": format!("{}-{}", pool.start(), pool.end()) }));
            subnet["pools"] = pools.collect();
            let of = |address: Option<Ipv4Addr>| address.filter(|address| net.contains(address));
            let reservations = served.reservations.iter().filter_map(|one| {
                let address = of(one.address4)?;
                Some(json!({
                    "hw-address": one.mac.to_string(),
                    "ip-address": address,
                    "hostname": one.host.as_str(),
                }))
            });
            subnet["reservations"] = reservations.collect();
        }
        IpNet::V6(net) => {
            if vlan.takes("dns") {
                option("dns-servers", router.clone());
            }
            if vlan.takes("ntp") {
                option("sntp-servers", router);
            }
            if let Some(domain) = &served.domain {
                option("domain-search", domain.clone());
            }
            let pools = served.pool6.iter().filter(|pool| net.contains(pool.start()));
            let pools = pools.map(|pool| json!({ "pool": format!("{}-{}", pool.start(), pool.end()) }));
            subnet["pools"] = pools.collect();
            let of = |address: Option<Ipv6Addr>| address.filter(|address| net.contains(address));
            let reservations = served.reservations.iter().filter_map(|one| {
                let address = of(one.address6)?;
                Some(json!({
                    "hw-address": one.mac.to_string(),
                    "ip-addresses": [address],
                    "hostname": one.host.as_str(),
                }))
            });
            subnet["reservations"] = reservations.collect();
            subnet["preferred-lifetime"] = json!(seconds / 4 * 3);
        }
    }
    subnet["option-data"] = Value::Array(options);
    subnet
}

fn mark(settings: &Value) -> String {
    let digest = Sha256::digest(settings.to_string().as_bytes());
    digest.iter().take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

/// A running server, behind its control socket.
#[derive(Debug)]
struct Kea {
    socket: PathBuf,
    family: Family,
    /// Whose each of its subnets is.
    vlans: BTreeMap<u32, String>,
    leases: Leases,
    /// The process, the mark of its file, and the hash of what it made of that.
    known: Mutex<Option<(u64, String, String)>>,
}

impl Control for Kea {
    fn reload(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(async { self.ask("config-reload").await.map(drop) })
    }

    fn verify<'a>(&'a self, files: &'a [Rendered]) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async {
            let status = self.ask("status-get").await?;
            let pid = status["pid"].as_u64().unwrap_or_default();
            let hash = self.ask("config-hash-get").await?["hash"].as_str().unwrap_or_default().to_owned();
            let wanted = files.first().and_then(|file| marked(&serde_json::from_str(&file.text).ok()?));
            let wanted = wanted.ok_or("its file has no mark")?;
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let before = known.filter(|(before, mark, _)| (*before, mark) == (pid, &wanted));
            match before {
                Some((_, _, before)) if before == hash => {}
                Some(_) => return Err("somebody changed its config through its control socket".to_owned()),
                None => {
                    let config = self.ask("config-get").await?;
                    if marked(&config).as_ref() != Some(&wanted) {
                        return Err("it runs with another config than that of its file".to_owned());
                    }
                    *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some((pid, wanted, hash));
                }
            }
            if status["sockets"]["status"].as_str() == Some("failed") {
                return Err(format!("it cannot listen: {}", status["sockets"]["errors"]));
            }
            let statistics = self.ask("statistic-get-all").await?;
            self.leases.tell(self.family, counts(&statistics, self.family, &self.vlans));
            Ok(())
        })
    }
}

impl Kea {
    async fn ask(&self, command: &str) -> Result<Value, String> {
        let answer = async {
            let mut stream = UnixStream::connect(&self.socket).await?;
            stream.write_all(json!({ "command": command }).to_string().as_bytes()).await?;
            let mut answer = Vec::new();
            stream.take(MOST_ANSWER).read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = answer.await.map_err(|error| format!("{} does not answer: {error}", self.socket.display()))?;
        let answer: Value =
            serde_json::from_slice(&answer).map_err(|error| format!("its answer is no JSON: {error}"))?;
        if answer["result"] != 0 {
            let text = answer["text"].as_str().unwrap_or("it does not say why");
            return Err(format!("{command}: {text}"));
        }
        Ok(answer["arguments"].clone())
    }
}

/// The mark in a file of Kea's, or in what it gives back of it.
fn marked(config: &Value) -> Option<String> {
    let root = config.get("Dhcp4").or_else(|| config.get("Dhcp6"))?;
    Some(root["user-context"][MARK].as_str()?.to_owned())
}

/// `subnet[10].assigned-addresses: [[3, "2026-…"]]`, for each VLAN. Declined addresses are not out.
fn counts(statistics: &Value, family: Family, vlans: &BTreeMap<u32, String>) -> BTreeMap<String, LeaseCount> {
    let (assigned, total) = match family {
        Family::V4 => ("assigned-addresses", "total-addresses"),
        Family::V6 => ("assigned-nas", "total-nas"),
    };
    let mut counts: BTreeMap<String, LeaseCount> =
        vlans.values().map(|vlan| (vlan.clone(), LeaseCount::default())).collect();
    for (name, value) in statistics.as_object().into_iter().flatten() {
        let Some((id, rest)) = name.strip_prefix("subnet[").and_then(|rest| rest.split_once("].")) else { continue };
        let Some(count) = id.parse().ok().and_then(|id: u32| counts.get_mut(vlans.get(&id)?)) else { continue };
        let value = value[0][0].as_u64().unwrap_or_default();
        if rest == assigned {
            count.leases += value;
        } else if rest == total {
            count.pool_size += value;
        } else if rest.starts_with("pool[") && rest.split_once("].").is_some_and(|(_, rest)| rest == assigned) {
            count.pool_used += value;
        }
    }
    counts
}

/// In the user context of Kea's file: which file it was.
const MARK: &str = "quadway";
const MOST_ANSWER: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::net::UnixListener;

    use super::*;

    /// Answers as Kea does; `hash` is what it makes of its file.
    async fn server(listener: UnixListener, mark: &'static str, hash: Arc<AtomicU64>) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 1024];
            let length = stream.read(&mut asked).await.unwrap();
            let asked: Value = serde_json::from_slice(&asked[..length]).unwrap();
            let arguments = match asked["command"].as_str().unwrap() {
                "status-get" => json!({ "pid": 7, "sockets": { "status": "ready" } }),
                "config-hash-get" => json!({ "hash": hash.load(Ordering::Relaxed).to_string() }),
                "config-get" => json!({ "Dhcp4": { "user-context": { MARK: mark } } }),
                "statistic-get-all" => json!({
                    "subnet[10].assigned-addresses": [[3, "now"]],
                    "subnet[10].total-addresses": [[50, "now"], [40, "before"]],
                    "subnet[10].pool[0].assigned-addresses": [[1, "now"]],
                    "subnet[10].pool[1].assigned-addresses": [[1, "now"]],
                    "subnet[4106].assigned-addresses": [[2, "now"]],
                    "subnet[11].assigned-addresses": [[9, "now"]],
                    "pkt4-received": [[1000, "now"]],
                }),
                _ => json!(null),
            };
            let refused = arguments.is_null();
            let answer = json!({ "result": i32::from(refused), "arguments": arguments, "text": "no such thing" });
            stream.write_all(answer.to_string().as_bytes()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_control_socket_says_whether_the_file_is_in_force() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("control.sock");
        let hash = Arc::new(AtomicU64::new(1));
        let leases = Leases::default();
        let vlans = BTreeMap::from([(10, "office".to_owned()), (4106, "office".to_owned()), (20, "guests".to_owned())]);
        let known = Mutex::default();
        let kea = Kea { socket: socket.clone(), family: Family::V4, vlans, leases: leases.clone(), known };
        let file = |mark: &str| {
            let text = json!({ "Dhcp4": { "user-context": { MARK: mark } } }).to_string();
            vec![Rendered { path: "kea.json".into(), text, mode: 0o640 }]
        };
        assert!(kea.verify(&file("one")).await.unwrap_err().contains("does not answer"));
        tokio::spawn(server(UnixListener::bind(&socket).unwrap(), "one", Arc::clone(&hash)));
        kea.verify(&file("one")).await.unwrap();
        let line = |vlan: &str, leases, pool_used, pool_size| LeaseLine {
            vlan: vlan.to_owned(),
            family: Family::V4,
            leases,
            pool_used,
            pool_size,
        };
        assert_eq!(leases.lines(), [line("guests", 0, 0, 0), line("office", 5, 2, 50)]);
        let other = kea.verify(&file("two")).await.unwrap_err();
        assert_eq!(other, "it runs with another config than that of its file");
        hash.store(2, Ordering::Relaxed);
        let drift = kea.verify(&file("one")).await.unwrap_err();
        assert_eq!(drift, "somebody changed its config through its control socket");
        assert_eq!(kea.reload().await.unwrap_err(), "config-reload: no such thing");
    }
}
