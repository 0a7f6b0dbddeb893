//! Measures what hostile clients of TLS offload and of the API over HTTPS cost everybody else: the throughput of
//! connections that are there, the memory of the daemon, and failover. The routerd beside this program; needs root.
//!
//! `offload load` is the first two, `offload failover [PAIRS]` and `offload api [PAIRS]` the third; without a word, all.
//!
//! Routerd has the first CPU for itself, whoever talks with it the second. What a packet costs on a veth, up to the far
//! end's socket, is charged to whoever sent it: the router's part of a flood's packets is on the clients' CPU, and the
//! flood is slower than one of a machine of its own would be.
#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;
use socket2::SockRef;
use tests::failover::{self, Trial, trial};
use tests::lab::Temporary;
use tests::link::Fault;
use tests::netns::{Netns, feed, run};
use tests::tls::{Authority, KeyKind, Wanted, first, offload};
use tests::watch::{status, wait_usable};
use tests::world::FREE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

fn main() -> Result<()> {
    let what = std::env::args().nth(1).unwrap_or_default();
    let pairs = std::env::args().nth(2).map_or(Ok(PAIRS), |text| text.parse()).context("how many pairs?")?;
    println!("{}", bench::machine());
    on_cpu(Pid::from_raw(0), CLIENTS)?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let mut site = Site::up(most)?;
    if ["", "load"].contains(&what.as_str()) {
        site.load()?;
    }
    if ["", "failover"].contains(&what.as_str()) {
        site.failovers(pairs, "TLS offload", Site::floods)?;
    }
    if ["", "api"].contains(&what.as_str()) {
        site.failovers(pairs, "the API over HTTPS", Site::api_floods)?;
    }
    Ok(())
}

struct Site {
    lab: Temporary,
    inside: Netns,
    to: SocketAddr,
    api: SocketAddr,
    tls: Arc<ClientConfig>,
    idle: usize,
}

impl Site {
    fn up(descriptors: u64) -> Result<Self> {
        let lab = failover::lab(LINES, false)?;
        let (office, guests) = (&lab.site().vlans[0], &lab.site().vlans[1]);
        let folder = lab.site_file().parent().context("a site file without a folder")?.to_owned();
        let authority = Authority::new("servers")?;
        let wanted = Wanted { names: &[NAME], cn: "router", server: true, until: 2090, key: KeyKind::Rsa2048 };
        authority.signs(&wanted)?.put(&folder, "shop")?;
        fs::write(folder.join("clients.pem"), Authority::new("clients")?.pem())?;
        let inside = lab.host(office.id);
        let gateway = first(&office.gateways, false)?;
        let (to, api) = (SocketAddr::new(gateway, PORT), SocketAddr::new(gateway, API));
        let behind = SocketAddr::new(guests.address(false).context("the guests have no host")?, FREE);
        let backend = lab.host(guests.id);
        thread::spawn(move || backend.enter(|| echo(behind)));
        let path = |name: &str| folder.join(name).display().to_string();
        let mut text = String::new();
        write!(
            text,
            "\n[api]\nlisten = \"{api}\"\ncertificate = \"{pem}\"\nkey = \"{key}\"\nclient_ca = \"{ca}\"\n\
             [api.client.rita]\nrole = \"reader\"\ncn = \"rita\"\n\
             [[tls_offload]]\nname = \"shop\"\nlisten = \"{to}\"\nbackends = [\"{behind}\"]\n\
             [tls_offload.limits]\nconnections = 30000\nhandshakes_per_source = 100000\nhandshake_burst = 100000\n\
             idle_timeout = \"10m\"\n\
             [[tls_offload.certificate]]\nnames = \"{NAME}\"\ncertificate = \"{pem}\"\nkey = \"{key}\"\n",
            pem = path("shop.pem"),
            key = path("shop.key"),
            ca = path("clients.pem"),
        )?;
        thread::sleep(Duration::from_millis(200));
        offload(&lab, &text)?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes())?)?;
        let mut tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        tls.resumption = Resumption::disabled();
        // Two descriptors of a connection are routerd's, and two are ours: the client's and the backend's.
        let idle = usize::try_from(descriptors)?.saturating_sub(2 * SPARE) / 2;
        let site = Self { lab, inside, to, api, tls: Arc::new(tls), idle: idle.min(MOST_IDLE) };
        site.pin()?;
        Ok(site)
    }

    /// Routerd and its threads.
    fn pin(&self) -> Result<()> {
        for thread in fs::read_dir(format!("/proc/{}/task", self.daemon()?))? {
            let thread = thread?.file_name().into_string().ok().context("a thread without a number")?;
            on_cpu(Pid::from_raw(thread.parse()?), DAEMON)?;
        }
        Ok(())
    }

    fn daemon(&self) -> Result<i32> {
        Ok(self.lab.processes().find(|(what, _)| *what == "routerd").context("no routerd")?.1)
    }

    /// Megabytes: what it has, and the most it had.
    fn resident(&self) -> Result<(f64, f64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.daemon()?))?;
        let of = |key: &str| -> Result<f64> {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).context("a status without memory")?;
            Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1000.0)
        };
        Ok((of("VmRSS:")?, of("VmHWM:")?))
    }

    fn load(&self) -> Result<()> {
        let (before, _) = self.resident()?;
        let sustained = self.sustained()?;
        println!("full handshakes (RSA-2048, TLS 1.3) that it sustains: {sustained:.0} a second");
        println!("resident before {before:.1} MB, after them {:.1} MB\n", self.resident()?.0);
        println!(
            "| established | hostile | begun a second | × sustained | calm, MB/s | among them, MB/s | kept | a new \
             handshake, ms | resident, MB |"
        );
        println!("|---|---|---|---|---|---|---|---|---|");
        for (label, pace) in [("paced", Some(PACE)), ("as fast as it goes", None)] {
            for (what, begin) in NUISANCES {
                let busy = Busy::start(self, pace)?;
                thread::sleep(SETTLE);
                let (mut calm, mut among) = (Vec::new(), Vec::new());
                let (mut begun, mut latencies, mut memory) = (0, Vec::new(), 0.0_f64);
                for _ in 0..ROUNDS {
                    calm.push(busy.rate(SPAN));
                    let hostile = begin(self)?;
                    thread::sleep(SETTLE);
                    let before = hostile.begun.load(Ordering::Relaxed);
                    among.push(busy.rate(SPAN));
                    begun += hostile.begun.load(Ordering::Relaxed) - before;
                    memory = memory.max(self.resident()?.0);
                    for _ in 0..5 {
                        latencies.push(self.handshake().ok());
                    }
                    hostile.stop()?;
                    thread::sleep(SETTLE);
                }
                busy.stop()?;
                let begun = f64::from(u32::try_from(begun)?) / (SPAN.as_secs_f64() * f64::from(ROUNDS));
                let (calm, among) = (median(calm), median(among));
                let failed = latencies.iter().filter(|took| took.is_none()).count();
                let served = median(latencies.iter().flatten().map(|took| took.as_secs_f64() * 1000.0).collect());
                println!(
                    "| {label} | {what} | {begun:.0} | {:.1} | {:.1} | {:.1} | {:.0} % | {served:.0} ({failed} of {} \
                     failed) | {memory:.1} |",
                    begun / sustained,
                    calm / 1e6,
                    among / 1e6,
                    among / calm * 100.0,
                    latencies.len(),
                );
            }
        }
        self.idle()?;
        println!("\nrefused: {}", status(&self.lab)?["tls_offload"][0]["refused"]);
        Ok(())
    }

    /// Handshakes a second, each begun when one is done.
    fn sustained(&self) -> Result<f64> {
        let (tls, to) = (Arc::clone(&self.tls), self.to);
        let done = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&done);
        self.inside.enter(move || {
            runtime()?.block_on(async {
                let all = together((0..32).map(|_| {
                    let (tls, count) = (Arc::clone(&tls), Arc::clone(&count));
                    async move {
                        loop {
                            let stream = TcpSocket::new_v4()?.connect(to).await?;
                            let stream = TlsConnector::from(Arc::clone(&tls)).connect(name()?, stream).await?;
                            reset(stream.get_ref().0);
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }));
                match tokio::time::timeout(SPAN, all).await {
                    Ok(ended) => ended.map(|_: Vec<()>| ()),
                    Err(_elapsed) => Ok(()),
                }
            })
        })??;
        Ok(f64::from(u32::try_from(done.load(Ordering::Relaxed))?) / SPAN.as_secs_f64())
    }

    /// How long a client waits that does nothing wrong.
    fn handshake(&self) -> Result<Duration> {
        self.inside.enter(|| {
            let start = Instant::now();
            self.connect()?;
            Ok(start.elapsed())
        })?
    }

    /// Whoever calls is inside.
    fn connect(&self) -> Result<StreamOwned<ClientConnection, TcpStream>> {
        let mut connection = ClientConnection::new(Arc::clone(&self.tls), name()?)?;
        let mut stream = TcpStream::connect_timeout(&self.to, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        while connection.is_handshaking() {
            connection.complete_io(&mut stream)?;
        }
        Ok(StreamOwned::new(connection, stream))
    }

    /// Clients that say nothing once they are in.
    fn idle(&self) -> Result<()> {
        let before = self.resident()?.0;
        let (tls, to, wanted) = (Arc::clone(&self.tls), self.to, self.idle);
        let (ready, told) = std::sync::mpsc::channel();
        let over = Arc::new(AtomicBool::new(false));
        let (until, inside) = (Arc::clone(&over), Netns::named(self.inside.name()));
        let holder: JoinHandle<Result<()>> = thread::spawn(move || {
            inside.enter(|| {
                runtime()?.block_on(async {
                    let mut held = Vec::with_capacity(wanted);
                    while held.len() < wanted {
                        let some = (held.len()..wanted).take(64).map(|_| {
                            let connector = TlsConnector::from(Arc::clone(&tls));
                            async move {
                                let stream = TcpSocket::new_v4()?.connect(to).await?;
                                anyhow::Ok(connector.connect(name()?, stream).await?)
                            }
                        });
                        held.extend(together(some).await?);
                    }
                    ready.send(held.len())?;
                    while !until.load(Ordering::Relaxed) {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    Ok(())
                })
            })?
        });
        let held = told.recv();
        if held.is_err() {
            return holder.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        thread::sleep(SETTLE);
        let with = self.resident()?.0;
        let latency = self.handshake()?;
        over.store(true, Ordering::Relaxed);
        holder.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        thread::sleep(Duration::from_secs(3));
        let after = self.resident()?.0;
        let each = (with - before) * 1000.0 / f64::from(u32::try_from(wanted)?);
        println!(
            "\n{wanted} idle connections: resident {before:.1} → {with:.1} MB ({each:.1} kB each), {after:.1} MB when they \
             had gone; a new handshake took {:.0} ms",
            latency.as_secs_f64() * 1000.0
        );
        Ok(())
    }

    fn failovers(&mut self, pairs: u8, what: &str, begin: fn(&Self) -> Result<Hostile>) -> Result<()> {
        println!("\nfailover, hostile clients of {what}: {pairs} pairs, blackholes, lines in turn, milliseconds");
        println!(
            "| pair | calm: flow goes on | unluckiest birth | hostile: flow goes on | unluckiest birth | begun a second |"
        );
        println!("|---|---|---|---|---|---|");
        let (mut calm, mut hostile) = (Vec::new(), Vec::new());
        for pair in 0..pairs {
            let line = pair % LINES + 1;
            let quiet = self.trial(line)?;
            let load = begin(self)?;
            thread::sleep(SETTLE);
            let (before, start) = (load.begun.load(Ordering::Relaxed), Instant::now());
            let among = self.trial(line)?;
            let begun = load.begun.load(Ordering::Relaxed) - before;
            let rate = f64::from(u32::try_from(begun)?) / start.elapsed().as_secs_f64();
            load.stop()?;
            thread::sleep(SETTLE);
            println!(
                "| {} | {} | {} | {} | {} | {rate:.0} |",
                pair + 1,
                millis(Some(quiet.flow)),
                millis(quiet.born),
                millis(Some(among.flow)),
                millis(among.born)
            );
            calm.push(quiet.flow.as_secs_f64() * 1000.0);
            hostile.push(among.flow.as_secs_f64() * 1000.0);
        }
        println!(
            "medians: calm {:.0}, hostile {:.0}; resident {:?} MB (now, most)",
            median(calm),
            median(hostile),
            self.resident()?
        );
        Ok(())
    }

    fn trial(&mut self, line: u8) -> Result<Trial> {
        let trial = trial(&mut self.lab, line, Fault::Blackhole, Duration::from_millis(1500))?;
        wait_usable(&self.lab, &format!("wan{line}"), "v4", true)?;
        Ok(trial)
    }

    /// Hellos without an end: each costs the server its share of a handshake, with the signature, and the client little.
    fn floods(&self) -> Result<Hostile> {
        self.flooding(self.to, vec![hello(0x0804)], 512)
    }

    /// The same at the API, and what is no TLS, or half of it.
    fn api_floods(&self) -> Result<Hostile> {
        let whole = hello(0x0804);
        let half = whole[..whole.len() / 2].to_vec();
        self.flooding(self.api, vec![whole, half, (0..=255).collect::<Vec<u8>>().repeat(16), Vec::new()], 64)
    }

    fn flooding(&self, to: SocketAddr, texts: Vec<Vec<u8>>, at_once: usize) -> Result<Hostile> {
        Hostile::start(&self.inside, move |stop, begun| async move {
            let texts = Arc::new(texts);
            together((0..at_once).map(|mut turn| {
                let (stop, begun, texts) = (Arc::clone(&stop), Arc::clone(&begun), Arc::clone(&texts));
                async move {
                    while !stop.load(Ordering::Relaxed) {
                        // It may be refused or cut off; that is its own trouble.
                        let attack = async {
                            let mut stream = TcpSocket::new_v4()?.connect(to).await?;
                            begun.fetch_add(1, Ordering::Relaxed);
                            stream.write_all(&texts[turn % texts.len()]).await?;
                            drop(stream.read(&mut [0; 1]).await);
                            reset(&stream);
                            anyhow::Ok(())
                        };
                        if !matches!(tokio::time::timeout(Duration::from_millis(500), attack).await, Ok(Ok(()))) {
                            tokio::time::sleep(Duration::from_millis(2)).await;
                        }
                        turn += 1;
                    }
                    Ok(())
                }
            }))
            .await
            .map(|_: Vec<()>| ())
        })
    }

    /// A byte of a hello every second, from 2,000 at once, each as long as it is let.
    fn slow(&self) -> Result<Hostile> {
        let to = self.to;
        Hostile::start(&self.inside, move |stop, begun| async move {
            let text = Arc::new(hello(0x0804));
            together((0..2000).map(|number| {
                let (stop, begun, text) = (Arc::clone(&stop), Arc::clone(&begun), Arc::clone(&text));
                async move {
                    tokio::time::sleep(Duration::from_millis(number / 2)).await;
                    while !stop.load(Ordering::Relaxed) {
                        let attack = async {
                            let mut stream = TcpSocket::new_v4()?.connect(to).await?;
                            begun.fetch_add(1, Ordering::Relaxed);
                            for byte in text.iter().take_while(|_| !stop.load(Ordering::Relaxed)) {
                                stream.write_all(&[*byte]).await?;
                                tokio::time::sleep(Duration::from_secs(1)).await;
                            }
                            anyhow::Ok(())
                        };
                        if attack.await.is_err() {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                    Ok(())
                }
            }))
            .await
            .map(|_: Vec<()>| ())
        })
    }

    /// Connections whose third segment never comes: the host that begins them does not hear the second.
    fn half_open(&self) -> Result<Hostile> {
        let deaf = "table inet deaf\ndelete table inet deaf\ntable inet deaf {\nchain in {\n\
                    type filter hook prerouting priority -300\nip daddr 10.0.10.77 drop\n}\n}\n";
        let root = tests::root::Root::find()?;
        self.inside.ip_lenient("address add 10.0.10.77/24 dev eth0");
        feed(root.command(&self.inside, "nft").args(["-f", "-"]), deaf)?;
        let to = self.to;
        Hostile::start(&self.inside, move |stop, begun| async move {
            together((0..2000).map(|_| {
                let (stop, begun) = (Arc::clone(&stop), Arc::clone(&begun));
                async move {
                    while !stop.load(Ordering::Relaxed) {
                        let socket = TcpSocket::new_v4()?;
                        socket.bind(SocketAddr::from(([10, 0, 10, 77], 0)))?;
                        begun.fetch_add(1, Ordering::Relaxed);
                        drop(tokio::time::timeout(Duration::from_millis(200), socket.connect(to)).await);
                    }
                    Ok(())
                }
            }))
            .await
            .map(|_: Vec<()>| ())
        })
    }
}

type Begin = fn(&Site) -> Result<Hostile>;
const NUISANCES: [(&str, Begin); 3] =
    [("hellos without an end", Site::floods), ("a byte a second", Site::slow), ("half-open", Site::half_open)];

/// Clients that mean harm, on a thread that gives way to all others.
struct Hostile {
    stop: Arc<AtomicBool>,
    begun: Arc<AtomicU64>,
    thread: JoinHandle<Result<()>>,
}

impl Hostile {
    fn start<F: Future<Output = Result<()>>>(
        inside: &Netns,
        attack: impl FnOnce(Arc<AtomicBool>, Arc<AtomicU64>) -> F + Send + 'static,
    ) -> Result<Self> {
        let (stop, begun) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (its, count, inside) = (Arc::clone(&stop), Arc::clone(&begun), Netns::named(inside.name()));
        let thread = thread::Builder::new().spawn(move || {
            inside.enter(|| {
                let own = nix::unistd::gettid().to_string();
                run(Command::new("renice").args(["-n", "10", "-p", &own]))?;
                runtime()?.block_on(attack(its, count))
            })?
        })?;
        Ok(Self { stop, begun, thread })
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Connections that send and get back.
struct Busy {
    stop: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Busy {
    /// Each as many bytes a second, or as many as go.
    fn start(site: &Site, pace: Option<u32>) -> Result<Self> {
        let (stop, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let threads = (0..STREAMS).map(|_| {
            let mut stream = site.inside.enter(|| site.connect())??;
            let (stop, bytes) = (Arc::clone(&stop), Arc::clone(&bytes));
            anyhow::Ok(thread::spawn(move || {
                let (chunk, mut back, start) = (vec![7; CHUNK], vec![0; CHUNK], Instant::now());
                let mut sent = 0.0;
                while !stop.load(Ordering::Relaxed) {
                    stream.write_all(&chunk)?;
                    stream.read_exact(&mut back)?;
                    ensure!(back == chunk, "another text came back");
                    bytes.fetch_add(CHUNK as u64, Ordering::Relaxed);
                    sent += f64::from(u32::try_from(CHUNK)?);
                    if let Some(pace) = pace {
                        let due = Duration::from_secs_f64(sent / f64::from(pace));
                        thread::sleep(due.saturating_sub(start.elapsed()));
                    }
                }
                Ok(())
            }))
        });
        Ok(Self { threads: threads.collect::<Result<_>>()?, stop, bytes })
    }

    /// Bytes a second there, and as many back.
    fn rate(&self, span: Duration) -> f64 {
        let (before, start) = (self.bytes.load(Ordering::Relaxed), Instant::now());
        thread::sleep(span);
        let moved = self.bytes.load(Ordering::Relaxed) - before;
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let moved = moved as f64;
        moved / start.elapsed().as_secs_f64()
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }
}

/// Gives back what it gets, for ever.
fn echo(at: SocketAddr) -> Result<()> {
    runtime()?.block_on(async {
        let listener = TcpListener::bind(at).await?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                // Its end is its client's business.
                drop(tokio::io::copy(&mut from, &mut to).await);
            });
        }
    })
}

/// A whole `ClientHello` of TLS 1.3 (RFC 8446, 4.1.2) that takes signatures of this scheme.
fn hello(scheme: u16) -> Vec<u8> {
    let vector = |body: &[u8]| [&u16::try_from(body.len()).unwrap_or_default().to_be_bytes(), body].concat();
    let extension = |kind: u16, body: &[u8]| [&kind.to_be_bytes()[..], &vector(body)].concat();
    let name = [&[0], &vector(NAME.as_bytes())[..]].concat();
    // Any 32 bytes are a point of X25519 (RFC 7748, 5).
    let share = [&[0, 29][..], &vector(&[9; 32])].concat();
    let extensions = [
        extension(0, &vector(&name)),
        extension(10, &vector(&[0, 29])),
        extension(13, &vector(&scheme.to_be_bytes())),
        extension(43, &[2, 3, 4]),
        extension(51, &vector(&share)),
    ]
    .concat();
    let body = [&[3, 3][..], &[5; 32], &[0], &vector(&[0x13, 1]), &[1, 0], &vector(&extensions)].concat();
    let message = [&[1, 0][..], &vector(&body)].concat();
    [&[22, 3, 1][..], &vector(&message)].concat()
}

/// All of them at once, until one fails.
async fn together<T: Send + 'static>(
    all: impl Iterator<Item = impl Future<Output = Result<T>> + Send + 'static>,
) -> Result<Vec<T>> {
    let mut set: JoinSet<_> = all.collect();
    let mut done = Vec::new();
    while let Some(ended) = set.join_next().await {
        done.push(ended??);
    }
    Ok(done)
}

fn reset(stream: &tokio::net::TcpStream) {
    // Nothing of it is to wait in either kernel.
    drop(SockRef::from(stream).set_linger(Some(Duration::ZERO)));
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn name() -> Result<ServerName<'static>> {
    Ok(ServerName::try_from(NAME)?)
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

fn millis(time: Option<Duration>) -> String {
    time.map_or_else(|| "never".to_owned(), |time| format!("{:.0}", time.as_secs_f64() * 1000.0))
}

const NAME: &str = "shop.example";
const PORT: u16 = 4443;
const API: u16 = 8443;
const LINES: u8 = 3;
const PAIRS: u8 = 6;
const DAEMON: usize = 0;
const CLIENTS: usize = 1;
const STREAMS: usize = 4;
const CHUNK: usize = 32 << 10;
/// Bytes a second of each stream.
const PACE: u32 = 5_000_000;
const ROUNDS: u32 = 3;
const SPAN: Duration = Duration::from_secs(4);
const SETTLE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);
const MOST_IDLE: usize = 20_000;
/// Descriptors for everything else.
const SPARE: usize = 600;
