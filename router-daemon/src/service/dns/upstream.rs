//! Asks resolvers outside, each question by whatever line the router's own policy takes. Kept answers are given again as
//! long as they live, and a day longer while nobody can be asked (RFC 8767).
//!
//! A question waits a moment for its first answer and is then asked again over connections of its own, by the next
//! line in turn; the first answer counts. Connections that stand are given up when a line goes down.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use config::model::Upstream;
use config::units::Mark;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::Record;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts, ServerOrderingStrategy,
};
use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{RuntimeProvider, TokioHandle, TokioTime};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::{Resolver, ResponseCache, TtlConfig};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

/// An answer of somebody outside: what it said, or that there is nothing.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
    /// Older than it may be: nobody could be asked.
    pub(super) stale: bool,
}

/// Those who are asked for one part of the tree.
#[derive(Debug)]
pub(super) struct Servers {
    asked: Vec<Upstream>,
    tls: Option<Arc<tokio_rustls::rustls::ClientConfig>>,
    /// Two sets of connections: a question that waits on the first is asked by the second.
    lanes: Mutex<[Lane; 2]>,
    fresh: ResponseCache,
    stale: ResponseCache,
}

type Lane = Arc<Resolver<Marked>>;

impl Servers {
    pub(super) fn new(
        servers: &[Upstream],
        tls: Option<Arc<tokio_rustls::rustls::ClientConfig>>,
        cache: u64,
    ) -> Result<Self, NetError> {
        let lane = || lane(servers, tls.clone(), None);
        let bounds = |least: Duration, most: Duration| {
            let mut options = ResolverOpts::default();
            options.positive_min_ttl = Some(least);
            options.positive_max_ttl = Some(most);
            options.negative_max_ttl = Some(NOTHING);
            TtlConfig::from_opts(&options)
        };
        Ok(Self {
            asked: servers.to_vec(),
            lanes: Mutex::new([lane()?, lane()?]),
            tls,
            fresh: ResponseCache::new(cache, bounds(Duration::ZERO, LONGEST)),
            stale: ResponseCache::new(cache, bounds(STALE, STALE)),
        })
    }

    /// A line went down: what is on its way over standing connections may be lost.
    pub(super) fn renew(&self) {
        let lane = || lane(&self.asked, self.tls.clone(), None);
        if let (Ok(first), Ok(second)) = (lane(), lane()) {
            *self.lanes.lock().unwrap_or_else(PoisonError::into_inner) = [first, second];
        }
    }

    /// What is kept, or what somebody says. `Err` is for people.
    pub(super) async fn ask(&self, query: &Query) -> Result<Answer, String> {
        let now = Instant::now();
        if let Some(kept) = self.fresh.get(query, now) {
            return Ok(answer(kept).unwrap_or_else(|_| nothing()));
        }
        let [first, second] = self.lanes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let told = race(&first, &second, query).await;
        match told {
            Ok(answer) => Ok(self.keep(query, answer)),
            Err(error) => {
                let kept = self.stale.get(query, now).and_then(|kept| answer(kept).ok());
                let mut kept = kept.ok_or(error)?;
                kept.stale = true;
                kept.answers.iter_mut().for_each(|record| record.ttl = STALE_TTL);
                Ok(kept)
            }
        }
    }

    /// Asks by this line, whatever is kept.
    pub(super) async fn ask_by(&self, query: &Query, mark: Mark) -> Result<Answer, String> {
        let lane = lane(&self.asked, self.tls.clone(), Some(mark)).map_err(|error| error.to_string())?;
        let told = timeout(PATIENCE, one(&lane, query)).await.map_err(|_late| "no answer".to_owned())?;
        told.map(|answer| self.keep(query, answer))
    }

    fn keep(&self, query: &Query, told: Result<Message, NetError>) -> Answer {
        let now = Instant::now();
        let copy = match &told {
            Ok(message) => Ok(message.clone()),
            Err(error) => Err(error.clone()),
        };
        if copy.is_ok() {
            self.stale.insert(query.clone(), told.clone(), now);
        }
        self.fresh.insert(query.clone(), copy, now);
        answer(told).unwrap_or_else(|_| nothing())
    }
}

/// The first of two that comes.
async fn race(first: &Lane, second: &Lane, query: &Query) -> Result<Result<Message, NetError>, String> {
    let ask = async {
        let mut one_way = Box::pin(one(first, query));
        match timeout(HEDGE, &mut one_way).await {
            Ok(Ok(told)) => return Ok(told),
            // Failed at once, as when a server refuses: by the other.
            Ok(Err(_)) => return one(second, query).await,
            Err(_) => {}
        }
        let mut other = Box::pin(one(second, query));
        tokio::select! {
            told = &mut one_way => match told {
                Ok(told) => Ok(told),
                Err(_) => other.await,
            },
            told = &mut other => match told {
                Ok(told) => Ok(told),
                Err(_) => one_way.await,
            },
        }
    };
    timeout(PATIENCE, ask).await.unwrap_or_else(|_| Err("no resolver answered".to_owned()))
}

/// What counts as an answer is the inner result; the outer one is a failure to get any.
async fn one(lane: &Lane, query: &Query) -> Result<Result<Message, NetError>, String> {
    match lane.lookup(query.name().clone(), query.query_type()).await {
        Ok(lookup) => Ok(Ok(lookup.message().clone())),
        Err(error @ NetError::Dns(DnsError::NoRecordsFound(_))) => Ok(Err(error)),
        Err(error) => Err(error.to_string()),
    }
}

fn answer(told: Result<Message, NetError>) -> Result<Answer, String> {
    match told {
        Ok(message) => Ok(Answer {
            code: message.metadata.response_code,
            answers: message.answers,
            authorities: Vec::new(),
            stale: false,
        }),
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
            let soa = none.soa.map(|soa| {
                Record::from_rdata(soa.name.clone(), soa.ttl, hickory_proto::rr::RData::SOA(soa.data.clone()))
            });
            Ok(Answer {
                code: none.response_code,
                answers: Vec::new(),
                authorities: soa.into_iter().collect(),
                stale: false,
            })
        }
        Err(error) => Err(error.to_string()),
    }
}

fn nothing() -> Answer {
    Answer { code: ResponseCode::ServFail, answers: Vec::new(), authorities: Vec::new(), stale: false }
}

fn lane(
    servers: &[Upstream],
    tls: Option<Arc<tokio_rustls::rustls::ClientConfig>>,
    mark: Option<Mark>,
) -> Result<Lane, NetError> {
    let server = |upstream: &Upstream| {
        let mut connections = match &upstream.tls {
            Some(name) => vec![ConnectionConfig::tls(Arc::from(name.as_str()))],
            None => vec![ConnectionConfig::udp(), ConnectionConfig::tcp()],
        };
        for connection in &mut connections {
            connection.port = upstream.address.port();
        }
        NameServerConfig::new(upstream.address.ip(), true, connections)
    };
    let config = ResolverConfig::from_parts(None, Vec::new(), servers.iter().map(server).collect());
    let mut options = ResolverOpts::default();
    options.timeout = EACH;
    options.attempts = 1;
    // Answers are kept above, for both lanes and with what was told of them.
    options.cache_size = 0;
    options.ndots = 0;
    options.use_hosts_file = hickory_resolver::config::ResolveHosts::Never;
    options.num_concurrent_reqs = 2;
    options.server_ordering_strategy = ServerOrderingStrategy::QueryStatistics;
    options.max_active_requests = 256;
    // Against forged answers, over UDP (draft-vixie-dnsext-dns0x20).
    options.case_randomization = true;
    options.edns_payload_len = 1232;
    let mut builder = Resolver::builder_with_config(config, Marked::new(mark)).with_options(options);
    if let Some(tls) = tls {
        builder = builder.with_tls_config((*tls).clone());
    }
    builder.build().map(Arc::new)
}

/// Sockets of tokio, marked for a line where one is wanted.
#[derive(Clone, Default)]
pub(super) struct Marked {
    handle: TokioHandle,
    mark: Option<Mark>,
}

impl Marked {
    fn new(mark: Option<Mark>) -> Self {
        Self { handle: TokioHandle::default(), mark }
    }
}

impl std::fmt::Debug for Marked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Marked({:?})", self.mark)
    }
}

impl RuntimeProvider for Marked {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> Self::Handle {
        self.handle.clone()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        from: Option<SocketAddr>,
        wait: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        let mark = self.mark;
        Box::pin(async move {
            let socket = if server.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            if let Some(from) = from {
                socket.bind(from)?;
            }
            socket.set_nodelay(true)?;
            put_mark(&socket, mark)?;
            let stream = timeout(wait.unwrap_or(EACH), socket.connect(server)).await;
            stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(AsyncIoTokioAsStd)
        })
    }

    fn bind_udp(
        &self,
        local: SocketAddr,
        _server: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Udp>>>> {
        let mark = self.mark;
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            put_mark(&socket, mark)?;
            Ok(socket)
        })
    }
}

fn put_mark<'s, S>(socket: &'s S, mark: Option<Mark>) -> io::Result<()>
where
    socket2::SockRef<'s>: From<&'s S>,
{
    mark.map_or(Ok(()), |mark| socket2::SockRef::from(socket).set_mark(mark.0))
}

/// For an answer of one resolver.
const EACH: Duration = Duration::from_secs(2);
/// Then the question is asked by another line too.
const HEDGE: Duration = Duration::from_millis(300);
/// Stub resolvers ask again after five seconds.
const PATIENCE: Duration = Duration::from_millis(4500);
/// How long an answer is kept at most, whatever it says.
const LONGEST: Duration = Duration::from_hours(24);
const NOTHING: Duration = Duration::from_mins(15);
/// RFC 8767, 5: one to three days, and 30 s for whoever gets it.
const STALE: Duration = Duration::from_hours(24);
const STALE_TTL: u32 = 30;
