//! One connection, from the client's first byte to the last of either side.
//!
//! ```text
//!   accept ─▶ hello (no thread is held) ─▶ signature (a thread of handshakes) ─▶ backend ─▶ bytes
//! ```
//!
//! Whoever sends nothing costs a socket until the handshake's time is over. Only a whole `ClientHello` gets into the queue
//! for a signature, which is short: what does not fit is refused at once, because to wait there for longer than clients
//! do would be work for nobody.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use config::model::{TlsOffload, TlsVersion};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout_at;
use tokio_rustls::rustls::server::{Acceptor, ClientHello};
use tokio_rustls::rustls::{self, HandshakeKind, ProtocolVersion, ServerConnection};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, TlsConnector};

use super::backends::{self, Pool, Served};
use super::files::Loaded;
use super::limits::Sources;
use super::proxy::{self, Told};
use super::pump::{End, pump};
use super::tally::{Place, Refused, Tally};
use crate::api::certificate::Presented;
use crate::handshake;

/// On what terms connections are served, until others take their place.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) offload: TlsOffload,
    pub(super) loaded: Loaded,
    pub(super) pool: Pool,
    pub(super) lives: Lives,
    pub(super) tally: Arc<Tally>,
    pub(super) sources: Arc<Mutex<Sources>>,
    pub(super) threads: Threads,
    /// Connections that routerd has descriptors for, whatever the limits say.
    pub(super) descriptors: Arc<Semaphore>,
}

/// Ends that connections of these terms have to expect: each sender that is dropped ends some of them.
#[derive(Debug, Clone)]
pub(super) struct Lives {
    /// Of who is let in.
    pub(super) trust: watch::Receiver<()>,
    pub(super) backends: Vec<(SocketAddr, watch::Receiver<()>)>,
}

/// Where handshakes are made.
#[derive(Debug, Clone)]
pub(super) struct Threads {
    pub(super) handshakes: Handle,
    /// Those that wait for a thread, or are on one.
    pub(super) queue: Arc<Semaphore>,
}

/// A connection that was let in, with what it holds.
#[derive(Debug)]
pub(super) struct Admitted {
    stream: TcpStream,
    from: SocketAddr,
    terms: Arc<Terms>,
    _holds: Holds,
}

/// What is given back with it.
type Holds = (Place, OfSource, OwnedSemaphorePermit);

#[derive(Debug)]
struct OfSource(Arc<Mutex<Sources>>, IpAddr);

impl Drop for OfSource {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).leave(self.1);
    }
}

/// Lets a connection in or ends it. A newcomer never takes the place of a connection that is there.
pub(super) fn admit(stream: TcpStream, from: SocketAddr, terms: &Arc<Terms>) -> Option<Admitted> {
    match admitted(terms, from) {
        Ok(holds) => {
            terms.tally.accepted.fetch_add(1, Ordering::Relaxed);
            Some(Admitted { stream, from, terms: Arc::clone(terms), _holds: holds })
        }
        Err(why) => {
            terms.tally.refuse(why);
            tracing::debug!(offload = %terms.offload.name, %from, why = why.word(), "a connection is refused");
            reset(&stream);
            None
        }
    }
}

fn admitted(terms: &Terms, from: SocketAddr) -> Result<Holds, Refused> {
    let limits = &terms.offload.limits;
    if !terms.pool.any_up() {
        return Err(Refused::NoBackend);
    }
    let place = terms.tally.place(limits.connections).ok_or(Refused::Connections)?;
    let descriptors = Arc::clone(&terms.descriptors).try_acquire_owned().map_err(|_none| Refused::Descriptors)?;
    let mut sources = terms.sources.lock().unwrap_or_else(PoisonError::into_inner);
    sources.admit(from.ip(), limits, Instant::now())?;
    Ok((place, OfSource(Arc::clone(&terms.sources), from.ip()), descriptors))
}

/// So that nothing of it is remembered, neither here nor there.
pub(super) fn reset(stream: &TcpStream) {
    // Closing it is all that is left to do either way.
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).ok();
}

impl Admitted {
    /// To its end. `listener` ends with the address it came in by.
    pub(super) async fn serve(self, listener: watch::Receiver<()>) {
        let Self { stream, from, terms, _holds } = self;
        let name = &terms.offload.name;
        match serve(stream, from, &terms, listener).await {
            Ok(ended) => tracing::debug!(offload = %name, %from, ?ended, "a connection ended"),
            Err(Failed::Refused(why, error)) => {
                terms.tally.refuse(why);
                let error = error.map(|error| error.to_string());
                tracing::debug!(offload = %name, %from, why = why.word(), error, "a connection is refused");
            }
            Err(Failed::Broken(error)) => tracing::debug!(offload = %name, %from, %error, "a connection broke"),
        }
    }
}

/// How a connection that was served came to its end.
#[derive(Debug)]
enum Ended {
    /// Done or idle.
    Itself(End),
    /// Its listener, its backend or its right to be is gone, and so is the time it was left.
    Drained,
}

enum Failed {
    Refused(Refused, Option<io::Error>),
    Broken(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

async fn serve(
    stream: TcpStream,
    from: SocketAddr,
    terms: &Arc<Terms>,
    listener: watch::Receiver<()>,
) -> Result<Ended, Failed> {
    let own = stream.local_addr()?;
    ready(&stream)?;
    let mut client = shake(stream, terms).await?;
    let session = client.get_ref().1;
    let about = About::of(session);
    terms.tally.shook(about.version.1, about.kind);
    let (served, mut backend) = match reach(terms, from, own, &about).await {
        Ok(reached) => reached,
        Err(refused) => {
            // The client hears that there is nothing more to come. It may not care to listen.
            tokio::time::timeout(FAREWELL, client.shutdown()).await.ok();
            return Err(refused);
        }
    };
    let Terms { offload, tally, lives, .. } = &**terms;
    let (buffer, idle) = (offload.limits.buffer as usize, offload.limits.idle_timeout);
    let of_backend = lives.backends.iter().find(|(address, _)| *address == served.address());
    let over = over([Some(listener), Some(lives.trust.clone()), of_backend.map(|(_, life)| life.clone())]);
    let ended = tokio::select! {
        ended = pump(&mut client, &mut backend, (&tally.received, &tally.sent), buffer, idle) => ended.map(Ended::Itself),
        () = async { over.await; tokio::time::sleep(offload.limits.drain).await } => Ok(Ended::Drained),
    };
    match &ended {
        // It was not the client that ended it: it hears that there is nothing more to come.
        Ok(Ended::Itself(End::Idle) | Ended::Drained) => {
            tokio::time::timeout(FAREWELL, client.shutdown()).await.ok();
        }
        // What was wrong with its records, an alert has told.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => last_word(client.into_inner().0).await,
        Ok(Ended::Itself(End::Done)) | Err(_) => {}
    }
    Ok(ended?)
}

/// When one of them has ended.
async fn over(lives: [Option<watch::Receiver<()>>; 3]) {
    let [one, two, three] = lives.map(|life| async {
        match life {
            Some(mut life) => while life.changed().await.is_ok() {},
            None => std::future::pending().await,
        }
    });
    tokio::select! {
        () = one => {}
        () = two => {}
        () = three => {}
    }
}

fn ready(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // Who vanished without a word is noticed before an idle time of hours is over.
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// The handshake, within its time.
async fn shake(stream: TcpStream, terms: &Arc<Terms>) -> Result<TlsStream<TcpStream>, Failed> {
    let deadline = tokio::time::Instant::now() + terms.offload.limits.handshake_timeout;
    let late = |_elapsed| Failed::Refused(Refused::Timeout, None);
    let mut acceptor = LazyConfigAcceptor::new(Acceptor::default(), stream);
    let mut hello = match timeout_at(deadline, &mut acceptor).await.map_err(late)? {
        Ok(hello) => hello,
        Err(error) => {
            if let Some(stream) = acceptor.take_io() {
                last_word(stream).await;
            }
            return Err(refused(error));
        }
    };
    if let Some((why, alert)) = unwelcome(&hello.client_hello(), terms) {
        // RFC 8446, 5.1 and 6: a record of one alert, which is fatal.
        let told = timeout_at(deadline, hello.io.write_all(&[21, 3, 3, 0, 2, 2, alert])).await;
        told.map_err(late)?.map_err(|error| Failed::Refused(why, Some(error)))?;
        last_word(hello.io).await;
        return Err(Failed::Refused(why, None));
    }
    let Ok(queued) = Arc::clone(&terms.threads.queue).try_acquire_owned() else {
        reset(&hello.io);
        return Err(Failed::Refused(Refused::Busy, None));
    };
    let (tls, buffer) = (Arc::clone(&terms.loaded.tls), terms.offload.limits.buffer as usize);
    let limit = move |session: &mut ServerConnection| session.set_buffer_limit(Some(buffer));
    let work = handshake::on(&terms.threads.handshakes, async move {
        let queued: OwnedSemaphorePermit = queued;
        // Signs, for TLS 1.3 and for 1.2, and so takes the thread as long as that takes.
        let accept = hello.into_stream_with(tls, limit);
        drop(queued);
        accept.into_fallible().await
    });
    let shaken = timeout_at(deadline, work).await.map_err(late)?;
    match shaken {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err((error, stream))) => {
            last_word(stream).await;
            Err(refused(error))
        }
        Err(gone) => Err(Failed::Broken(gone)),
    }
}

/// Whom no handshake is made with, and the alert that tells them.
fn unwelcome(hello: &ClientHello<'_>, terms: &Terms) -> Option<(Refused, u8)> {
    let asked = hello.server_name();
    if terms.loaded.names.of(asked).is_none() {
        // RFC 6066, 3, and RFC 8446, 9.2.
        let alert = if asked.is_some() { UNRECOGNIZED_NAME } else { MISSING_EXTENSION };
        return Some((Refused::UnknownName, alert));
    }
    // RFC 7507, 3: who asks for less than both sides have because it was refused more, which somebody between the two may
    // have done. Without a suite of TLS 1.3 there is no TLS 1.3 to be had.
    let suites = hello.cipher_suites();
    let modern = suites.iter().any(|suite| (0x1301..=0x1305).contains(&u16::from(*suite)));
    let fallen = suites.iter().any(|suite| u16::from(*suite) == FALLBACK_SCSV);
    (fallen && !modern && terms.offload.versions.contains(&TlsVersion::V13))
        .then_some((Refused::Downgrade, INAPPROPRIATE_FALLBACK))
}

/// Lets the peer read what it was told last. To close while something of the peer's is unread is to reset the connection,
/// and a reset takes away what the peer has not read.
async fn last_word(mut stream: TcpStream) {
    let unread = async {
        stream.shutdown().await?;
        let (mut bytes, mut left) = ([0; 4096], MOST_UNREAD);
        while left > 0 {
            match stream.read(&mut bytes).await? {
                0 => break,
                length => left = left.saturating_sub(length),
            }
        }
        Ok::<_, io::Error>(())
    };
    // Whoever goes on talking is not heard out.
    tokio::time::timeout(FAREWELL, unread).await.ok();
}

fn refused(error: io::Error) -> Failed {
    use rustls::Error as Tls;
    let told = error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>());
    let why = match told {
        None => Refused::Closed,
        Some(Tls::PeerIncompatible(_)) => Refused::Incompatible,
        Some(Tls::NoApplicationProtocol) => Refused::Alpn,
        Some(Tls::NoCertificatesPresented | Tls::InvalidCertificate(_)) => Refused::ClientCertificate,
        Some(Tls::AlertReceived(_)) => Refused::Alert,
        Some(Tls::General(_) | Tls::FailedToGetRandomBytes | Tls::FailedToGetCurrentTime | Tls::EncryptError) => {
            Refused::Signature
        }
        Some(_) => Refused::Malformed,
    };
    Failed::Refused(why, Some(error))
}

/// What the handshake agreed on.
#[derive(Debug)]
pub(super) struct About {
    /// As PROXY has it, and as metrics do.
    version: (&'static str, &'static str),
    kind: &'static str,
    alpn: Option<Vec<u8>>,
    name: Option<String>,
    /// The client showed a certificate.
    verified: bool,
    /// Its common name, where it has one.
    cn: Option<String>,
}

impl About {
    fn of(session: &ServerConnection) -> Self {
        let version = match session.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => ("TLSv1.2", "1.2"),
            Some(_) | None => ("TLSv1.3", "1.3"),
        };
        let kind = match session.handshake_kind() {
            Some(HandshakeKind::Resumed) => "resumed",
            Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest) | None => "full",
        };
        let shown = session.peer_certificates().and_then(<[_]>::first);
        Self {
            version,
            kind,
            alpn: session.alpn_protocol().map(<[u8]>::to_vec),
            name: session.server_name().map(str::to_owned),
            verified: shown.is_some(),
            cn: shown.and_then(|certificate| Presented::of(certificate).cn),
        }
    }
}

/// Where the bytes go.
trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A backend that took the connection and, where it speaks TLS, is who it should be.
async fn reach(
    terms: &Terms,
    client: SocketAddr,
    listener: SocketAddr,
    about: &About,
) -> Result<(Served, Box<dyn Duplex>), Failed> {
    let (mut tried, mut last) = (Vec::new(), None);
    while tried.len() < TRIES
        && let Some(backend) = terms.pool.next(&tried)
    {
        tried.push(backend.address);
        let stream = match backend.connect(&terms.offload.health).await {
            Ok(stream) => stream,
            Err(trouble) => {
                last = Some(io::Error::other(trouble));
                continue;
            }
        };
        let served = Served::by(&backend);
        match introduce(stream, terms, client, listener, about).await {
            Ok(stream) => return Ok((served, stream)),
            Err(error) => {
                tracing::warn!(backend = %backend.address, %error, "a backend of TLS offload did not take a connection");
                backend.refused(&error);
                last = Some(error);
            }
        }
    }
    Err(Failed::Refused(Refused::NoBackend, last))
}

async fn introduce(
    mut stream: TcpStream,
    terms: &Terms,
    client: SocketAddr,
    listener: SocketAddr,
    about: &About,
) -> io::Result<Box<dyn Duplex>> {
    ready(&stream)?;
    if terms.offload.proxy_protocol {
        let header = proxy::header(&Told {
            client,
            listener,
            alpn: about.alpn.as_deref(),
            name: about.name.as_deref(),
            version: about.version.0,
            verified: about.verified,
            cn: about.cn.as_deref(),
        });
        stream.write_all(&header).await?;
    }
    let Some((config, name)) = &terms.loaded.backend else { return Ok(Box::new(stream)) };
    // What the client agreed on is what it will speak with the backend.
    let alpn = about.alpn.iter().cloned().collect();
    let connector = TlsConnector::from(Arc::clone(config));
    let connector = connector.with_alpn(alpn);
    let shaken = tokio::time::timeout(backends::HANDSHAKE, connector.connect(name.clone(), stream)).await;
    Ok(Box::new(shaken.map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??))
}

const KEEPALIVE: Duration = Duration::from_mins(1);
const FAREWELL: Duration = Duration::from_secs(1);
/// Of a peer that was told its last word.
const MOST_UNREAD: usize = 256 << 10;
/// RFC 7507, 2, and the alerts of RFC 8446, 6.2.
const FALLBACK_SCSV: u16 = 0x5600;
const INAPPROPRIATE_FALLBACK: u8 = 86;
const MISSING_EXTENSION: u8 = 109;
const UNRECOGNIZED_NAME: u8 = 112;
const TRIES: usize = 3;
