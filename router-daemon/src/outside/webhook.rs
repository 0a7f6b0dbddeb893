//! One webhook: each happening is posted as JSON, one after the other, until the server takes it.
//!
//! | answer | |
//! |---|---|
//! | 2xx | taken |
//! | 408, 425, 429, 5xx, none in time | tried again, after a pause that doubles up to five minutes, for an hour |
//! | any other | refused: dropped at once, the same again would be refused again |
//!
//! What comes meanwhile waits in the inbox, and what finds that full is dropped and counted. Nothing of the URL but its
//! host is told anywhere, and nothing of the secret: paths of webhooks are often secrets too.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use config::model::{Secret, Webhook};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tracing::warn;

use super::{BackOff, Tally, tls};
use crate::happening::Happening;

pub(super) struct Duty {
    pub(super) webhook: Webhook,
    pub(super) to: String,
    pub(super) tally: Arc<Tally>,
    pub(super) patience: Patience,
}

/// How long what may take.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    pub(super) first_pause: Duration,
    pub(super) last_pause: Duration,
    pub(super) give_up: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_secs(1),
            last_pause: Duration::from_mins(5),
            give_up: Duration::from_hours(1),
        }
    }
}

/// Why it was not taken.
enum Failure {
    Again(String),
    Refused(String),
}

impl Duty {
    /// Until the inbox is closed; what is in it then is dropped.
    pub(super) async fn run(self, mut inbox: mpsc::Receiver<Arc<Happening>>) {
        while let Some(happening) = inbox.recv().await {
            self.tally.waiting.store(inbox.len() as u64 + 1, Ordering::Relaxed);
            self.tell(&happening, &inbox).await;
            self.tally.waiting.store(inbox.len() as u64, Ordering::Relaxed);
            if inbox.is_closed() {
                self.tally.miss(inbox.len() as u64);
                return;
            }
        }
    }

    async fn tell(&self, happening: &Happening, inbox: &mpsc::Receiver<Arc<Happening>>) {
        let Self { webhook, to, tally, patience } = self;
        let begun = Instant::now();
        let mut pauses = BackOff::new(patience.first_pause, patience.last_pause);
        loop {
            let posted = tokio::time::timeout(webhook.timeout, post(webhook, happening)).await;
            let failure = match posted {
                Ok(Ok(())) => return tally.succeed(1),
                Ok(Err(failure)) => failure,
                Err(_elapsed) => Failure::Again("it does not answer in time".to_owned()),
            };
            let (reason, again) = match failure {
                Failure::Again(reason) => (reason, begun.elapsed() < patience.give_up && !inbox.is_closed()),
                Failure::Refused(reason) => (reason, false),
            };
            if tally.fail(&reason) {
                warn!(webhook = to, reason, again, "the webhook did not take an event");
            }
            if !again {
                return tally.miss(1);
            }
            let pause = tokio::time::sleep(pauses.pause());
            tokio::select! {
                () = pause => {}
                () = closed(inbox) => {}
            }
            self.tally.waiting.store(inbox.len() as u64 + 1, Ordering::Relaxed);
        }
    }
}

/// A receiver cannot wait for its senders without receiving.
async fn closed(inbox: &mpsc::Receiver<Arc<Happening>>) {
    while !inbox.is_closed() {
        tokio::time::sleep(CLOSED).await;
    }
}

async fn post(webhook: &Webhook, happening: &Happening) -> Result<(), Failure> {
    let again = |what: &str, error: &dyn std::error::Error| Failure::Again(format!("{what}: {error}"));
    let url = &webhook.url;
    let stream = TcpStream::connect((url.host.as_str(), url.port)).await;
    let stream = stream.map_err(|error| again("cannot connect", &error))?;
    let request = request(webhook, happening).map_err(Failure::Again)?;
    let status = if url.tls {
        let config = tls::client(webhook.ca.as_deref(), None).map_err(Failure::Again)?;
        let name = ServerName::try_from(url.host.clone()).map_err(|error| again("no name for TLS", &error))?;
        let stream = TlsConnector::from(config).connect(name, stream).await;
        exchange(stream.map_err(|error| again("no TLS", &error))?, request).await
    } else {
        exchange(stream, request).await
    };
    let status = status.map_err(|error| again("no HTTP answer", &error))?;
    if status.is_success() {
        return Ok(());
    }
    let reason = format!("it answers {}", status.as_u16());
    let again = status.is_server_error()
        || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS);
    Err(if again { Failure::Again(reason) } else { Failure::Refused(reason) })
}

fn request(webhook: &Webhook, happening: &Happening) -> Result<Request<Full<Bytes>>, String> {
    let url = &webhook.url;
    let host = if url.host.contains(':') { format!("[{}]", url.host) } else { url.host.clone() };
    let mut request = Request::post(&url.path)
        .header(HOST, format!("{host}:{}", url.port))
        .header(USER_AGENT, concat!("quadway/", env!("CARGO_PKG_VERSION")))
        .header(CONTENT_TYPE, "application/json")
        .header(CONNECTION, "close")
        .header("X-Quadway-Event", happening.what.kind().word())
        .header("Idempotency-Key", format!("{}-{}", happening.run, happening.number));
    if let Some(secret) = &webhook.secret {
        let name = HeaderName::from_bytes(secret.header.as_bytes()).map_err(|error| error.to_string())?;
        request = request.header(name, read(secret)?);
    }
    let body = serde_json::to_vec(happening).map_err(|error| error.to_string())?;
    request.body(Full::new(Bytes::from(body))).map_err(|error| error.to_string())
}

/// Never in a message: only what is wrong with the file is.
fn read(secret: &Secret) -> Result<HeaderValue, String> {
    let file = secret.file.display();
    let cannot = |error: std::io::Error| format!("cannot read the secret from {file}: {error}");
    let opened = fs::File::open(&secret.file).map_err(cannot)?;
    let mode = opened.metadata().map_err(cannot)?.mode();
    if mode & 0o077 != 0 {
        return Err(format!("others may read the secret in {file}: chmod 600 {file}"));
    }
    let mut text = String::new();
    opened.take(LONGEST_SECRET).read_to_string(&mut text).map_err(cannot)?;
    let mut value = HeaderValue::from_str(text.trim())
        .map_err(|_invalid| format!("what {file} holds cannot stand in a header: write one line of ASCII"))?;
    value.set_sensitive(true);
    Ok(value)
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<StatusCode, hyper::Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut sender, connection) =
        http1::Builder::new().max_buf_size(LARGEST_HEAD).handshake(TokioIo::new(stream)).await?;
    let mut connection = std::pin::pin!(connection);
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        // An answer that is cut off is an answer.
        drop(response.into_body().frame().await);
        Ok(status)
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error),
        },
    }
}

const CLOSED: Duration = Duration::from_millis(200);
const LONGEST_SECRET: u64 = 8192;
const LARGEST_HEAD: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use config::model::Url;
    use config::units::{EventKind, Line};
    use serde_json::Value;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::happening::{Happenings, What};

    #[tokio::test]
    async fn an_event_is_posted_again_until_it_is_taken_and_the_next_waits() {
        let bench = Bench::start(Duration::from_mins(1), Duration::from_secs(10)).await;
        bench.tell("first").await;
        bench.tell("second").await;
        let mut ids = Vec::new();
        for answer in [
            "HTTP/1.1 500 Oh\r\n\r\n",
            "HTTP/1.1 429 Slow\r\n\r\n",
            "",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nyes",
        ] {
            let (head, body) = bench.answer(answer).await;
            assert!(head.starts_with("POST /in?token=abc HTTP/1.1\r\n"), "{head}");
            assert!(
                head.contains("x-quadway-event: target\r\n") && head.contains("authorization: Bearer s3cret\r\n"),
                "{head}"
            );
            ids.push(head.lines().find(|line| line.starts_with("idempotency-key: ")).unwrap().to_owned());
            assert_eq!(
                (&body["version"], &body["event"], &body["target"]),
                (&1.into(), &"target".into(), &"first".into())
            );
        }
        ids.dedup();
        assert_eq!(ids.len(), 1, "the same event by the same key");
        let (_, body) = bench.answer("HTTP/1.1 204 Good\r\n\r\n").await;
        assert_eq!(body["target"], "second");
        bench.tally.comes_to([2, 3, 0]).await;
        assert_eq!(*bench.tally.trouble.lock().unwrap(), None);
    }

    #[tokio::test]
    async fn what_is_refused_or_fails_for_too_long_is_dropped_and_counted() {
        let bench = Bench::start(Duration::from_millis(1500), Duration::from_secs(1)).await;
        bench.tell("refused").await;
        bench.answer("HTTP/1.1 404 No\r\n\r\n").await;
        bench.tally.comes_to([0, 1, 1]).await;
        // Accepted, and never answered.
        bench.tell("silence").await;
        let asleep = bench.listener.accept().await.unwrap();
        while bench.tally.dropped.load(Ordering::Relaxed) < 2 {
            let accepted = tokio::time::timeout(Duration::from_millis(20), bench.listener.accept()).await;
            drop(accepted);
        }
        drop(asleep);
        bench.tell("taken").await;
        loop {
            let (_, body) = bench.answer("HTTP/1.1 200 OK\r\n\r\n").await;
            if body["target"] == "taken" {
                break;
            }
        }
        bench.told(1).await;
    }

    #[tokio::test]
    async fn a_secret_that_others_may_read_is_not_sent_and_no_secret_is_told() {
        let bench = Bench::start(Duration::from_mins(1), Duration::from_secs(10)).await;
        fs::set_permissions(bench.folder.path().join("secret"), fs::Permissions::from_mode(0o644)).unwrap();
        bench.tell("x").await;
        let trouble = || bench.tally.trouble.lock().unwrap().clone().unwrap_or_default();
        while !trouble().contains("chmod 600") {
            drop(tokio::time::timeout(Duration::from_millis(10), bench.listener.accept()).await);
        }
        assert!(!trouble().contains("s3cret") && !trouble().contains("token"));
        fs::write(bench.folder.path().join("secret"), "two\nlines").unwrap();
        fs::set_permissions(bench.folder.path().join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
        while !trouble().contains("one line of ASCII") {
            drop(tokio::time::timeout(Duration::from_millis(10), bench.listener.accept()).await);
        }
        assert!(!trouble().contains("two"));
    }

    struct Bench {
        folder: tempfile::TempDir,
        listener: TcpListener,
        happenings: Happenings,
        inbox: mpsc::Sender<Arc<Happening>>,
        tally: Arc<Tally>,
    }

    impl Bench {
        async fn start(give_up: Duration, timeout: Duration) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("secret");
            fs::write(&file, "Bearer s3cret\n").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let webhook = Webhook {
                url: Url { tls: false, host: "127.0.0.1".to_owned(), port, path: "/in?token=abc".to_owned() },
                secret: Some(Secret { header: "Authorization".to_owned(), file }),
                ca: None,
                events: EventKind::ALL.into(),
                timeout,
                line: Line::BUILT_IN,
            };
            let tally: Arc<Tally> = Arc::default();
            let patience =
                Patience { first_pause: Duration::from_millis(10), last_pause: Duration::from_millis(40), give_up };
            let duty = Duty { webhook, to: "127.0.0.1".to_owned(), tally: Arc::clone(&tally), patience };
            let (inbox, told) = mpsc::channel(16);
            tokio::spawn(duty.run(told));
            Self { folder, listener, happenings: Happenings::default(), inbox, tally }
        }

        async fn tell(&self, target: &str) {
            let mut followed = self.happenings.follow();
            self.happenings.tell(What::Target { target: target.to_owned(), bad: true });
            self.inbox.send(followed.recv().await.unwrap()).await.unwrap();
        }

        /// Takes one whole request and answers it, or hangs up.
        async fn answer(&self, answer: &str) -> (String, Value) {
            let exchange = async {
                loop {
                    let (mut stream, _) = self.listener.accept().await.unwrap();
                    let mut bytes = Vec::new();
                    let (head, body) = loop {
                        if stream.read_buf(&mut bytes).await.unwrap_or_default() == 0 {
                            break (String::new(), None);
                        }
                        let text = String::from_utf8_lossy(&bytes);
                        if let Some((head, body)) = text.split_once("\r\n\r\n")
                            && let Ok(body) = serde_json::from_str::<Value>(body)
                        {
                            break (format!("{head}\r\n"), Some(body));
                        }
                    };
                    // One that was given up while it waited to be accepted.
                    let Some(body) = body else { continue };
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    return (head, body);
                }
            };
            tokio::time::timeout(Duration::from_secs(20), exchange).await.unwrap()
        }

        async fn told(&self, told: u64) {
            let begun = Instant::now();
            while self.tally.told.load(Ordering::Relaxed) < told {
                assert!(begun.elapsed() < Duration::from_secs(20));
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}
