//! The API for whoever has a certificate: HTTP/1.1 over TLS, at the address `[api]` of the site file names.
//!
//! | request | answer |
//! |---|---|
//! | `POST /v1`, `Content-Type: application/json` | the body is a request as the socket takes it, the answer a line as the socket gives it; a stream is `application/jsonl` |
//! | `GET /v1/events` | `text/event-stream`: what the request `events` answers |
//!
//! TLS admits only certificates that an authority of `client_ca` signed; the site file says which of them is a reader
//! and which an operator, and whoever it does not name is refused everything. The content type is insisted on: no page
//! in an operator's browser can send it here unasked.
//!
//! Handshakes are made on two threads of their own and signed as those of `[[tls_offload]]` are, by the engine of `qat`.
//! [`serve`] owns the listener, those threads and the connections. Each change of the config reads the files again. If they or `[api]`
//! say something else, connections finish the request they are at and close, so that nobody keeps what a certificate
//! was allowed before. What is in the way (an address that is not there, a file that cannot be read) is told in `status` and tried again.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use config::Config;
use config::model::{Api, ApiRole};
use futures_util::StreamExt;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Body, Bytes, Frame};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use super::certificate::{self, Loaded, Presented};
use super::protocol::{Answer, Call, MAX_LINE, Role, decode_call, encode_answer};
use super::server::{BUSY, Core, LINE_TIMEOUT, Lines, OPERATORS, PLACE_TIMEOUT, READERS, SEND_TIMEOUT, within};
use crate::ask::{Author, Refusal};
use crate::crypto::signing::{Offload, Signatures};
use crate::crypto::{Crypto, InUse};
use crate::handshake::Workers;
use crate::session::Session;
use crate::{accept, handshake};

/// How the listener stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Listener {
    pub address: String,
    /// Why nobody is answered there, until that is put right.
    pub trouble: Option<String>,
}

/// Answers where the config in force says, until the config's sender is gone. `told` is kept right.
pub async fn serve(
    mut config: watch::Receiver<Option<Arc<Config>>>,
    core: Core,
    told: watch::Sender<Option<Listener>>,
) {
    let places = Places::default();
    let mut hands = Hands::default();
    let mut connections = JoinSet::new();
    let mut bound: Option<(SocketAddr, TcpListener)> = None;
    let mut epoch: Option<Epoch> = None;
    loop {
        let wanted = config.borrow_and_update().as_ref().and_then(|config| config.api.clone());
        let Some(api) = wanted else {
            (bound, epoch) = (None, None);
            hands = Hands::default();
            told.send_if_modified(|before| before.take().is_some());
            if config.changed().await.is_err() {
                return;
            }
            continue;
        };
        let ready = open(&api, &core.crypto, &mut hands, &mut bound).await;
        let now = Listener { address: api.listen.to_string(), trouble: ready.as_ref().err().cloned() };
        let news = told.send_if_modified(|before| before.replace(now.clone()).as_ref() != Some(&now));
        let changed = match (&ready, &bound) {
            (Ok(_), Some((address, listener))) => {
                if news {
                    tracing::info!(%address, "serving the API over HTTPS");
                }
                let now = match (epoch.take(), ready) {
                    (before, Ok(files)) => Epoch::goes_on(before, api, files),
                    (_, Err(_)) => continue,
                };
                let Epoch { api, files, over } = epoch.insert(now);
                let (api, epoch) = (Arc::clone(api), over.subscribe());
                let Some(threads) = hands.threads.as_ref().map(|threads| threads.handle().clone()) else { continue };
                let terms = Terms { api, core: core.clone(), places: places.clone(), threads, epoch };
                tokio::select! {
                    never = answer_all(listener, &files.tls, &terms, &mut connections) => match never {},
                    changed = config.changed() => changed,
                }
            }
            (outcome, _) => {
                epoch = None;
                if news && let Err(trouble) = outcome {
                    tracing::warn!(address = %api.listen, trouble, "the API is not served over HTTPS");
                }
                tokio::time::timeout(OPEN_AGAIN, config.changed()).await.unwrap_or(Ok(()))
            }
        };
        if changed.is_err() {
            return;
        }
    }
}

/// As long as `[api]` and its files say the same. Where it ends, connections finish what they are at.
#[derive(Debug)]
struct Epoch {
    api: Arc<Api>,
    files: Loaded,
    over: watch::Sender<()>,
}

impl Epoch {
    fn goes_on(before: Option<Self>, api: Api, files: Loaded) -> Self {
        match before {
            Some(before) if *before.api == api && before.files.digest == files.digest => before,
            Some(_) | None => Self { api: Arc::new(api), files, over: watch::Sender::new(()) },
        }
    }
}

/// Who makes handshakes. There as long as the site file has `[api]`, so that no reload looks for a device again.
#[derive(Debug, Default)]
struct Hands {
    threads: Option<Workers>,
    engine: Option<Arc<InUse>>,
    signatures: Arc<Signatures>,
}

/// Reads the files, and binds the address unless it is bound.
async fn open(
    api: &Api,
    crypto: &Crypto,
    hands: &mut Hands,
    bound: &mut Option<(SocketAddr, TcpListener)>,
) -> Result<Loaded, String> {
    if bound.as_ref().is_some_and(|(address, _)| *address != api.listen) {
        *bound = None;
    }
    if hands.threads.is_none() {
        let threads = Workers::start("api-handshake", HANDSHAKE_THREADS, NICE);
        hands.threads = Some(threads.map_err(|error| format!("there are no threads for handshakes: {error}"))?);
    }
    let (files, crypto, signatures) = (api.clone(), crypto.clone(), Arc::clone(&hands.signatures));
    let load = move || {
        let engine = crypto.engine(qat::Options::default());
        (certificate::load(&files, &Offload::new(Arc::clone(&engine)), &signatures), engine)
    };
    let loaded = match tokio::task::spawn_blocking(load).await {
        Ok((loaded, engine)) => {
            hands.engine = Some(engine);
            loaded
        }
        Err(error) => Err(error.to_string()),
    };
    // Who connects is refused at once, instead of waiting for nobody.
    let loaded = loaded.inspect_err(|_trouble| *bound = None)?;
    if bound.is_none() {
        let listener = TcpListener::bind(api.listen).await;
        let listener = listener.map_err(|error| format!("{} cannot be listened on: {error}", api.listen))?;
        *bound = Some((api.listen, listener));
    }
    Ok(loaded)
}

/// On what terms connections are served, until the config changes.
#[derive(Debug, Clone)]
struct Terms {
    api: Arc<Api>,
    core: Core,
    places: Places,
    threads: Handle,
    /// Its sender is dropped when they are over.
    epoch: watch::Receiver<()>,
}

#[derive(Debug, Clone)]
struct Places {
    handshakes: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    operators: Arc<Semaphore>,
    readers: Arc<Semaphore>,
}

impl Default for Places {
    fn default() -> Self {
        let places = |most| Arc::new(Semaphore::new(most));
        Self {
            handshakes: places(HANDSHAKES),
            connections: places(CONNECTIONS),
            operators: places(OPERATORS),
            readers: places(READERS),
        }
    }
}

async fn answer_all(
    listener: &TcpListener,
    tls: &Arc<ServerConfig>,
    terms: &Terms,
    connections: &mut JoinSet<()>,
) -> Infallible {
    let tls = TlsAcceptor::from(Arc::clone(tls));
    loop {
        let (stream, from) = accept::next(connections, "the API over HTTPS", || listener.accept()).await;
        // Whoever has shown no certificate yet takes no place of those who have.
        let Ok(shaking) = Arc::clone(&terms.places.handshakes).try_acquire_owned() else {
            tracing::debug!(%from, "too many handshakes at once");
            continue;
        };
        let (tls, terms) = (tls.clone(), terms.clone());
        connections.spawn(async move {
            if let Err(error) = connection(stream, from, &tls, terms, shaking).await {
                tracing::debug!(%from, %error, "a client of the API went away");
            }
        });
    }
}

async fn connection(
    stream: TcpStream,
    from: SocketAddr,
    tls: &TlsAcceptor,
    terms: Terms,
    shaking: OwnedSemaphorePermit,
) -> io::Result<()> {
    let to = stream.local_addr()?;
    stream.set_nodelay(true)?;
    // Who only listens may vanish without a word.
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE / 4);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    // A signature takes as long as it takes, and this is the thread of the event loop.
    let shaken = handshake::on(&terms.threads, tls.accept(Unstalled::new(stream)));
    let stream = within(HANDSHAKE_TIMEOUT, async { shaken.await? }).await?;
    drop(shaking);
    let Ok(_place) = Arc::clone(&terms.places.connections).try_acquire_owned() else {
        return Err(io::Error::other("too many connections at once"));
    };
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let presented = shown.map(Presented::of).unwrap_or_default();
    let client = presented.among(&terms.api.clients);
    let known = client.map(|client| Known {
        role: match client.role {
            ApiRole::Reader => Role::Reader,
            ApiRole::Operator => Role::Operator,
        },
        author: Author { name: format!("{} (HTTPS)", client.name), uid: None },
        session: Session { source: from.ip(), source_port: from.port(), destination: to.ip(), port: to.port() },
    });
    let mut epoch = terms.epoch.clone();
    let caller = Arc::new(Caller { known: known.ok_or(presented.fingerprint), terms });
    let service = service_fn(move |request| {
        let caller = Arc::clone(&caller);
        async move { Ok::<_, Infallible>(caller.answer(request).await) }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(LINE_TIMEOUT).max_buf_size(MAX_HEADERS);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        _over = epoch.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    ended.map_err(io::Error::other)
}

/// Somebody of the site file.
#[derive(Debug)]
struct Known {
    role: Role,
    author: Author,
    session: Session,
}

#[derive(Debug)]
struct Caller {
    /// The fingerprint of a certificate that nobody named.
    known: Result<Known, String>,
    terms: Terms,
}

type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

impl Caller {
    async fn answer<B>(&self, request: Request<B>) -> Reply
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        if self.terms.epoch.has_changed().is_err() {
            return refused(Refusal::new("unavailable", "the configuration has changed: connect again"));
        }
        let known = match &self.known {
            Ok(known) => known,
            Err(fingerprint) => {
                let text = format!(
                    "no [api.client.NAME] of the site file is this certificate; its fingerprint is {fingerprint}"
                );
                return refused(Refusal::new("permission", text));
            }
        };
        match (request.method(), request.uri().path()) {
            (&Method::POST, "/v1") => self.call(known, request).await.unwrap_or_else(refused),
            (&Method::GET, "/v1/events") => {
                let work = self.carry_out(Call::Events, known.author.clone(), None, Sse);
                // A line that is passed over: whoever is gone is noticed, and what is between does not give up.
                let beats = tokio::time::interval(HEARTBEAT);
                let beats = stream::unfold(beats, async |mut beats| {
                    beats.tick().await;
                    Some((Bytes::from_static(b":\n\n"), beats))
                });
                streamed("text/event-stream", stream::select(work, beats), self.terms.epoch.clone())
            }
            (_, "/v1") => not_allowed("POST", "a request is the body of a POST"),
            (_, "/v1/events") => not_allowed("GET", "events are answered to a GET"),
            _ => {
                let text = "requests are answered at /v1, events at /v1/events".to_owned();
                whole(StatusCode::NOT_FOUND, &Answer::Error(Refusal::new("malformed", text)))
            }
        }
    }

    async fn call<B>(&self, known: &Known, request: Request<B>) -> Result<Reply, Refusal>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error + Send + Sync + 'static,
    {
        let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(JSON) {
            let text = format!("the request needs the header `Content-Type: {JSON}`");
            return Err(Refusal::new("malformed", text));
        }
        let places = match known.role {
            Role::Operator => &self.terms.places.operators,
            Role::Reader => &self.terms.places.readers,
        };
        let place = tokio::time::timeout(PLACE_TIMEOUT, Arc::clone(places).acquire_owned()).await;
        let Ok(Ok(place)) = place else { return Err(Refusal::new("busy", BUSY)) };
        let body = tokio::time::timeout(LINE_TIMEOUT, Limited::new(request.into_body(), MAX_LINE).collect()).await;
        let bytes = match body {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return Err(Refusal::new("too-large", format!("a request has at most {MAX_LINE} bytes")));
            }
            Ok(Err(error)) => return Err(Refusal::new("malformed", format!("the request broke off: {error}"))),
            Err(_elapsed) => return Err(Refusal::new("slow", "the request was not there in time")),
        };
        let call = decode_call(&bytes)?;
        drop(bytes);
        known.role.admits(&call).map_err(|mut refusal| {
            refusal.message.push_str("; [api.client.NAME] of the site file says who is what");
            refusal
        })?;
        let call = over(call, &known.session);
        let core = &self.terms.core;
        if call.streams() {
            // Who only listens keeps nobody from asking.
            let place = Some(place).filter(|_| !call.follows());
            let lines = self.carry_out(call, known.author.clone(), place, Channel);
            return Ok(streamed(JSON_LINES, lines, self.terms.epoch.clone()));
        }
        let answer = core.answer(call, &known.author).await?;
        Ok(whole(StatusCode::OK, &answer))
    }

    /// The lines of the answer. The work is part of them: it ends with whoever hears them.
    fn carry_out<L: Lines + 'static, F: FnOnce(mpsc::Sender<Bytes>) -> L + 'static>(
        &self,
        call: Call,
        author: Author,
        place: Option<OwnedSemaphorePermit>,
        lines: F,
    ) -> impl futures_util::Stream<Item = Bytes> + Send + use<L, F> {
        let (sender, heard) = mpsc::channel(1);
        let (core, mut lines) = (self.terms.core.clone(), lines(sender));
        let work = stream::once(async move {
            // The channel is as long as the body: nothing can fail that anybody would hear of.
            core.carry_out(&mut lines, call, &author, place).await.ok();
        });
        let heard = stream::unfold(heard, async |mut heard| heard.recv().await.map(|line| (Some(line), heard)));
        stream::select(heard, work.map(|()| None)).filter_map(async |line| line)
    }
}

/// What cuts the connection it comes over is asked for in another way.
fn over(mut call: Call, session: &Session) -> Call {
    if let Call::Apply { how, .. } | Call::Rollback { how, .. } | Call::Restore { how, .. } = &mut call {
        how.session.get_or_insert_with(|| session.clone());
    }
    call
}

struct Channel(mpsc::Sender<Bytes>);

impl Lines for Channel {
    async fn send(&mut self, answer: &Answer) -> io::Result<()> {
        let line = Bytes::from(encode_answer(answer));
        self.0.send(line).await.map_err(|_closed| io::ErrorKind::BrokenPipe.into())
    }

    async fn gone(&mut self) {
        self.0.closed().await;
    }
}

/// Server-sent events: the same lines, each as the data of an event.
struct Sse(mpsc::Sender<Bytes>);

impl Lines for Sse {
    async fn send(&mut self, answer: &Answer) -> io::Result<()> {
        let text = match answer {
            Answer::Ok(value) => {
                let id = match (&value["run"], &value["number"]) {
                    (Value::Number(run), Value::Number(number)) => format!("id: {run}-{number}\n"),
                    _ => String::new(),
                };
                let kind = value.get("event").and_then(Value::as_str).unwrap_or("missed");
                format!("{id}event: {kind}\ndata: {value}\n\n")
            }
            Answer::Error(refusal) => format!("event: error\ndata: {}\n\n", json!(refusal)),
            Answer::End => return Ok(()),
        };
        self.0.send(Bytes::from(text)).await.map_err(|_closed| io::ErrorKind::BrokenPipe.into())
    }

    async fn gone(&mut self) {
        self.0.closed().await;
    }
}

fn not_allowed(method: &'static str, text: &str) -> Reply {
    let mut reply = whole(StatusCode::METHOD_NOT_ALLOWED, &Answer::Error(Refusal::new("malformed", text)));
    reply.headers_mut().insert(ALLOW, HeaderValue::from_static(method));
    reply
}

fn refused(refusal: Refusal) -> Reply {
    let code = match refusal.code.as_str() {
        "permission" => StatusCode::FORBIDDEN,
        "malformed" | "version" => StatusCode::BAD_REQUEST,
        "too-large" => StatusCode::PAYLOAD_TOO_LARGE,
        "slow" => StatusCode::REQUEST_TIMEOUT,
        "busy" | "unavailable" | "timeout" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    };
    whole(code, &Answer::Error(refusal))
}

fn whole(code: StatusCode, answer: &Answer) -> Reply {
    reply(code, JSON, Full::new(Bytes::from(encode_answer(answer))).boxed_unsync())
}

/// Until the stream ends, or the terms under which it began.
fn streamed(
    kind: &'static str,
    chunks: impl futures_util::Stream<Item = Bytes> + Send + 'static,
    mut epoch: watch::Receiver<()>,
) -> Reply {
    let over = Box::pin(async move { epoch.changed().await });
    let frames = chunks.map(|chunk| Ok(Frame::data(chunk))).take_until(over);
    reply(StatusCode::OK, kind, BodyExt::boxed_unsync(StreamBody::new(frames)))
}

fn reply(code: StatusCode, kind: &'static str, body: UnsyncBoxBody<Bytes, Infallible>) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = code;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

/// A connection whose writes fail when the other side takes nothing for too long: an answer that nobody reads does
/// not stay.
struct Unstalled {
    stream: TcpStream,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Unstalled {
    fn new(stream: TcpStream) -> Self {
        Self { stream, stalled: None }
    }

    fn judge<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(SEND_TIMEOUT)));
        stalled.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Unstalled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Unstalled {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(context, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.judge(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.judge(context, shut)
    }
}

const JSON: &str = "application/json";
const JSON_LINES: &str = "application/jsonl";
const HEARTBEAT: Duration = Duration::from_secs(15);
const KEEPALIVE: Duration = Duration::from_mins(1);
const HANDSHAKES: usize = 64;
const CONNECTIONS: usize = 256;
/// As many signatures at once; who administers a router is no crowd, and is to be let in on a busy one.
const HANDSHAKE_THREADS: usize = 2;
const NICE: i32 = 2;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const MAX_HEADERS: usize = 16 * 1024;
const OPEN_AGAIN: Duration = Duration::from_secs(5);

#[cfg(test)]
pub(super) mod testing {
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::Path;

    use config::model::{ApiClient, KnownBy};
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
        KeyPair, KeyUsagePurpose,
    };
    use tempfile::TempDir;

    use super::*;

    /// A certificate and its key, in PEM.
    pub(in crate::api) type Identity = (String, String);

    pub(in crate::api) struct Authority(CertifiedIssuer<'static, KeyPair>);

    impl Authority {
        pub(in crate::api) fn new(name: &str) -> Self {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
        }

        pub(in crate::api) fn pem(&self) -> String {
            self.0.pem()
        }

        pub(in crate::api) fn server(&self) -> Identity {
            self.signed(&["127.0.0.1"], "router", ExtendedKeyUsagePurpose::ServerAuth, 2100)
        }

        pub(in crate::api) fn client(&self, sans: &[&str], cn: &str) -> Identity {
            self.signed(sans, cn, ExtendedKeyUsagePurpose::ClientAuth, 2100)
        }

        pub(super) fn signed(&self, sans: &[&str], cn: &str, usage: ExtendedKeyUsagePurpose, until: i32) -> Identity {
            let sans: Vec<_> = sans.iter().map(|san| (*san).to_owned()).collect();
            let mut params = CertificateParams::new(sans).unwrap();
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, cn);
            params.extended_key_usages = vec![usage];
            params.not_after = rcgen::date_time_ymd(until, 1, 1);
            let key = KeyPair::generate().unwrap();
            (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
        }
    }

    /// What `[api]` of a site file names, on disk, and who signed it.
    pub(in crate::api) struct Files {
        pub(in crate::api) api: Api,
        pub(super) servers: Authority,
        pub(super) clients: Authority,
        pub(super) folder: TempDir,
    }

    impl Files {
        /// `alice` is an operator, `rita` a reader.
        pub(in crate::api) fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
            let named = |(name, role): (&str, _)| {
                let known_by = KnownBy::Cn(name.to_owned());
                let name: config::units::ClientName = name.parse().unwrap();
                (name.clone(), ApiClient { name, role, known_by })
            };
            let api = Api {
                listen: free_address(),
                vlan: None,
                certificate: folder.path().join("server.pem"),
                key: folder.path().join("server.key"),
                client_ca: folder.path().join("clients.pem"),
                clients: [("alice", ApiRole::Operator), ("rita", ApiRole::Reader)].into_iter().map(named).collect(),
            };
            let (certificate, key) = servers.server();
            std::fs::write(&api.certificate, certificate).unwrap();
            write_secret(&api.key, &key);
            std::fs::write(&api.client_ca, clients.pem()).unwrap();
            Self { api, servers, clients, folder }
        }
    }

    pub(super) fn write_secret(path: &Path, key: &str) {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
        io::Write::write_all(&mut file, key.as_bytes()).unwrap();
    }

    pub(super) fn free_address() -> SocketAddr {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::sync::Mutex;
    use std::time::Instant;

    use config::model::{ApiClient, KnownBy};
    use hyper::body::Incoming;
    use hyper::client::conn::http1;
    use rcgen::ExtendedKeyUsagePurpose;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};

    use super::testing::{Authority, Files, Identity, free_address, write_secret};
    use super::*;
    use crate::api::protocol::tests::pinned;
    use crate::ask::{ApplyReport, Ask, How, PlanReport};
    use crate::counters::CounterSource;
    use crate::fixture;
    use crate::happening::What;
    use crate::history::History;

    #[tokio::test]
    async fn every_call_is_answered_to_whom_it_is_for_and_a_reader_changes_nothing() {
        let router = Router::start(Files::new()).await;
        let (alice, rita) = (router.identity("alice"), router.identity("rita"));
        for (call, text) in pinned() {
            let word = call.word();
            let changes = call.needs() == Role::Operator;
            let (code, answer) = router.ask(&rita, text).await;
            if changes {
                assert_eq!((code, &answer["error"]["code"]), (403, &json!("permission")), "{word}");
                let told = answer["error"]["message"].as_str().unwrap();
                assert!(told.contains("it needs the role `operator`, and yours is `reader`"), "{told}");
            } else {
                assert_ne!(code, 403, "{word}: {answer}");
            }
            assert_eq!(router.orders(), Vec::<String>::new(), "{word}");
            let (code, answer) = router.ask(&alice, text).await;
            assert_ne!(code, 403, "{word}: {answer}");
            // A config of the history is looked up before anything is ordered, a bundle read, and an audit to end found. A
            // trace orders nothing, and to hand over there must be a pair.
            let looks_first = matches!(
                call,
                Call::Rollback { number: Some(_), .. }
                    | Call::Restore { .. }
                    | Call::EndAudit { .. }
                    | Call::Trace { .. }
                    | Call::Handover { .. }
            );
            let ordered = changes && !looks_first;
            assert_eq!(router.take_orders().len(), usize::from(ordered), "{word}: {answer}");
        }
    }

    #[tokio::test]
    async fn a_request_is_the_body_of_a_post_and_says_that_it_is_json() {
        let router = Router::start(Files::new()).await;
        let alice = router.identity("alice");
        let mut client = router.client(&alice).await.unwrap();
        let status = r#"{"v":1,"call":"status"}"#;
        let ask = |method: &str, path: &str, kind: &str, text: &str| {
            Request::builder()
                .method(method)
                .uri(path)
                .header("host", "router")
                .header(CONTENT_TYPE, kind)
                .body(Full::new(Bytes::from(text.to_owned())))
                .unwrap()
        };
        // One connection carries them all.
        for (method, path, kind, text, code) in [
            ("POST", "/v1", JSON, status, 200),
            ("POST", "/v1", "Application/JSON; charset=utf-8", status, 200),
            ("POST", "/v1", "text/plain", status, 400),
            ("POST", "/v1", "application/x-www-form-urlencoded", status, 400),
            ("POST", "/v1", JSON, "{", 400),
            ("POST", "/v1", JSON, r#"{"v":2,"call":"status"}"#, 400),
            ("POST", "/v1", JSON, r#"{"v":1,"call":"explain-wan","wan":"wan9"}"#, 422),
            ("GET", "/v1", JSON, status, 405),
            ("PUT", "/v1", JSON, status, 405),
            ("OPTIONS", "/v1", "", "", 405),
            ("POST", "/", JSON, status, 404),
            ("POST", "/v1/../v1", JSON, status, 404),
        ] {
            let reply = client.send_request(ask(method, path, kind, text)).await.unwrap();
            assert_eq!(reply.status(), code, "{method} {path} {kind} {text}");
            assert!(!reply.headers().keys().any(|name| name.as_str().starts_with("access-control")));
            let answer = read(reply).await;
            assert_eq!((&answer["v"], answer["ok"].is_object()), (&json!(1), code == 200), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_stream_ends_or_goes_on_as_on_the_socket() {
        let files = Files::new();
        let journal = files.folder.path().join("journal.jsonl");
        std::fs::write(&journal, "{\"t\":2,\"e\":{\"request\":{\"drain\":{\"wan\":\"wan1\"}}}}\n").unwrap();
        let router = Router::start_with(files, Some(journal.clone())).await;
        let rita = router.identity("rita");
        let mut client = router.client(&rita).await.unwrap();
        let reply = client.send_request(post(r#"{"v":1,"call":"journal"}"#)).await.unwrap();
        assert_eq!(reply.headers()[CONTENT_TYPE], JSON_LINES);
        let all = String::from_utf8(reply.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
        let lines: Vec<_> = all.lines().collect();
        assert!(lines[0].contains("drain") && lines[1..] == [r#"{"v":1,"end":true}"#], "{all}");

        let mut body =
            client.send_request(post(r#"{"v":1,"call":"journal","follow":true}"#)).await.unwrap().into_body();
        assert!(!frame(&mut body).await.is_empty());
        let mut file = std::fs::OpenOptions::new().append(true).open(&journal).unwrap();
        io::Write::write_all(&mut file, b"{\"t\":3,\"e\":{\"request\":{\"undrain\":{\"wan\":\"wan1\"}}}}\n").unwrap();
        assert!(frame(&mut body).await.contains("undrain"));
        // Another `[api]` ends it: the certificate may say less then.
        router.change(|api| drop(api.clients.pop_first())).await;
        assert!(tokio::time::timeout(PATIENCE, body.collect()).await.is_ok());
    }

    #[tokio::test]
    async fn without_a_certificate_that_the_site_file_names_nobody_is_answered() {
        let files = Files::new();
        let stranger = Authority::new("clients");
        let outsiders = [
            ("another authority of the same name", Some(stranger.client(&[], "alice"))),
            ("no certificate", None),
            ("a server's", Some(files.clients.signed(&[], "alice", ExtendedKeyUsagePurpose::ServerAuth, 2100))),
            ("one of the past", Some(files.clients.signed(&[], "alice", ExtendedKeyUsagePurpose::ClientAuth, 2000))),
            ("the router's own", Some(files.servers.server())),
        ];
        let named = files.clients.client(&["alice"], "mallory");
        let router = Router::start(files).await;
        for (what, identity) in outsiders {
            let answered = async {
                let mut stream = router.connect(identity.as_ref()).await?;
                stream.write_all(b"POST /v1 HTTP/1.1\r\nhost: x\r\n\r\n").await?;
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).await?;
                io::Result::Ok(answer)
            };
            let answered = tokio::time::timeout(PATIENCE, answered).await.expect(what);
            assert!(!answered.is_ok_and(|bytes| !bytes.is_empty()), "{what}");
        }
        // Signed, and not named: its fingerprint is what an operator would have to write.
        let (code, answer) = router.ask(&named, r#"{"v":1,"call":"status"}"#).await;
        let fingerprint = Presented::of(&CertificateDer::from_pem_slice(named.0.as_bytes()).unwrap()).fingerprint;
        assert_eq!((code, &answer["error"]["code"]), (403, &json!("permission")));
        assert!(answer["error"]["message"].as_str().unwrap().contains(&fingerprint), "{answer}");
        let name: config::units::ClientName = "mallory".parse().unwrap();
        let client =
            ApiClient { name: name.clone(), role: ApiRole::Reader, known_by: KnownBy::Fingerprint(fingerprint) };
        router.change(|api| drop(api.clients.insert(name, client))).await;
        assert_eq!(router.ask(&named, r#"{"v":1,"call":"status"}"#).await.0, 200);
    }

    #[tokio::test]
    async fn a_change_of_the_config_reads_the_files_again_and_keeps_nobody_connected() {
        let router = Router::start(Files::new()).await;
        let (alice, status) = (router.identity("alice"), r#"{"v":1,"call":"status"}"#);
        let mut idle = router.client(&alice).await.unwrap();
        assert_eq!(idle.send_request(post(status)).await.unwrap().status(), 200);
        let untouched = router.connect(Some(&alice)).await.unwrap();

        // The role is taken away, and the router has another certificate.
        let (certificate, key) = router.files.servers.server();
        std::fs::write(&router.files.api.certificate, &certificate).unwrap();
        write_secret(&router.files.api.key, &key);
        let reader = |api: &mut Api| api.clients.values_mut().for_each(|client| client.role = ApiRole::Reader);
        router.change(reader).await;
        tokio::time::timeout(PATIENCE, async { while idle.ready().await.is_ok() {} }).await.unwrap();
        let shown = router.connect(Some(&alice)).await.unwrap();
        let shown = shown.get_ref().1.peer_certificates().unwrap()[0].clone();
        assert_eq!(shown, CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap());
        let drain = r#"{"v":1,"call":"drain","wan":"wan1"}"#;
        assert_eq!(router.ask(&alice, drain).await.0, 403);
        // One that had not asked yet is not answered as it would have been.
        let (mut late, connection) = http1::handshake(TokioIo::new(untouched)).await.unwrap();
        tokio::spawn(connection);
        let answer = late.send_request(post(drain)).await;
        assert!(answer.is_err() || answer.is_ok_and(|reply| reply.status() == 503));
        assert_eq!(router.orders(), Vec::<String>::new());

        // To another address, and away.
        let other = free_address();
        let before = router.files.api.listen;
        router.change(|api| api.listen = other).await;
        assert!(TcpStream::connect(before).await.is_err());
        assert!(TcpStream::connect(other).await.is_ok());
        router.config.send_replace(None);
        router.listening(Option::is_none).await;
        assert!(TcpStream::connect(other).await.is_err());
    }

    #[tokio::test]
    async fn an_order_is_answered_although_it_changes_the_config() {
        let router = Router::start(Files::new()).await;
        let alice = router.identity("alice");
        // The loop puts the config in force before it answers.
        let (code, answer) = router.ask(&alice, r#"{"v":1,"call":"apply","text":"takes effect"}"#).await;
        assert_eq!((code, &answer["ok"]["digest"]), (200, &json!("takes effect")), "{answer}");
        assert_eq!(answer["ok"]["warnings"], json!(["alice (HTTPS)"]));
        assert_eq!(router.ask(&alice, r#"{"v":1,"call":"status"}"#).await.0, 403);
    }

    #[tokio::test]
    async fn events_are_sent_as_they_happen_and_outlive_a_config_that_says_nothing_else_of_the_api() {
        let router = Router::start(Files::new()).await;
        let rita = router.identity("rita");
        let mut client = router.client(&rita).await.unwrap();
        let ask = || Request::get("/v1/events").header("host", "router").body(Full::new(Bytes::new())).unwrap();
        let reply = client.send_request(ask()).await.unwrap();
        assert_eq!(
            (reply.status().as_u16(), &reply.headers()[CONTENT_TYPE]),
            (200, &HeaderValue::from_static("text/event-stream"))
        );
        let mut body = reply.into_body();
        assert_eq!(frame(&mut body).await, ":\n\n");
        while router.core.happenings.followers() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let author = "alice\ndata: forged".to_owned();
        router.core.happenings.tell(What::Confirmed { digest: "0123".to_owned(), author });
        let event = frame(&mut body).await;
        let [id, kind, data, "", ""] = event.split('\n').collect::<Vec<_>>()[..] else { panic!("{event:?}") };
        assert_eq!(kind, "event: confirmed");
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!((&data["digest"], &data["event"]), (&json!("0123"), &json!("confirmed")));
        assert_eq!(id, format!("id: {}-1", data["run"]));

        // The same [api], the same files: the stream goes on.
        router.change(|_| {}).await;
        router.core.happenings.tell(What::Drift { repairs: Vec::new() });
        assert!(frame(&mut body).await.contains("event: drift\n"));
        router.change(|api| drop(api.clients.remove(&"alice".parse().unwrap()))).await;
        assert!(tokio::time::timeout(PATIENCE, body.collect()).await.is_ok());
        let posted = Request::post("/v1/events").body(Full::new(Bytes::new())).unwrap();
        let mut client = router.client(&rita).await.unwrap();
        assert_eq!(client.send_request(posted).await.unwrap().status(), 405);
    }

    #[tokio::test]
    async fn who_reads_no_events_misses_some_and_is_told() {
        let router = Router::start(Files::new()).await;
        let mut client = router.client(&router.identity("rita")).await.unwrap();
        let request = Request::get("/v1/events").header("host", "router").body(Full::new(Bytes::new())).unwrap();
        let mut body = client.send_request(request).await.unwrap().into_body();
        while router.core.happenings.followers() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // More than all the buffers between hold; the one that tells waits for none of them.
        let why = "x".repeat(64 * 1024);
        for _ in 0..1000 {
            router.core.happenings.tell(What::RolledBack { cause: "operator".to_owned(), reason: why.clone() });
        }
        let mut heard = String::new();
        while !heard.contains("event: missed\ndata: {\"missed\":") {
            heard = heard.split_off(heard.len().saturating_sub(100)) + &frame(&mut body).await;
        }
    }

    #[tokio::test]
    async fn what_is_in_the_way_is_told_and_tried_again() {
        let files = Files::new();
        std::fs::set_permissions(&files.api.key, PermissionsExt::from_mode(0o644)).unwrap();
        let router = Router::begin(files, None);
        let told = router.listening(|listener| listener.as_ref().is_some_and(|one| one.trouble.is_some())).await;
        assert!(told.unwrap().trouble.unwrap().contains("is open to others (mode 0644): `chmod 600 /"));
        let answer = router.core.status().await.unwrap().to_string();
        assert!(answer.contains("the API is not served at 127.0.0.1:"), "{answer}");
        // Without anybody telling us.
        std::fs::set_permissions(&router.files.api.key, PermissionsExt::from_mode(0o600)).unwrap();
        router.listening(|listener| listener.as_ref().is_some_and(|one| one.trouble.is_none())).await;
        assert_eq!(router.ask(&router.identity("rita"), r#"{"v":1,"call":"version"}"#).await.0, 200);

        // TEST-NET-1: an address this machine does not have.
        let mut config = fixture::config();
        config.api = Some(Api { listen: "192.0.2.1:8443".parse().unwrap(), ..router.files.api.clone() });
        router.config.send_replace(Some(Arc::new(config)));
        let told = router.listening(|listener| listener.as_ref().is_some_and(|one| one.trouble.is_some())).await;
        assert!(told.unwrap().trouble.unwrap().starts_with("192.0.2.1:8443 cannot be listened on: "));
    }

    /// Each costs a bounded time, and meanwhile others are answered.
    #[tokio::test]
    async fn hostile_clients_are_cut_off_and_keep_nobody_from_asking() {
        let router = Arc::new(Router::start(Files::new()).await);
        let (alice, rita) = (router.identity("alice"), router.identity("rita"));
        let address = router.files.api.listen;
        let mut hostile = JoinSet::new();
        let since = Instant::now();
        for number in 0..48 {
            hostile.spawn(async move {
                // A handshake that does not begin, does not go on, or is none.
                let mut stream = TcpStream::connect(address).await.unwrap();
                let hello: &[u8] = [&b""[..], b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n"][number % 3];
                stream.write_all(hello).await.unwrap();
                ended(&mut stream).await;
            });
        }
        let sent: [&'static [u8]; 6] = [
            // Nothing, half a head, a head that never ends, half a body, more than a body may have, and no HTTP.
            b"",
            b"POST /v1 HTTP/1.1\r\nhost: ",
            b"POST /v1 HTTP/1.1\r\nx: ",
            b"POST /v1 HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{",
            b"POST /v1 HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9999999999\r\n\r\n",
            b"\0\xff\r\n\r\n",
        ];
        for (number, sent) in sent.into_iter().enumerate() {
            let (router, alice) = (Arc::clone(&router), alice.clone());
            hostile.spawn(async move {
                let mut stream = router.connect(Some(&alice)).await.unwrap();
                stream.write_all(sent).await.unwrap();
                let filler = vec![b'x'; 64 * 1024];
                if number == 2 || number == 4 {
                    // It may hang up meanwhile.
                    for _ in 0..200 {
                        if stream.write_all(&filler).await.is_err() {
                            break;
                        }
                    }
                }
                ended(&mut stream).await;
            });
        }
        for _ in 0..20 {
            let asked = Instant::now();
            assert_eq!(router.ask(&rita, r#"{"v":1,"call":"status"}"#).await.0, 200);
            assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let huge = format!(r#"{{"v":1,"call":"plan","text":"{}"}}"#, "x".repeat(MAX_LINE));
        let (code, answer) = router.ask(&rita, &huge).await;
        assert_eq!((code, &answer["error"]["code"]), (413, &json!("too-large")));
        while let Some(ended) = hostile.join_next().await {
            ended.unwrap();
        }
        assert!(since.elapsed() < LINE_TIMEOUT + Duration::from_secs(15), "{:?}", since.elapsed());
        assert_eq!(router.ask(&rita, r#"{"v":1,"call":"status"}"#).await.0, 200);
        assert_eq!(router.orders(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn handshakes_are_signed_by_the_engine_which_ends_with_the_api() {
        let router = Router::start(Files::new()).await;
        let rita = router.identity("rita");
        let signed = || {
            let status = router.core.crypto.status()?;
            let signed = status.operations.into_iter().find(|operation| operation.operation == "ECDSA P256 sign")?;
            Some(signed.offloaded + signed.batched + signed.cpu.values().sum::<u64>())
        };
        let before = signed().unwrap_or_default();
        for _ in 0..3 {
            assert_eq!(router.ask(&rita, r#"{"v":1,"call":"status"}"#).await.0, 200);
        }
        assert_eq!(signed().unwrap(), before + 3);
        router.change(|api| _ = api.clients.pop_first()).await;
        assert!(signed().is_some(), "a reload looks for no device");

        router.config.send_replace(Some(Arc::new(fixture::config())));
        let gone = async {
            while router.core.crypto.status().is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.expect("nobody has it any more");
    }

    #[tokio::test]
    async fn who_reads_no_answer_does_not_keep_it() {
        let (ours, theirs) = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            (ours, listener.accept().await.unwrap().0)
        };
        let mut stream = Unstalled::new(ours);
        let filler = vec![0; 1 << 20];
        let stuck = async {
            loop {
                if let Err(error) = stream.write_all(&filler).await {
                    return error;
                }
            }
        };
        let error = tokio::time::timeout(SEND_TIMEOUT + PATIENCE, stuck).await.unwrap();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(theirs);
    }

    #[test]
    fn an_order_over_the_network_is_judged_by_what_it_comes_over() {
        let session = Session::of_ssh("10.0.60.7 50000 10.0.60.1 8443").unwrap();
        let other = Session::of_ssh("10.0.60.8 50000 10.0.60.1 22");
        let session_of = |call| {
            let (Call::Apply { how, .. } | Call::Rollback { how, .. }) = call else { panic!("{call:?}") };
            how.session
        };
        let apply = |session| Call::Apply { text: String::new(), how: How { session, ..How::default() } };
        assert_eq!(session_of(over(apply(None), &session)), Some(session.clone()));
        assert_eq!(session_of(over(apply(other.clone()), &session)), other);
        let back = Call::Rollback { number: Some(1), how: How::default() };
        assert_eq!(session_of(over(back, &session)), Some(session.clone()));
        assert_eq!(over(Call::Status, &session), Call::Status);
    }

    /// The listener of a config, over a loop that notes what it is ordered to do.
    struct Router {
        files: Files,
        core: Core,
        config: watch::Sender<Option<Arc<Config>>>,
        listener: watch::Receiver<Option<Listener>>,
        orders: Arc<Mutex<Vec<String>>>,
        api: Mutex<Api>,
        _tasks: JoinSet<()>,
    }

    impl Router {
        async fn start(files: Files) -> Self {
            Self::start_with(files, None).await
        }

        async fn start_with(files: Files, journal: Option<std::path::PathBuf>) -> Self {
            let router = Self::begin(files, journal);
            let listener = router.listening(Option::is_some).await.unwrap();
            assert_eq!(listener.trouble, None);
            router
        }

        fn begin(files: Files, journal: Option<std::path::PathBuf>) -> Self {
            let mut site = fixture::config();
            site.api = Some(files.api.clone());
            let (config, in_force) = watch::channel(Some(Arc::new(site)));
            let (asks, mut asked) = mpsc::channel(4);
            let orders = Arc::new(Mutex::new(Vec::new()));
            let mut tasks = JoinSet::new();
            let (noted, puts_in_force) = (Arc::clone(&orders), config.clone());
            tasks.spawn(async move {
                let note = |what: &str| noted.lock().unwrap().push(what.to_owned());
                while let Some(ask) = asked.recv().await {
                    match ask {
                        Ask::View(reply) => drop(reply.send(fixture::view())),
                        Ask::Plan { reply, .. } => {
                            let report = PlanReport { steps: vec![], flows_that_die: 0, warnings: vec![] };
                            drop(reply.send(Ok(report)));
                        }
                        Ask::Apply { text, author, reply, .. } => {
                            note("apply");
                            if text == "takes effect" {
                                let mut site = fixture::config();
                                site.api = puts_in_force.borrow().as_ref().unwrap().api.clone();
                                site.api.as_mut().unwrap().clients.pop_first();
                                puts_in_force.send_replace(Some(Arc::new(site)));
                                tokio::time::sleep(Duration::from_millis(300)).await;
                            }
                            let warnings = vec![author.to_string()];
                            drop(reply.send(Ok(ApplyReport { digest: text, warnings, ..ApplyReport::default() })));
                        }
                        Ask::Confirm { reply, .. } | Ask::RollBack { reply, .. } => {
                            note("confirm or rollback");
                            drop(reply.send(Ok(ApplyReport::default())));
                        }
                        Ask::Operator { reply, .. } | Ask::Audit { reply, .. } => {
                            note("operator");
                            drop(reply.send(Ok(())));
                        }
                    }
                }
            });
            let (told, listener) = watch::channel(None);
            let counters = CounterSource::fixed(fixture::counters());
            let core = Core {
                journal,
                https: listener.clone(),
                ..Core::new(asks, counters, History::of(Path::new("/nonexistent")))
            };
            tasks.spawn(serve(in_force, core.clone(), told));
            let api = Mutex::new(files.api.clone());
            Self { files, core, config, listener, orders, api, _tasks: tasks }
        }

        /// Puts a config with another `[api]` in force, and waits until it is served.
        async fn change(&self, change: impl FnOnce(&mut Api)) {
            let mut site = fixture::config();
            let mut api = self.api.lock().unwrap().clone();
            change(&mut api);
            *self.api.lock().unwrap() = api.clone();
            let address = api.listen.to_string();
            site.api = Some(api);
            self.config.send_replace(Some(Arc::new(site)));
            tokio::time::sleep(Duration::from_millis(100)).await;
            self.listening(|listener| listener.as_ref().is_some_and(|one| one.address == address)).await;
        }

        async fn listening(&self, wanted: impl FnMut(&Option<Listener>) -> bool) -> Option<Listener> {
            let mut listener = self.listener.clone();
            let found = tokio::time::timeout(PATIENCE, listener.wait_for(wanted)).await;
            found.expect("in time").unwrap().clone()
        }

        fn identity(&self, cn: &str) -> Identity {
            self.files.clients.client(&[], cn)
        }

        fn orders(&self) -> Vec<String> {
            self.orders.lock().unwrap().clone()
        }

        fn take_orders(&self) -> Vec<String> {
            std::mem::take(&mut self.orders.lock().unwrap())
        }

        async fn connect(&self, identity: Option<&Identity>) -> io::Result<TlsStream<TcpStream>> {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(self.files.servers.pem().as_bytes()).unwrap()).unwrap();
            let config = ClientConfig::builder().with_root_certificates(roots);
            let config = match identity {
                None => config.with_no_client_auth(),
                Some((certificate, key)) => {
                    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                    config.with_client_auth_cert(chain, key).unwrap()
                }
            };
            let address = self.api.lock().unwrap().listen;
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::from(address.ip());
            TlsConnector::from(Arc::new(config)).connect(name, stream).await
        }

        async fn client(&self, identity: &Identity) -> io::Result<http1::SendRequest<Full<Bytes>>> {
            let stream = self.connect(Some(identity)).await?;
            let (client, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
            tokio::spawn(connection);
            Ok(client)
        }

        /// The code, and the first line of the answer.
        async fn ask(&self, identity: &Identity, text: &str) -> (u16, Value) {
            let asked = async {
                let mut client = self.client(identity).await.unwrap();
                let reply = client.send_request(post(text)).await.unwrap();
                let code = reply.status().as_u16();
                // A stream may have nothing to say yet.
                let endless = text.contains("\"follow\":true") || text.contains("\"events\"");
                let follows = reply.headers()[CONTENT_TYPE] == JSON_LINES && endless;
                (code, if follows { Value::Null } else { read(reply).await })
            };
            tokio::time::timeout(PATIENCE, asked).await.expect("in time")
        }
    }

    fn post(text: &str) -> Request<Full<Bytes>> {
        let request = Request::post("/v1").header("host", "router").header(CONTENT_TYPE, JSON);
        request.body(Full::new(Bytes::from(text.to_owned()))).unwrap()
    }

    async fn read(reply: Response<Incoming>) -> Value {
        let bytes = reply.into_body().collect().await.unwrap().to_bytes();
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap();
        serde_json::from_slice(line).unwrap()
    }

    async fn frame(body: &mut Incoming) -> String {
        let frame = tokio::time::timeout(PATIENCE, body.frame()).await.unwrap().unwrap().unwrap();
        String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap()
    }

    /// Reads until the other side has enough of us.
    async fn ended(stream: &mut (impl AsyncRead + Unpin)) {
        let mut bytes = Vec::new();
        let read = tokio::time::timeout(LINE_TIMEOUT + PATIENCE, stream.read_to_end(&mut bytes)).await;
        assert!(read.is_ok(), "the connection is kept");
    }

    const PATIENCE: Duration = Duration::from_secs(10);
}
