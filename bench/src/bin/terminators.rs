//! TLS that ends on the router beside TLS that ends in haproxy, nginx, hitch and stunnel of Debian 13, in one run: full
//! handshakes with RSA-2048 and P-256, resumed ones, and bytes. Needs root, and `tests/root/tls-peers`.
//!
//! `terminators [SECONDS] [ROUNDS]`: each measurement takes so long, and there are so many of each, in turn; medians.
//!
//! All of them run in the router's namespace of one lab with equal settings: TLS 1.2 and 1.3, one worker, tickets, the same
//! certificates, the same backend. Whoever serves has the first CPU, clients and the backend the second. The clients offer
//! X25519 and AES-128-GCM, so that all do the same work, and check no certificate, so that they are the quicker. Where they
//! are not (a server does not fill its core), what counts is the CPU time that the server's processes took: "per core" is how
//! many that makes in a second of it. What a packet costs between namespaces is charged to whoever sent it, to all alike.
#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};
use socket2::SockRef;
use tests::failover;
use tests::lab::{Temporary, tail};
use tests::netns::{Netns, run};
use tests::root::Root;
use tests::tls::{Authority, KeyKind, Wanted, first, offload};
use tests::watch::status;
use tests::world::FREE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CipherSuite, ClientConfig, DigitallySignedStruct, Error, HandshakeKind, NamedGroup, SignatureScheme,
};

fn main() -> Result<()> {
    let number = |at: usize, otherwise: u32| {
        std::env::args().nth(at).map_or(Ok(otherwise), |text| text.parse()).context("seconds and rounds are numbers")
    };
    let (span, rounds) = (Duration::from_secs(number(1, SECONDS)?.into()), number(2, ROUNDS)?.max(1));
    println!("{}", bench::machine());
    on_cpu(Pid::from_raw(0), CLIENTS)?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let bench = Bench::up()?;
    bench.measure(span, rounds)
}

struct Bench {
    lab: Temporary,
    inside: Netns,
    /// Ours is the first.
    servers: Vec<Server>,
}

/// Somebody who ends TLS: at one port with the RSA key, at another with that of P-256.
struct Server {
    name: &'static str,
    version: String,
    rsa: SocketAddr,
    p256: SocketAddr,
    process: i32,
    /// Of all but routerd, which is the lab's.
    child: Option<Child>,
}

/// A program of Debian's and how it is told what to do.
struct Peer {
    name: &'static str,
    program: &'static str,
    version: &'static str,
    arguments: fn(&str) -> Vec<String>,
    settings: fn(&Place) -> String,
}

/// Where a peer listens and finds things, as it sees them.
struct Place {
    listen: IpAddr,
    /// Of RSA; that of P-256 is the next.
    port: u16,
    behind: SocketAddr,
    /// Certificates and whatever it writes.
    folder: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Measured {
    Rsa,
    P256,
    Resumed,
    Bytes,
}

/// In a time, by a server that took so much of its CPU.
#[derive(Debug, Clone, Copy)]
struct Done {
    count: f64,
    took: Duration,
    cpu: Duration,
}

impl Done {
    fn per_second(self) -> f64 {
        self.count / self.took.as_secs_f64()
    }

    fn per_core(self) -> f64 {
        self.count / self.cpu.as_secs_f64()
    }

    fn share(self) -> f64 {
        self.cpu.as_secs_f64() / self.took.as_secs_f64()
    }
}

impl Bench {
    fn up() -> Result<Self> {
        let ports: Vec<_> = (0..2 * PEERS.len()).map(|at| format!("\"tcp/{}\"", usize::from(THEIRS) + at)).collect();
        let own = r#"input     = ["dhcp", "dns", "ntp", "ping", "ssh"]"#;
        let opened = own.replace(']', &format!(", {}]", ports.join(", ")));
        let lab = failover::changed(1, false, &[(own, &opened)])?;
        let (office, guests) = (&lab.site().vlans[0], &lab.site().vlans[1]);
        let folder = lab.site_file().parent().context("a site file without a folder")?.to_owned();
        let authority = Authority::new("servers")?;
        for (name, key) in [("rsa", KeyKind::Rsa2048), ("p256", KeyKind::P256)] {
            let wanted = Wanted { names: &[NAME], cn: "router", server: true, until: 2090, key };
            let identity = authority.signs(&wanted)?;
            identity.put(&folder, name)?;
            fs::write(folder.join(format!("{name}.both")), identity.certificate + &identity.key)?;
        }
        let inside = lab.host(office.id);
        // Whoever is the first to close a connection to the backend keeps its port for a minute. With all of them kept, each
        // new connection searches for a free one longer than a handshake takes.
        for place in [&lab.router(), &inside, &lab.host(guests.id)] {
            place.sysctls([("net/ipv4/tcp_max_tw_buckets", "256")])?;
        }
        let listen = first(&office.gateways, false)?;
        let behind = SocketAddr::new(guests.address(false).context("the guests have no host")?, FREE);
        let backend = lab.host(guests.id);
        thread::spawn(move || backend.enter(|| echo(behind)));
        thread::sleep(Duration::from_millis(200));
        let text = |name: &str, port: u16| {
            let (pem, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
            format!(
                "\n[[tls_offload]]\nname = \"{name}\"\nlisten = \"{listen}:{port}\"\nbackends = [\"{behind}\"]\n\
                 [tls_offload.limits]\nconnections = 30000\nhandshakes_per_source = 100000\nhandshake_burst = 100000\n\
                 [[tls_offload.certificate]]\nnames = \"{NAME}\"\ncertificate = \"{}\"\nkey = \"{}\"\n",
                pem.display(),
                key.display()
            )
        };
        offload(&lab, &(text("rsa", OURS) + &text("p256", OURS + 1)))?;
        let process = lab.processes().find(|(what, _)| *what == "routerd").context("no routerd")?.1;
        for thread in fs::read_dir(format!("/proc/{process}/task"))? {
            let thread = thread?.file_name().into_string().ok().context("a thread without a number")?;
            on_cpu(Pid::from_raw(thread.parse()?), SERVER)?;
        }
        let at = |port| SocketAddr::new(listen, port);
        let ours = Server {
            name: "Quadway",
            version: run(lab.routerctl()?.arg("--version"))?.trim().to_owned(),
            rsa: at(OURS),
            p256: at(OURS + 1),
            process,
            child: None,
        };
        let mut bench = Self { lab, inside, servers: vec![ours] };
        let peers = peers()?;
        for (number, peer) in (0_u16..).zip(&PEERS) {
            let place =
                Place { listen, port: THEIRS + 2 * number, behind, folder: format!("/host{}", folder.display()) };
            let server = bench.start(&peers, peer, &place, &folder)?;
            bench.servers.push(server);
        }
        Ok(bench)
    }

    fn start(&self, root: &Root, peer: &Peer, place: &Place, folder: &Path) -> Result<Server> {
        let router = self.lab.router();
        let told = root.command(&router, peer.program).arg(peer.version).output()?;
        let told = String::from_utf8_lossy(&[told.stdout, told.stderr].concat()).into_owned();
        let version = told.lines().find(|line| line.contains(|c: char| c.is_ascii_digit())).unwrap_or_default();
        fs::write(folder.join(format!("{}.conf", peer.name)), (peer.settings)(place))?;
        let log = folder.join(format!("{}.log", peer.name));
        let output = File::create(&log)?;
        let mut command = root.command(&router, peer.program);
        command.args((peer.arguments)(&format!("{}/{}.conf", place.folder, peer.name)));
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        // Children have the CPU of whoever starts them.
        on_cpu(Pid::from_raw(0), SERVER)?;
        let child = command.spawn();
        on_cpu(Pid::from_raw(0), CLIENTS)?;
        let child = child.with_context(|| format!("cannot start {}", peer.name))?;
        let at = |port| SocketAddr::new(place.listen, port);
        let server = Server {
            name: peer.name,
            version: version.trim().to_owned(),
            rsa: at(place.port),
            p256: at(place.port + 1),
            process: i32::try_from(child.id())?,
            child: Some(child),
        };
        let began = Instant::now();
        for to in [server.rsa, server.p256] {
            while self.inside.enter(|| std::net::TcpStream::connect_timeout(&to, PATIENCE))?.is_err() {
                ensure!(began.elapsed() < PATIENCE, "{} does not listen at {to}: {}", peer.name, tail(&log));
                thread::sleep(Duration::from_millis(50));
            }
        }
        Ok(server)
    }

    fn measure(&self, span: Duration, rounds: u32) -> Result<()> {
        println!(
            "{rounds} rounds of {span:?} each; one core for the server, one for {CONNECTIONS} clients and the backend"
        );
        for Server { name, version, .. } in &self.servers {
            println!("  {name}: {version}");
        }
        let mut done = BTreeMap::<(Measured, usize), Vec<Done>>::new();
        for _ in 0..rounds {
            for measured in [Measured::Rsa, Measured::P256, Measured::Resumed, Measured::Bytes] {
                for (at, server) in self.servers.iter().enumerate() {
                    let one =
                        self.one(server, measured, span).with_context(|| format!("{measured:?} of {}", server.name))?;
                    done.entry((measured, at)).or_default().push(one);
                }
            }
        }
        let crypto = &status(&self.lab)?["crypto"];
        println!("Quadway's engine: batches {}, operations {}", crypto["batches"], crypto["operations"]);
        for (measured, what, unit) in [
            (Measured::Rsa, "full handshakes, RSA-2048", 1.0),
            (Measured::P256, "full handshakes, P-256", 1.0),
            (Measured::Resumed, "resumed handshakes", 1.0),
            (Measured::Bytes, "MB there, and as many back", 1e6),
        ] {
            println!("\n| {what} | a second | of the core | per core |\n|---|---|---|---|");
            let mut medians = Vec::new();
            for (at, server) in self.servers.iter().enumerate() {
                let of = |value: fn(Done) -> f64| median(done[&(measured, at)].iter().copied().map(value).collect());
                let (rate, core) = (of(Done::per_second) / unit, of(Done::per_core) / unit);
                println!("| {} | {rate:.0} | {:.0} % | {core:.0} |", server.name, of(Done::share) * 100.0);
                medians.push((server.name, rate, core));
            }
            let [(_, rate, core), others @ ..] = medians.as_slice() else { bail!("nobody was measured") };
            for (word, own, of) in
                [("a second", rate, (|one| one.1) as fn(&(&str, f64, f64)) -> f64), ("per core", core, |one| one.2)]
            {
                let best =
                    others.iter().max_by(|one, other| of(one).total_cmp(&of(other))).context("there are peers")?;
                println!("{word}: {:.2} × the best of them, {}", own / of(best), best.0);
            }
        }
        Ok(())
    }

    fn one(&self, server: &Server, measured: Measured, span: Duration) -> Result<Done> {
        let to = if measured == Measured::P256 { server.p256 } else { server.rsa };
        let (cpu, began) = (cpu_time(server.process)?, Instant::now());
        let count = self.inside.enter(|| {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
                match measured {
                    Measured::Rsa | Measured::P256 => handshakes(to, false, span).await,
                    Measured::Resumed => handshakes(to, true, span).await,
                    Measured::Bytes => bytes(to, span).await,
                }
            })
        })??;
        let (took, cpu) = (began.elapsed(), cpu_time(server.process)?.saturating_sub(cpu));
        thread::sleep(SETTLE);
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let count = count as f64;
        Ok(Done { count, took, cpu })
    }
}

impl Drop for Server {
    /// With its workers: each of them hears it.
    fn drop(&mut self) {
        let Some(child) = &mut self.child else { return };
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            for process in family(self.process).unwrap_or_default().into_keys() {
                // It may have ended by itself.
                kill(Pid::from_raw(process), signal).ok();
            }
            for _ in 0..20 {
                if child.try_wait().is_ok_and(|ended| ended.is_some()) {
                    return;
                }
                thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// Connections, each begun when one is done: a handshake, a few bytes there and back, a reset.
async fn handshakes(to: SocketAddr, resumed: bool, span: Duration) -> Result<u64> {
    let (done, others) = (AtomicU64::new(0), AtomicU64::new(0));
    let until = Instant::now() + span;
    let each = (0..CONNECTIONS).map(|_| {
        let (done, others) = (&done, &others);
        async move {
            let tls = client(resumed)?;
            // The first gives the tickets.
            let mut first = resumed;
            while Instant::now() < until {
                let mut stream = connect(to, &tls).await?;
                let mut back = [0; PING.len()];
                stream.write_all(PING).await?;
                stream.read_exact(&mut back).await?;
                ensure!(back == *PING, "another text came back");
                let kind = stream.get_ref().1.handshake_kind();
                let as_wanted = (kind == Some(HandshakeKind::Resumed)) == resumed;
                reset(stream.get_ref().0);
                if !std::mem::take(&mut first) {
                    (if as_wanted { done } else { others }).fetch_add(1, Ordering::Relaxed);
                }
            }
            anyhow::Ok(())
        }
    });
    futures(each).await?;
    let (done, others) = (done.into_inner(), others.into_inner());
    ensure!(others * 50 <= done, "{others} handshakes were of the other kind, {done} of the one that is measured");
    Ok(done)
}

/// Bytes there; as many come back.
async fn bytes(to: SocketAddr, span: Duration) -> Result<u64> {
    let (moved, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let each = (0..STREAMS).map(|_| {
        let (moved, over) = (&moved, &over);
        async move {
            let stream = connect(to, &client(false)?).await?;
            let (mut reader, mut writer) = tokio::io::split(stream);
            let (chunk, mut back) = (vec![7; CHUNK], vec![0; CHUNK]);
            // The next is on its way while one comes back.
            writer.write_all(&chunk).await?;
            writer.flush().await?;
            while !over.load(Ordering::Relaxed) {
                let there = async {
                    writer.write_all(&chunk).await?;
                    writer.flush().await
                };
                tokio::try_join!(there, async { reader.read_exact(&mut back).await.map(drop) })?;
                ensure!(back == chunk, "another text came back");
                moved.fetch_add(CHUNK as u64, Ordering::Relaxed);
            }
            anyhow::Ok(())
        }
    });
    let clock = async {
        tokio::time::sleep(span).await;
        over.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    tokio::try_join!(futures(each), clock)?;
    Ok(moved.into_inner())
}

/// All of them at once, on this thread, until one fails.
async fn futures(all: impl Iterator<Item = impl Future<Output = Result<()>>>) -> Result<()> {
    let mut all: Vec<_> = all.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        let mut failed = None;
        all.retain_mut(|one| match one.as_mut().poll(context) {
            std::task::Poll::Pending => true,
            std::task::Poll::Ready(ended) => {
                failed = failed.take().or(ended.err());
                false
            }
        });
        match failed {
            Some(error) => std::task::Poll::Ready(Err(error)),
            None if all.is_empty() => std::task::Poll::Ready(Ok(())),
            None => std::task::Poll::Pending,
        }
    })
    .await
}

async fn connect(to: SocketAddr, tls: &Arc<ClientConfig>) -> Result<TlsStream<TcpStream>> {
    let connected = async {
        let stream = TcpSocket::new_v4()?.connect(to).await?;
        stream.set_nodelay(true)?;
        anyhow::Ok(TlsConnector::from(Arc::clone(tls)).connect(ServerName::try_from(NAME)?, stream).await?)
    };
    tokio::time::timeout(PATIENCE, connected).await?
}

fn client(resumed: bool) -> Result<Arc<ClientConfig>> {
    let ring = ring::default_provider();
    let suites = [CipherSuite::TLS13_AES_128_GCM_SHA256];
    let provider = CryptoProvider {
        cipher_suites: ring.cipher_suites.iter().filter(|one| suites.contains(&one.suite())).copied().collect(),
        kx_groups: ring.kx_groups.iter().filter(|one| one.name() == NamedGroup::X25519).copied().collect(),
        ..ring
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider)).with_protocol_versions(&[&TLS13])?;
    let mut config = builder.dangerous().with_custom_certificate_verifier(Arc::new(Trusting)).with_no_client_auth();
    config.resumption = if resumed { Resumption::in_memory_sessions(64) } else { Resumption::disabled() };
    Ok(Arc::new(config))
}

/// Checks nothing: it costs nothing.
#[derive(Debug)]
struct Trusting;

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::RSA_PSS_SHA256, SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// Gives back what it gets, for ever.
fn echo(at: SocketAddr) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(at).await?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            tokio::spawn(async move {
                let mut bytes = vec![0; CHUNK];
                // Its end is its client's business.
                while let Ok(length @ 1..) = stream.read(&mut bytes).await {
                    if stream.write_all(&bytes[..length]).await.is_err() {
                        break;
                    }
                }
            });
        }
    })
}

fn reset(stream: &TcpStream) {
    // Nothing of it is to wait in either kernel.
    drop(SockRef::from(stream).set_linger(Some(Duration::ZERO)));
}

/// The root that `tests/root/tls-peers` makes.
fn peers() -> Result<Root> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder: PathBuf = manifest.join("../target/lab/tls-peers");
    let folder = std::path::absolute(folder)?;
    ensure!(folder.join("complete").exists(), "{} has no peers: `make tls-peers` fetches them", folder.display());
    Ok(Root::Directory(folder.canonicalize()?))
}

/// CPU time of a process and its children, threads that have ended included.
fn cpu_time(process: i32) -> Result<Duration> {
    let ticks: u64 = family(process)?.into_values().sum();
    let each = sysconf(SysconfVar::CLK_TCK)?.context("a kernel without ticks")?;
    Ok(Duration::from_secs(ticks) / u32::try_from(each)?)
}

/// A process and all below it, with the ticks each has taken.
fn family(process: i32) -> Result<BTreeMap<i32, u64>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // It may have ended meanwhile.
        let Ok(text) = fs::read_to_string(format!("/proc/{number}/stat")) else { continue };
        let Some((_, rest)) = text.rsplit_once(')') else { continue };
        // From the third field on, proc_pid_stat(5).
        let fields: Vec<_> = rest.split_ascii_whitespace().collect();
        let field = |at: usize| fields.get(at - 3).and_then(|text| text.parse::<u64>().ok());
        let (Some(parent), Some(user), Some(system)) = (field(4), field(14), field(15)) else { continue };
        all.insert(number, (i32::try_from(parent)?, user + system));
    }
    let mut found = BTreeMap::new();
    let mut next = vec![process];
    while let Some(number) = next.pop() {
        if let Some((_, ticks)) = all.get(&number) {
            found.insert(number, *ticks);
        }
        next.extend(all.iter().filter(|(_, (parent, _))| *parent == number).map(|(child, _)| *child));
    }
    Ok(found)
}

fn on_cpu(thread: Pid, cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(thread, &set)?)
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

const PEERS: [Peer; 4] = [
    Peer {
        name: "haproxy",
        program: "/usr/sbin/haproxy",
        version: "-v",
        arguments: |file| vec!["-db".to_owned(), "-f".to_owned(), file.to_owned()],
        settings: |Place { listen, port, behind, folder }| {
            format!(
                "global\n nbthread 1\n maxconn 4000\n ssl-default-bind-options ssl-min-ver TLSv1.2\n\
                 defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
                 frontend rsa\n bind {listen}:{port} ssl crt {folder}/rsa.both\n default_backend behind\n\
                 frontend p256\n bind {listen}:{} ssl crt {folder}/p256.both\n default_backend behind\n\
                 backend behind\n server one {behind}\n",
                port + 1
            )
        },
    },
    Peer {
        name: "nginx",
        program: "/usr/sbin/nginx",
        version: "-v",
        arguments: |file| vec!["-c".to_owned(), file.to_owned()],
        settings: |Place { listen, port, behind, folder }| {
            let server = |name: &str, port: u16| {
                format!(
                    "server {{ listen {listen}:{port} ssl; ssl_certificate {folder}/{name}.pem; \
                     ssl_certificate_key {folder}/{name}.key; ssl_protocols TLSv1.2 TLSv1.3; ssl_session_tickets on; \
                     proxy_pass {behind}; }}\n"
                )
            };
            format!(
                "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\nuser root;\nworker_processes 1;\n\
                 pid {folder}/nginx.pid;\nerror_log {folder}/nginx.errors;\nevents {{ worker_connections 8000; }}\n\
                 stream {{\n{}{}}}\n",
                server("rsa", *port),
                server("p256", port + 1)
            )
        },
    },
    Peer {
        name: "hitch",
        program: "/usr/sbin/hitch",
        version: "--version",
        arguments: |file| vec![format!("--config={file}")],
        settings: |Place { listen, port, behind, folder }| {
            let frontend = |name: &str, port: u16| {
                format!(
                    "frontend = {{\n host = \"{listen}\"\n port = \"{port}\"\n pem-file = \"{folder}/{name}.both\"\n}}\n"
                )
            };
            format!(
                "{}{}backend = \"[{}]:{}\"\nworkers = 1\ndaemon = off\nuser = \"root\"\nlog-level = 0\n\
                 tls-protos = TLSv1.2 TLSv1.3\n",
                frontend("rsa", *port),
                frontend("p256", port + 1),
                behind.ip(),
                behind.port()
            )
        },
    },
    Peer {
        name: "stunnel",
        program: "/usr/bin/stunnel4",
        version: "-version",
        arguments: |file| vec![file.to_owned()],
        settings: |Place { listen, port, behind, folder }| {
            let service = |name: &str, port: u16| {
                format!(
                    "[{name}]\naccept = {listen}:{port}\nconnect = {behind}\ncert = {folder}/{name}.pem\n\
                     key = {folder}/{name}.key\n"
                )
            };
            format!(
                "foreground = yes\npid =\nsyslog = no\ndebug = err\nsslVersionMin = TLSv1.2\n{}{}",
                service("rsa", *port),
                service("p256", port + 1)
            )
        },
    },
];
const NAME: &str = "shop.example";
/// Of RSA; that of P-256 is the next.
const OURS: u16 = 4443;
const THEIRS: u16 = 5001;
const SERVER: usize = 0;
const CLIENTS: usize = 1;
const CONNECTIONS: usize = 32;
const STREAMS: usize = 4;
const CHUNK: usize = 32 << 10;
const PING: &[u8; 32] = b"as many bytes there and as back ";
const SECONDS: u32 = 4;
const ROUNDS: u32 = 5;
/// What is left of connections that were reset.
const SETTLE: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(10);
