//! What happens on the router, told outside: a collector, a webhook and a hook of a router at work, while they fail too.
#![expect(clippy::unwrap_used, reason = "test code; clippy knows only the test functions")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::demo::wait_until_good;
use tests::failover::SITE;
use tests::lab::{Lab, Temporary};
use tests::link::Fault;
use tests::tls::{Authority, Identity, KeyKind, Wanted};
use tests::watch::{status, wait, wait_usable};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

/// In `office` and in `guests`, at the port where the lab's hosts do not answer by themselves.
const COLLECTOR: &str = "10.0.10.20:8088";
const WEBHOOK: &str = "10.0.20.20:8088";
const SECRET: &str = "Bearer 6d0fe2c5-not-for-logs";

#[test]
fn a_lost_line_is_told_to_all_three_and_again_to_a_collector_that_was_away() {
    if let Err(reason) = tests::can_run() {
        return println!("SKIP: {reason:#}");
    }
    let mut lab = Temporary::up(SITE, 2, false).unwrap();
    let write = "cat > \"$0.told\" && printf '%s %s\\n' \"$QUADWAY_WAN\" \"$QUADWAY_TO\" >> \"$0.lines\"";
    let (hook, identity) = prepare(&lab, write);
    let posts = webhook(&lab, &identity);
    lab.start_router().unwrap();
    wait_until_good(&lab, Duration::from_mins(1)).unwrap();

    // The collector is away; what it missed comes first, in order, and what happens then after it.
    lab.fail(1, Fault::Blackhole).unwrap();
    wait_usable(&lab, "wan1", "v4", false).unwrap();
    wait("the webhook has heard of wan1", || Ok(posts.try_iter().any(|post| post.tells("wan1", "down")))).unwrap();
    wait("the hook has heard of wan1", || Ok(hook.lines().contains("wan1 down"))).unwrap();
    wait("the collector is missed", || Ok(outlet(&lab, "syslog")["trouble"].is_string())).unwrap();
    assert!(outlet(&lab, "syslog")["waiting"].as_u64().unwrap() > 0);
    let body: Value = serde_json::from_slice(&fs::read(hook.beside("told")).unwrap()).unwrap();
    assert_eq!(body["event"], "health", "{body}");

    // Neither does the end of the daemon lose it.
    lab.stop_router(Signal::SIGKILL).unwrap();
    let listener = listen(&lab, 10, COLLECTOR);
    lab.start_router().unwrap();
    let mut collector = Collector(BufReader::new(listener.accept().unwrap().0));
    let news = |message: &str, to: &str| message.contains("wan=\"wan1\"") && message.contains(&format!(" to=\"{to}\""));
    let missed = collector.until(|message| news(message, "down"));
    println!("{}", missed.last().unwrap());
    let (run, _) = number(&missed[0]);
    let since = collector.until(|message| number(message).0 != run && news(message, "down"));
    lab.heal(1).unwrap();
    let healed = collector.until(|message| news(message, "up"));
    let messages = [missed, since, healed].concat();
    let numbers: Vec<_> = messages.iter().map(|message| number(message)).collect();
    assert!(numbers.is_sorted(), "{numbers:?}");
    let runs: BTreeSet<_> = numbers.iter().map(|(run, _)| *run).collect();
    assert_eq!(runs.len(), 2, "both runs of the daemon: {numbers:?}");
    for message in messages {
        // RFC 5424, 6: facility 3 (system daemons), version 1, and who speaks.
        let priority: u32 = message[1..message.find('>').unwrap()].parse().unwrap();
        assert!(priority / 8 == 3 && message.contains(">1 20") && message.contains(" quadway "), "{message}");
    }
    wait("all three are served", || {
        Ok(["syslog", "webhook", "hook"].iter().all(|kind| {
            let outlet = outlet(&lab, kind);
            // The collector's count as told once it had twenty seconds to complain.
            outlet["trouble"].is_null() && (kind == &"syslog" || outlet["told"].as_u64() > Some(0))
        }))
    })
    .unwrap();

    // The secret went to the webhook, and nowhere else.
    let log = fs::read_to_string(lab.log("routerd")).unwrap();
    let (_, pid) = lab.processes().find(|(name, _)| *name == "routerd").unwrap();
    let argv = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(!log.contains(SECRET) && !String::from_utf8_lossy(&argv).contains(SECRET));
    assert!(!status(&lab).unwrap().to_string().contains(SECRET));
}

#[test]
fn outlets_that_hang_delay_no_failover() {
    if let Err(reason) = tests::can_run() {
        return println!("SKIP: {reason:#}");
    }
    let mut lab = Temporary::up(SITE, 2, false).unwrap();
    let (hook, _) = prepare(&lab, "echo x >> \"$0.lines\"; sleep 60");
    // Whoever connects is let in by the kernel, and never answered.
    let deaf = [listen(&lab, 10, COLLECTOR), listen(&lab, 20, WEBHOOK)];
    lab.start_router().unwrap();
    wait_until_good(&lab, Duration::from_mins(1)).unwrap();
    wait("the hook hangs", || Ok(!hook.lines().is_empty())).unwrap();

    lab.fail(1, Fault::Blackhole).unwrap();
    let took = wait_usable(&lab, "wan1", "v4", false).unwrap();
    // The least patient of the three waits for five seconds.
    assert!(took < Duration::from_secs(3), "{took:?}");
    let waiting = |kind: &str| outlet(&lab, kind)["waiting"].as_u64().unwrap();
    assert!(waiting("webhook") > 0 && waiting("hook") > 0, "{} {}", outlet(&lab, "webhook"), outlet(&lab, "hook"));
    drop(deaf);
}

/// Writes the outlets into the site file, the secret and the hook; what the webhook shows in TLS.
fn prepare(lab: &Lab, hook: &str) -> (Hook, Identity) {
    let folder = lab.site_file().parent().unwrap().to_owned();
    let (secret, run) = (folder.join("secret"), folder.join("hook"));
    put(&secret, SECRET, 0o600);
    put(&run, &format!("#!/bin/sh\n{hook}\n"), 0o755);
    let authority = Authority::new("outlets").unwrap();
    let ca = folder.join("ca.pem");
    put(&ca, &authority.pem(), 0o644);
    let (secret, path, ca) = (secret.display(), run.display(), ca.display());
    let outlets = format!(
        "\n[[syslog]]\nserver = \"{COLLECTOR}\"\n\
         [[webhook]]\nurl = \"https://{WEBHOOK}/quadway\"\nca = \"{ca}\"\nsecret = \"{secret}\"\n\
         [[hook]]\nrun = \"{path}\"\nevents = [\"health\"]\ntimeout = \"20s\"\n"
    );
    let text = fs::read_to_string(lab.site_file()).unwrap();
    let text = text.replace("hold = \"1s\"", "hold = \"0s\"").replace("hold_max = \"8s\"", "hold_max = \"0s\"");
    fs::write(lab.site_file(), text + &outlets).unwrap();
    lab.host(10).ip("address add 10.0.10.20/24 dev eth0\n").unwrap();
    lab.host(20).ip("address add 10.0.20.20/24 dev eth0\n").unwrap();
    let names = [WEBHOOK.split(':').next().unwrap()];
    let wanted = Wanted { names: &names, cn: "webhook", server: true, until: 2040, key: KeyKind::P256 };
    (Hook(run), authority.signs(&wanted).unwrap())
}

fn put(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn listen(lab: &Lab, vlan: u16, at: &str) -> TcpListener {
    lab.host(vlan).enter(|| TcpListener::bind(at)).unwrap().unwrap()
}

fn outlet(lab: &Lab, kind: &str) -> Value {
    let status = status(lab).unwrap();
    status["outlets"].as_array().unwrap().iter().find(|outlet| outlet["kind"] == kind).unwrap().clone()
}

/// A program of the site, which writes beside itself.
struct Hook(PathBuf);

impl Hook {
    fn beside(&self, what: &str) -> PathBuf {
        self.0.with_extension(what)
    }

    fn lines(&self) -> String {
        fs::read_to_string(self.beside("lines")).unwrap_or_default()
    }
}

/// What a webhook was sent.
struct Post {
    head: String,
    body: Value,
}

impl Post {
    fn tells(&self, wan: &str, to: &str) -> bool {
        assert!(self.head.contains(SECRET), "{}", self.head);
        self.body["wan"] == wan && self.body["to"] == to
    }
}

/// Takes every post there, until the test ends.
fn webhook(lab: &Lab, identity: &Identity) -> Receiver<Post> {
    let chain = vec![CertificateDer::from_pem_slice(identity.certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let config = Arc::new(config);
    let listener = listen(lab, 20, WEBHOOK);
    let (sender, posts) = channel();
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            if sender.send(take(StreamOwned::new(connection, stream))).is_err() {
                return;
            }
        }
    });
    posts
}

fn take(stream: impl Read + Write) -> Post {
    let mut stream = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    stream.get_mut().write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    Post { head, body: serde_json::from_slice(&body).unwrap() }
}

/// RFC 6587, 3.4.1: each message after its length.
struct Collector(BufReader<TcpStream>);

impl Collector {
    /// All messages up to one that is as wanted.
    fn until(&mut self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        self.0.get_ref().set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut messages = vec![];
        loop {
            let mut length = vec![];
            self.0.read_until(b' ', &mut length).unwrap();
            let length = String::from_utf8(length).unwrap().trim().parse().unwrap();
            let mut message = vec![0; length];
            self.0.read_exact(&mut message).unwrap();
            messages.push(String::from_utf8(message).unwrap());
            if messages.last().is_some_and(|message| wanted(message)) {
                return messages;
            }
        }
    }
}

/// Of a message: the run of routerd, and its place there.
fn number(message: &str) -> (u64, u64) {
    let value = |name: &str| message.split_once(name).unwrap().1.split('"').next().unwrap().parse().unwrap();
    (value(" run=\""), value(" number=\""))
}
