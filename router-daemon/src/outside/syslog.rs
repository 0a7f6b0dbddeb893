//! One collector. What is told goes into a [`Queue`] on the disk at once, and from there over a connection.
//!
//! Syslog has no answer that says «I have it», so a message counts as taken when its connection still stands some time
//! after it was written: TCP ends a connection whose bytes are not acknowledged for `user_timeout`, and a collector that
//! died resets it. What is not settled when a connection ends is sent again over the next: at least once, and after a
//! break or a restart some of it twice. `run` and `number` tell which.
//!
//! Everything here runs on the outlet's own thread, whose disk nobody else waits for.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use config::model::{Syslog, Tls};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, broadcast, mpsc};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tracing::{info, warn};

use super::queue::{Cursor, Queue};
use super::rfc5424::{Speaker, counted};
use super::{BackOff, Tally, tls};
use crate::event_log::Denied;
use crate::happening::Happening;

pub(super) struct Duty {
    pub(super) syslog: Syslog,
    pub(super) folder: PathBuf,
    pub(super) tally: Arc<Tally>,
    pub(super) patience: Patience,
}

/// How long what may take.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    pub(super) connect: Duration,
    /// Bytes that are not acknowledged for so long end the connection.
    pub(super) user_timeout: Duration,
    /// What was written this long ago has arrived, if the connection stands.
    pub(super) settle: Duration,
    pub(super) first_pause: Duration,
    pub(super) last_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            user_timeout: Duration::from_secs(15),
            settle: Duration::from_secs(20),
            first_pause: Duration::from_secs(1),
            last_pause: Duration::from_mins(1),
        }
    }
}

type Denials = Option<broadcast::Receiver<Arc<Denied>>>;

impl Duty {
    /// Until the inbox is closed; what was in it is in the queue then, and on the disk.
    pub(super) async fn run(self, inbox: mpsc::Receiver<Arc<Happening>>, denied: Denials) {
        let queue = loop {
            match Queue::open(&self.folder, self.syslog.queue) {
                Ok(queue) => break queue,
                Err(error) => {
                    let reason = format!("cannot use the queue {}: {error}", self.folder.display());
                    if self.tally.fail(&reason) {
                        warn!(collector = %self.syslog.server, %reason, "events are not told");
                    }
                    if inbox.is_closed() {
                        return;
                    }
                    // The inbox fills meanwhile.
                    tokio::time::sleep(self.patience.last_pause).await;
                }
            }
        };
        let desk = Desk {
            speaker: Speaker::of_system(),
            queue: RefCell::new(queue),
            news: Notify::new(),
            tally: Arc::clone(&self.tally),
        };
        desk.count();
        tokio::select! {
            biased;
            () = desk.fill(inbox, denied) => {}
            () = self.send(&desk) => {}
        }
    }

    async fn send(&self, desk: &Desk) {
        let Self { syslog, patience, tally, .. } = self;
        let mut pauses = BackOff::new(patience.first_pause, patience.last_pause);
        loop {
            while !desk.has_something() {
                desk.news.notified().await;
            }
            let told = tally.told.load(Ordering::Relaxed);
            let ended = match tokio::time::timeout(patience.connect, connect(syslog, patience)).await {
                Ok(Ok(stream)) => {
                    info!(collector = %syslog.server, "connected");
                    desk.converse(stream, patience.settle).await
                }
                Ok(Err(reason)) => reason,
                Err(_elapsed) => "it does not answer".to_owned(),
            };
            desk.queue.borrow_mut().rewind();
            if tally.fail(&ended) {
                warn!(collector = %syslog.server, reason = ended, "the collector does not take events: they wait");
            }
            if tally.told.load(Ordering::Relaxed) > told {
                pauses.reset();
            }
            tokio::time::sleep(pauses.pause()).await;
        }
    }
}

/// What filling and sending share.
struct Desk {
    speaker: Speaker,
    queue: RefCell<Queue>,
    /// Something was pushed.
    news: Notify,
    tally: Arc<Tally>,
}

/// Written, and not settled.
struct Written {
    at: Instant,
    up_to: Cursor,
    records: u64,
    /// Losses that were told with it.
    losses: u64,
}

impl Desk {
    async fn fill(&self, mut inbox: mpsc::Receiver<Arc<Happening>>, mut denied: Denials) {
        let mut seconds = tokio::time::interval(Duration::from_secs(1));
        seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                told = inbox.recv() => match told {
                    Some(happening) => self.push(&self.speaker.happening(&happening)),
                    None => break,
                },
                logged = next(&mut denied) => match logged {
                    Ok(logged) => self.push(&self.speaker.denied(&logged)),
                    Err(missed) => self.tally.miss(missed),
                },
                _ = seconds.tick() => self.sync(),
            }
        }
        self.sync();
    }

    fn push(&self, message: &[u8]) {
        if let Err(error) = self.queue.borrow_mut().push(message)
            && self.tally.fail(&format!("cannot write the queue: {error}"))
        {
            warn!(%error, "an event that the collector should get could not be kept");
        }
        self.count();
        self.news.notify_one();
    }

    fn sync(&self) {
        let missed = self.tally.missed.swap(0, Ordering::Relaxed);
        let mut queue = self.queue.borrow_mut();
        if missed > 0 {
            // They are in the tally already.
            queue.lose(missed);
            queue.take_news_of_losses();
            self.news.notify_one();
        }
        if let Err(error) = queue.sync() {
            let reason = format!("cannot write the queue: {error}");
            if self.tally.fail(&reason) {
                warn!(reason, "a power failure may lose events");
            }
        }
    }

    fn count(&self) {
        let mut queue = self.queue.borrow_mut();
        self.tally.waiting.store(queue.waiting(), Ordering::Relaxed);
        self.tally.dropped.fetch_add(queue.take_news_of_losses(), Ordering::Relaxed);
    }

    fn has_something(&self) -> bool {
        let queue = self.queue.borrow();
        queue.waiting() > 0 || queue.untold() > 0
    }

    /// Sends until the connection ends, and says why it did.
    async fn converse(&self, stream: Box<dyn Stream>, settle: Duration) -> String {
        let (mut read, mut write) = tokio::io::split(stream);
        let mut written = VecDeque::new();
        loop {
            self.settle(&mut written, settle);
            let batch = self.batch(&written);
            let due = written.front().map(|first: &Written| first.at + settle);
            if let Some((bytes, mut batch)) = batch {
                let sent = async {
                    write.write_all(&bytes).await?;
                    write.flush().await
                };
                tokio::select! {
                    sent = sent => if let Err(error) = sent {
                        return error.to_string();
                    },
                    ended = ended(&mut read) => return ended,
                }
                batch.at = Instant::now();
                written.push_back(batch);
                continue;
            }
            tokio::select! {
                () = self.news.notified() => {}
                () = until(due) => {}
                ended = ended(&mut read) => return ended,
            }
        }
    }

    /// What is next, if anything is.
    fn batch(&self, written: &VecDeque<Written>) -> Option<(Vec<u8>, Written)> {
        let mut queue = self.queue.borrow_mut();
        let mut bytes = Vec::new();
        let in_hand: u64 = written.iter().map(|written| written.losses).sum();
        let losses = queue.untold().saturating_sub(in_hand);
        if losses > 0 {
            let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
            bytes.extend(counted(&self.speaker.dropped(losses, &now)));
        }
        let mut records = 0;
        while bytes.len() < BATCH
            && let Some(record) = queue.next()
        {
            bytes.extend(counted(&record));
            records += 1;
        }
        let up_to = queue.sent();
        (!bytes.is_empty()).then(|| (bytes, Written { at: Instant::now(), up_to, records, losses }))
    }

    fn settle(&self, written: &mut VecDeque<Written>, settle: Duration) {
        while let Some(Written { up_to, records, losses, .. }) =
            written.pop_front_if(|first| first.at.elapsed() >= settle)
        {
            self.queue.borrow_mut().settle(up_to, losses);
            self.tally.succeed(records);
            self.count();
        }
    }
}

/// The next denial, or how many were missed.
async fn next(denied: &mut Denials) -> Result<Arc<Denied>, u64> {
    let Some(followed) = denied else { return std::future::pending().await };
    match followed.recv().await {
        Ok(logged) => Ok(logged),
        Err(RecvError::Lagged(missed)) => Err(missed),
        Err(RecvError::Closed) => std::future::pending().await,
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Why the collector's side is done. What it says is nothing we asked for.
async fn ended(read: &mut (impl AsyncRead + Unpin)) -> String {
    let mut ignored = [0; 512];
    loop {
        match read.read(&mut ignored).await {
            Ok(0) => return "the collector closed the connection".to_owned(),
            Ok(_) => {}
            Err(error) => return error.to_string(),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

async fn connect(syslog: &Syslog, patience: &Patience) -> Result<Box<dyn Stream>, String> {
    let stream = plain(syslog.server, patience).await.map_err(|error| format!("cannot connect: {error}"))?;
    let Some(Tls { ca, name, identity }) = &syslog.tls else { return Ok(Box::new(stream)) };
    let config = tls::client(Some(ca), identity.as_ref())?;
    let server = match name {
        Some(name) => ServerName::try_from(name.clone()).map_err(|error| format!("{name}: {error}"))?,
        None => ServerName::from(syslog.server.ip()),
    };
    let stream = TlsConnector::from(config).connect(server, stream).await;
    Ok(Box::new(stream.map_err(|error| format!("no TLS: {error}"))?))
}

async fn plain(server: SocketAddr, patience: &Patience) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(server).await?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_user_timeout(Some(patience.user_timeout))?;
    // The kernel counts these in whole seconds.
    let whole = |time: Duration| time.max(Duration::from_secs(1));
    let quiet = socket2::TcpKeepalive::new()
        .with_time(whole(patience.user_timeout))
        .with_interval(whole(patience.user_timeout / 3));
    socket.set_tcp_keepalive(&quiet)?;
    Ok(stream)
}

/// Bytes that are written together.
const BATCH: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Mutex;

    use config::model::Identity;
    use config::units::{EventKind, Line};
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;
    use tokio_rustls::rustls::server::WebPkiClientVerifier;
    use tokio_rustls::rustls::{RootCertStore, ServerConfig};

    use super::*;
    use crate::happening::{Happenings, What};
    use crate::{event_log::EventLog, fixture};

    #[tokio::test]
    async fn a_collector_that_comes_late_gets_everything_in_order() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        drop(listener);
        let bench = Bench::start(server, None);
        bench.tell(0..50).await;
        while bench.tally.failed.load(Ordering::Relaxed) < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(bench.tally.waiting.load(Ordering::Relaxed), 50);
        let mut collector = Collector::accept(&listen(server)).await;
        assert_eq!(collector.numbers(50).await, (0..50).collect::<Vec<_>>());
        bench.settled(50).await;
        assert_eq!(bench.tally.dropped.load(Ordering::Relaxed), 0);
        // Nothing is kept of what has arrived.
        let left = std::fs::read_dir(bench.folder.path()).unwrap();
        assert_eq!(left.filter(|entry| entry.as_ref().unwrap().path().extension().unwrap() == "log").count(), 0);
    }

    #[tokio::test]
    async fn what_a_collector_may_not_have_read_is_sent_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bench = Bench::start(listener.local_addr().unwrap(), None);
        bench.tell(0..100).await;
        // Reads half a message, then dies.
        let mut collector = Collector::accept(&listener).await;
        let mut half = [0; 40];
        collector.0.read_exact(&mut half).await.unwrap();
        drop(collector);
        // Closes with everything read: it may not have kept it.
        let mut collector = Collector::accept(&listener).await;
        assert_eq!(collector.numbers(100).await, (0..100).collect::<Vec<_>>());
        drop(collector);
        let mut collector = Collector::accept(&listener).await;
        assert_eq!(collector.numbers(100).await, (0..100).collect::<Vec<_>>());
        bench.settled(100).await;
        bench.tell(100..101).await;
        assert_eq!(collector.numbers(1).await, [100], "what is settled is not sent again");
    }

    #[tokio::test]
    async fn a_collector_that_does_not_read_is_left_and_holds_up_nobody() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        SockRef::from(&listener).set_recv_buffer_size(2048).unwrap();
        let mut bench = Bench::start(listener.local_addr().unwrap(), None);
        bench.tell(0..20).await;
        let asleep = listener.accept().await.unwrap();
        SockRef::from(&listener).set_recv_buffer_size(1 << 20).unwrap();
        // More than its socket takes.
        for round in 0..60 {
            bench.tell(20 + round * 200..220 + round * 200).await;
        }
        let begun = Instant::now();
        while bench.tally.failed.load(Ordering::Relaxed) == 0 {
            assert!(begun.elapsed() < Duration::from_secs(20));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // Connections that were given up while they waited to be accepted come first.
        let begun = Instant::now();
        loop {
            assert!(begun.elapsed() < Duration::from_mins(1));
            let mut collector = Collector::accept(&listener).await;
            let all = tokio::time::timeout(Duration::from_secs(5), collector.try_numbers(12_020)).await;
            if let Ok(Some(numbers)) = all {
                assert_eq!(numbers, (0..12_020).collect::<Vec<_>>());
                break;
            }
        }
        drop(asleep);
        bench.stop().await;
    }

    #[tokio::test]
    async fn a_restart_sends_what_was_not_settled() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        let mut bench = Bench::start(server, None);
        bench.tell(0..10).await;
        let mut collector = Collector::accept(&listener).await;
        assert_eq!(collector.numbers(10).await, (0..10).collect::<Vec<_>>());
        bench.settled(10).await;
        drop(collector);
        drop(listener);
        bench.tell(10..20).await;
        bench.stop().await;
        let listener = listen(server);
        bench.again();
        bench.tell(20..21).await;
        let mut collector = Collector::accept(&listener).await;
        assert_eq!(collector.numbers(11).await, (10..21).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn the_oldest_give_way_and_the_collector_is_told_how_many() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = listener.local_addr().unwrap();
        drop(listener);
        let mut bench = Bench::start(server, None);
        bench.stop().await;
        bench.syslog.queue = 256 << 10;
        bench.again();
        for round in 0..20 {
            bench.tell(round * 100..round * 100 + 100).await;
        }
        bench.tally.miss(7);
        let dropped = || bench.tally.dropped.load(Ordering::Relaxed);
        while dropped() < 100 || bench.tally.missed.load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut collector = Collector::accept(&listen(server)).await;
        let word = collector.message().await;
        assert!(word.contains(" dropped [quadway@32473 event=\"dropped\" count=\""), "{word}");
        let count: u64 = word.split("count=\"").nth(1).unwrap().split('"').next().unwrap().parse().unwrap();
        assert_eq!(count, dropped());
        let left = 2000 - (count - 7);
        assert_eq!(collector.numbers(left).await, (2000 - left..2000).collect::<Vec<_>>());
        bench.settled(left).await;
    }

    #[tokio::test]
    async fn denials_are_told_where_they_are_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bench = Bench::start(listener.local_addr().unwrap(), None);
        bench.denied.push(fixture::denied());
        let message = Collector::accept(&listener).await.message().await;
        assert!(message.contains(" denied [quadway@32473 event=\"denied\" cell=\"dev->compute\""), "{message}");
    }

    #[tokio::test]
    async fn over_tls_both_sides_are_known_or_nothing_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, strangers) = (Authority::new("ours"), Authority::new("strangers"));
        let (acceptor, identity) = (ours.server("logs.example.org"), ours.client(folder.path()));
        let ca = |authority: &Authority, name: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, &authority.pem).unwrap();
            path
        };
        let (right, wrong) = (ca(&ours, "right.pem"), ca(&strangers, "wrong.pem"));
        let tls = |ca: &PathBuf, name: Option<&str>, identity: Option<&Identity>| {
            Some(Tls { ca: ca.clone(), name: name.map(str::to_owned), identity: identity.cloned() })
        };
        let named = Some("logs.example.org");
        for (tls, reason) in [
            (tls(&wrong, named, Some(&identity)), "UnknownIssuer"),
            (tls(&right, Some("other.example.org"), Some(&identity)), "not valid for name"),
            (tls(&right, None, Some(&identity)), "not valid for name"),
            (tls(&right, named, None), "CertificateRequired"),
            (tls(&folder.path().join("none.pem"), named, None), "cannot read certificates"),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let bench = Bench::start(listener.local_addr().unwrap(), tls);
            bench.tell(0..1).await;
            let mut said = String::new();
            let begun = Instant::now();
            while !said.contains(reason) {
                assert!(begun.elapsed() < Duration::from_secs(20), "{reason}: {said}");
                let accepted = tokio::time::timeout(Duration::from_millis(20), listener.accept()).await;
                if let Ok(Ok((stream, _))) = accepted
                    && let Ok(mut stream) = acceptor.accept(stream).await
                {
                    let mut text = String::new();
                    drop(stream.read_to_string(&mut text).await);
                    assert_eq!(text, "", "{reason}");
                }
                said = bench.tally.trouble.lock().unwrap().clone().unwrap_or_default();
            }
            assert_eq!(bench.tally.told.load(Ordering::Relaxed), 0);
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bench = Bench::start(listener.local_addr().unwrap(), tls(&right, named, Some(&identity)));
        bench.tell(0..3).await;
        let (stream, _) = listener.accept().await.unwrap();
        let mut collector = Collector(Box::new(acceptor.accept(stream).await.unwrap()));
        assert_eq!(collector.numbers(3).await, [0, 1, 2]);
        bench.settled(3).await;
    }

    /// One collector's outlet on a thread of its own, as in the daemon.
    struct Bench {
        folder: tempfile::TempDir,
        syslog: Syslog,
        happenings: Happenings,
        denied: EventLog,
        inbox: mpsc::Sender<Arc<Happening>>,
        tally: Arc<Tally>,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl Bench {
        fn start(server: SocketAddr, tls: Option<Tls>) -> Self {
            let (events, line) = (EventKind::ALL.into(), Line::BUILT_IN);
            let queue = 16 << 20;
            let syslog = Syslog { server, tls, events, denied: true, queue, line };
            let mut bench = Self {
                folder: tempfile::tempdir().unwrap(),
                syslog,
                happenings: Happenings::default(),
                denied: EventLog::default(),
                inbox: mpsc::channel(1).0,
                tally: Arc::default(),
                thread: None,
            };
            bench.again();
            bench
        }

        fn again(&mut self) {
            let (inbox, told) = mpsc::channel(256);
            self.inbox = inbox;
            let patience = Patience {
                connect: Duration::from_secs(5),
                user_timeout: Duration::from_secs(1),
                settle: Duration::from_millis(1500),
                first_pause: Duration::from_millis(10),
                last_pause: Duration::from_millis(50),
            };
            let (syslog, folder) = (self.syslog.clone(), self.folder.path().to_owned());
            let duty = Duty { syslog, folder, tally: Arc::clone(&self.tally), patience };
            let denied = Some(self.denied.follow());
            self.thread = Some(std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(duty.run(told, denied));
            }));
        }

        async fn tell(&self, numbers: std::ops::Range<u64>) {
            let mut followed = self.happenings.follow();
            for number in numbers {
                self.happenings.tell(What::Drift { repairs: vec![format!("n{number}.")] });
                let happening = followed.recv().await.unwrap();
                self.inbox.send(happening).await.unwrap();
            }
        }

        async fn settled(&self, count: u64) {
            let begun = Instant::now();
            while self.tally.told.load(Ordering::Relaxed) < count || self.tally.waiting.load(Ordering::Relaxed) > 0 {
                assert!(begun.elapsed() < Duration::from_secs(20));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            assert_eq!(self.tally.told.load(Ordering::Relaxed), count);
            assert_eq!(*self.tally.trouble.lock().unwrap(), None);
        }

        async fn stop(&mut self) {
            self.inbox = mpsc::channel(1).0;
            let thread = self.thread.take().unwrap();
            tokio::task::spawn_blocking(move || thread.join().unwrap()).await.unwrap();
        }
    }

    fn listen(server: SocketAddr) -> TcpListener {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(server).unwrap();
        socket.listen(8).unwrap()
    }

    struct Collector(Box<dyn Stream>);

    impl Collector {
        async fn accept(listener: &TcpListener) -> Self {
            let accepted = tokio::time::timeout(Duration::from_secs(20), listener.accept()).await;
            Self(Box::new(accepted.unwrap().unwrap().0))
        }

        async fn message(&mut self) -> String {
            tokio::time::timeout(Duration::from_secs(20), self.try_message()).await.unwrap().unwrap()
        }

        /// By its count of octets; `None` where the connection ends.
        async fn try_message(&mut self) -> Option<String> {
            let mut length = String::new();
            loop {
                match self.0.read_u8().await.ok()? {
                    b' ' => break,
                    digit => length.push(char::from(digit)),
                }
            }
            let mut message = vec![0; length.parse().unwrap()];
            self.0.read_exact(&mut message).await.ok()?;
            Some(String::from_utf8(message).unwrap())
        }

        async fn numbers(&mut self, count: u64) -> Vec<u64> {
            tokio::time::timeout(Duration::from_secs(20), self.try_numbers(count)).await.unwrap().unwrap()
        }

        async fn try_numbers(&mut self, count: u64) -> Option<Vec<u64>> {
            let mut numbers = Vec::new();
            for _ in 0..count {
                let message = self.try_message().await?;
                let number = message.split("repairs=\"n").nth(1).and_then(|rest| rest.split('.').next());
                numbers.push(number.unwrap_or_else(|| panic!("{message}")).parse().unwrap());
            }
            Some(numbers)
        }
    }

    struct Authority {
        pem: String,
        issuer: Mutex<Issuer<'static, KeyPair>>,
        certificate: tokio_rustls::rustls::pki_types::CertificateDer<'static>,
    }

    impl Authority {
        fn new(name: &str) -> Self {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let certificate = params.self_signed(&key).unwrap();
            Self {
                pem: certificate.pem(),
                certificate: certificate.der().clone(),
                issuer: Mutex::new(Issuer::new(params, key)),
            }
        }

        fn sign(&self, name: &str) -> (rcgen::Certificate, KeyPair) {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            (params.signed_by(&key, &*self.issuer.lock().unwrap()).unwrap(), key)
        }

        /// Takes only clients of its own.
        fn server(&self, name: &str) -> TlsAcceptor {
            let (certificate, key) = self.sign(name);
            let mut roots = RootCertStore::empty();
            roots.add(self.certificate.clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
            let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let config = ServerConfig::builder()
                .with_client_cert_verifier(verifier)
                .with_single_cert(vec![certificate.der().clone()], key);
            TlsAcceptor::from(Arc::new(config.unwrap()))
        }

        fn client(&self, folder: &Path) -> Identity {
            let (certificate, key) = self.sign("router.example.org");
            let identity = Identity { certificate: folder.join("router.pem"), key: folder.join("router.key") };
            std::fs::write(&identity.certificate, certificate.pem()).unwrap();
            std::fs::write(&identity.key, key.serialize_pem()).unwrap();
            identity
        }
    }
}
