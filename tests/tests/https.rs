//! The API over HTTPS of a router at work: who reaches it, who may what there, and what hostile clients cost.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::Value;
use tests::failover::{self, trial};
use tests::lab::{Lab, Temporary};
use tests::link::Fault;
use tests::netns::{Netns, run};
use tests::watch::{status, wait, wait_usable};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

#[test]
fn the_listener_is_open_to_its_vlan_and_a_reader_changes_nothing() {
    let Some(site) = Site::up(2) else { return };
    let reached = |from: &Netns, to: SocketAddr| {
        from.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)).is_ok()).unwrap()
    };
    assert!(reached(&site.inside, site.address));
    let (guest, isp) = (site.lab.host(site.lab.site().vlans[1].id), site.lab.isp(1));
    let own = site.lab.site().vlans[1].gateways.iter().map(IpNet::addr).find(IpAddr::is_ipv4).unwrap();
    let line = site.lab.site().wans[0].router4.addr();
    // An ISP that knows where the VLAN is.
    isp.ip(&format!("route replace {}/32 via {line}", site.address.ip())).unwrap();
    for (who, from, to) in [
        ("a guest", &guest, site.address.ip()),
        ("a guest", &guest, own),
        ("the ISP", &isp, site.address.ip()),
        ("the ISP", &isp, line.into()),
        ("the Internet", &site.lab.internet(), line.into()),
    ] {
        assert!(!reached(from, SocketAddr::new(to, PORT)), "{who} reaches {to}");
    }

    let drained = || status(&site.lab).unwrap()["wans"][1]["drained"].as_bool().unwrap();
    let drain = r#"{"v":1,"call":"drain","wan":"wan2"}"#;
    let (code, answer) = site.ask("rita", drain).unwrap();
    assert_eq!((code, answer["error"]["code"].as_str()), (403, Some("permission")));
    assert!(!drained());
    let (code, answer) = site.ask("rita", r#"{"v":1,"call":"status"}"#).unwrap();
    assert_eq!((code, answer["ok"]["https"]["trouble"].is_null()), (200, true), "{answer}");

    let mut events = site.connect(Some("rita")).unwrap();
    events.write_all(b"GET /v1/events HTTP/1.1\r\nhost: router\r\n\r\n").unwrap();
    let mut heard = String::new();
    hear(&mut events, &mut heard, "\n:\n");
    assert_eq!(site.ask("alice", drain).unwrap().0, 200);
    wait("the line is drained", || Ok(drained())).unwrap();
    hear(&mut events, &mut heard, "event: policy\n");
    assert!(site.ask("mallory", drain).unwrap_or((0, Value::Null)).0 != 200);
    assert!(site.connect_and_ask(None, drain).is_err());
}

#[test]
fn two_hundred_idle_tls_clients_cost_little_and_keep_nobody_from_asking() {
    let Some(site) = Site::up(2) else { return };
    site.ask("rita", r#"{"v":1,"call":"status"}"#).unwrap();
    let before = resident(&site.lab);
    let clients: Vec<_> = (0..200)
        .map(|_| {
            let mut client = site.connect(Some("rita")).unwrap();
            // They follow what happens, and read nothing of it.
            client.write_all(b"GET /v1/events HTTP/1.1\r\nhost: router\r\n\r\n").unwrap();
            client
        })
        .collect();
    thread::sleep(Duration::from_secs(2));
    assert_eq!(site.ask("rita", r#"{"v":1,"call":"status"}"#).unwrap().0, 200);
    let cost = resident(&site.lab).saturating_sub(before);
    println!("{} clients cost {cost} kB", clients.len());
    assert!(cost < 20_000, "{cost} kB");
}

#[test]
fn hostile_tls_clients_delay_no_failover() {
    let Some(mut site) = Site::up(3) else { return };
    let calm = trial(&mut site.lab, 1, Fault::Blackhole, Duration::from_secs(4)).unwrap();
    wait_usable(&site.lab, "wan1", "v4", true).unwrap();

    let (over, inside, clients) = (AtomicBool::new(false), failover::client(&site.lab).unwrap(), site.clients.clone());
    let hostile = thread::scope(|scope| {
        let (over, inside, clients, address) = (&over, &inside, &clients, site.address);
        for number in 0..CLIENTS {
            scope.spawn(move || {
                let attacks = || {
                    let mut round = number;
                    while !over.load(Ordering::Relaxed) {
                        // It may be refused, cut off or left waiting; that is its own trouble.
                        drop(attack(address, clients, round));
                        round += 1;
                        // They shall take the daemon's time, not the whole machine's.
                        thread::sleep(Duration::from_millis(20));
                    }
                };
                inside.enter(attacks).unwrap();
            });
        }
        thread::sleep(Duration::from_secs(1));
        let hostile = trial(&mut site.lab, 2, Fault::Blackhole, Duration::from_secs(4));
        over.store(true, Ordering::Relaxed);
        hostile.unwrap()
    });
    println!("calm {:?}, among hostile clients {:?}", calm.flow, hostile.flow);
    // As in `api.rs`: a flow beside the router that lost something tells of a machine that had no time for anybody.
    if calm.control_lost + hostile.control_lost == 0 {
        assert!(hostile.flow < calm.flow * 2 + Duration::from_secs(2), "{hostile:?}");
    }
    wait("the API answers as before", || Ok(site.ask("rita", r#"{"v":1,"call":"status"}"#)?.0 == 200)).unwrap();
    assert_eq!(fs::read_to_string(site.lab.log("routerd")).unwrap().matches("panicked").count(), 0);
}

/// One of a number of nuisances.
fn attack(address: SocketAddr, clients: &Clients, round: usize) -> anyhow::Result<()> {
    let plain = || -> io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_millis(500))?;
        stream.set_read_timeout(Some(Duration::from_millis(500)))?;
        stream.set_write_timeout(Some(Duration::from_millis(500)))?;
        Ok(stream)
    };
    let post = "POST /v1 HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let mut stream: Box<dyn Stream> = match round % 9 {
        // A handshake that does not begin, does not go on, or is none.
        0 => Box::new(plain()?),
        1 => {
            let mut stream = plain()?;
            stream.write_all(b"\x16\x03\x01\x02\x00\x01")?;
            Box::new(stream)
        }
        2 => {
            let mut stream = plain()?;
            stream.write_all(&(0..=255).collect::<Vec<u8>>().repeat(64))?;
            Box::new(stream)
        }
        3 => Box::new(clients.over(plain()?, None)?),
        4 => Box::new(clients.over(plain()?, Some("stranger"))?),
        // A head without an end.
        5 => {
            let mut stream = clients.over(plain()?, Some("rita"))?;
            stream.write_all(post.as_bytes())?;
            Box::new(stream)
        }
        // A body that is larger than it may be.
        6 => {
            let mut stream = clients.over(plain()?, Some("rita"))?;
            stream.write_all(format!("{post}content-length: 99999999\r\n\r\n").as_bytes())?;
            (0..100).try_for_each(|_| stream.write_all(&vec![b'['; 64 * 1024]))?;
            Box::new(stream)
        }
        // A text that takes a parser long.
        7 => {
            let mut stream = clients.over(plain()?, Some("rita"))?;
            let text = format!("{{\"v\":1,\"call\":\"plan\",\"text\":\"{}\"}}", "[[cell]]\\n".repeat(2000));
            stream.write_all(format!("{post}content-length: {}\r\n\r\n{text}", text.len()).as_bytes())?;
            Box::new(stream)
        }
        // Closed at once.
        _ => {
            drop(clients.over(plain()?, Some("alice"))?);
            return Ok(());
        }
    };
    Ok(stream.read(&mut [0; 4096]).map(drop)?)
}

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

/// A lab whose router serves the API in its first VLAN.
struct Site {
    lab: Temporary,
    address: SocketAddr,
    /// A host of that VLAN.
    inside: Netns,
    clients: Clients,
}

impl Site {
    /// `None` where labs cannot be.
    fn up(wans: u8) -> Option<Self> {
        if let Err(reason) = tests::can_run() {
            println!("SKIP: {reason:#}");
            return None;
        }
        let lab = failover::lab(wans, false).unwrap();
        let vlan = &lab.site().vlans[0];
        let gateway = vlan.gateways.iter().map(IpNet::addr).find(IpAddr::is_ipv4).unwrap();
        let (address, inside) = (SocketAddr::new(gateway, PORT), failover::client(&lab).unwrap());
        let folder = lab.site_file().parent().unwrap().to_owned();
        let (servers, signs) = (authority("servers"), authority("clients"));
        let (certificate, key) = signed(&servers, &gateway.to_string());
        write(&folder.join("server.pem"), &certificate);
        write(&folder.join("server.key"), &key);
        write(&folder.join("clients.pem"), &signs.pem());
        let clients = Clients {
            roots: Arc::new(roots(&servers.pem())),
            name: ServerName::from(gateway),
            all: ["alice", "rita", "mallory"]
                .map(|name| (name, signed(&signs, name)))
                .into_iter()
                .chain([("stranger", signed(&authority("clients"), "alice"))])
                .collect(),
        };
        let path = |name: &str| folder.join(name).display().to_string();
        let api = format!(
            "\n[api]\nlisten = \"{address}\"\ncertificate = \"{}\"\nkey = \"{}\"\nclient_ca = \"{}\"\n\
             [api.client.alice]\nrole = \"operator\"\ncn = \"alice\"\n[api.client.rita]\nrole = \"reader\"\ncn = \"rita\"\n",
            path("server.pem"),
            path("server.key"),
            path("clients.pem"),
        );
        let text = fs::read_to_string(lab.site_file()).unwrap() + &api;
        fs::write(lab.site_file(), text).unwrap();
        run(lab.routerctl().unwrap().arg("apply").arg(lab.site_file())).unwrap();
        let site = Self { lab, address, inside, clients };
        wait("the API is served", || Ok(site.ask("rita", r#"{"v":1,"call":"version"}"#)?.0 == 200)).unwrap();
        Some(site)
    }

    fn connect(&self, who: Option<&str>) -> anyhow::Result<Tls> {
        self.inside.enter(|| {
            let stream = TcpStream::connect_timeout(&self.address, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.set_write_timeout(Some(Duration::from_secs(10)))?;
            self.clients.over(stream, who)
        })?
    }

    fn ask(&self, who: &str, text: &str) -> anyhow::Result<(u16, Value)> {
        self.connect_and_ask(Some(who), text)
    }

    fn connect_and_ask(&self, who: Option<&str>, text: &str) -> anyhow::Result<(u16, Value)> {
        let mut stream = self.connect(who)?;
        write!(
            stream,
            "POST /v1 HTTP/1.1\r\nhost: router\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{text}",
            text.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let code = answer.split(' ').nth(1).unwrap_or_default().parse()?;
        let body = answer.split_once("\r\n\r\n").unwrap_or_default().1;
        Ok((code, serde_json::from_str(body)?))
    }
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// Certificates and keys, by who has them.
#[derive(Clone)]
struct Clients {
    roots: Arc<RootCertStore>,
    name: ServerName<'static>,
    all: Vec<(&'static str, (String, String))>,
}

impl Clients {
    fn over(&self, mut stream: TcpStream, who: Option<&str>) -> anyhow::Result<Tls> {
        let config = ClientConfig::builder().with_root_certificates(Arc::clone(&self.roots));
        let identity = self.all.iter().find(|(name, _)| Some(*name) == who);
        let config = match identity {
            None => config.with_no_client_auth(),
            Some((_, (certificate, key))) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes())?];
                config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes())?)?
            }
        };
        let mut connection = ClientConnection::new(Arc::new(config), self.name.clone())?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        Ok(StreamOwned::new(connection, stream))
    }
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn signed(by: &CertifiedIssuer<'static, KeyPair>, name: &str) -> (String, String) {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, by).unwrap().pem(), key.serialize_pem())
}

fn roots(pem: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    roots
}

fn write(path: &Path, text: &str) {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

/// Reads on until this was said.
fn hear(stream: &mut Tls, heard: &mut String, wanted: &str) {
    let mut bytes = [0; 4096];
    while !heard.contains(wanted) {
        let length = stream.read(&mut bytes).unwrap();
        assert!(length > 0, "it ended with {heard}");
        heard.push_str(&String::from_utf8_lossy(&bytes[..length]));
    }
}

/// Kilobytes.
fn resident(lab: &Lab) -> u64 {
    let leader = lab.processes().find(|(what, _)| *what == "routerd").unwrap().1;
    let text = fs::read_to_string(format!("/proc/{leader}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

const PORT: u16 = 8443;
const CLIENTS: usize = 6;
