//! DNS in the lab: a resolver of the Internet that says what a test has it say, and clients that ask the router.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::rdata::svcb::SvcParamValue;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::lab::Lab;
use crate::netns::Netns;
use crate::world::FREE;

/// Where the Internet's resolver is, at [`FREE`].
pub const RESOLVER: [u8; 4] = [198, 51, 100, 9];

/// The Internet's resolver, over UDP and TCP.
#[derive(Debug)]
pub struct Resolver {
    more: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

/// A question as it was asked.
#[derive(Debug)]
pub struct Asked<'a> {
    pub query: &'a Query,
    /// Of all questions, from 0.
    pub number: u64,
    /// Not by TCP.
    pub datagram: bool,
}

impl Resolver {
    /// `reply` puts the answers into the response to a question.
    pub fn start(lab: &Lab, reply: impl Fn(&Asked<'_>, &mut Message) + Send + Sync + 'static) -> Result<Self> {
        let (more, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let address = SocketAddr::from((RESOLVER, FREE));
        let (socket, listener) = lab
            .internet()
            .enter(|| anyhow::Ok((UdpSocket::bind(address)?, TcpListener::bind(address)?)))?
            .context("the Internet's resolver")?;
        socket.set_read_timeout(Some(LOOK))?;
        listener.set_nonblocking(true)?;
        let (go, count) = (Arc::clone(&more), Arc::clone(&asked));
        let answer = Arc::new(move |bytes: &[u8], datagram| {
            let question = Message::from_vec(bytes).ok()?;
            let mut told = Message::response(question.metadata.id, question.metadata.op_code);
            told.metadata.recursion_available = true;
            told.queries.clone_from(&question.queries);
            let asked =
                Asked { query: question.queries.first()?, number: count.fetch_add(1, Ordering::Relaxed), datagram };
            reply(&asked, &mut told);
            told.to_vec().ok()
        });
        let say = Arc::clone(&answer);
        let datagrams = thread::spawn(move || {
            let mut buffer = [0; 4096];
            while go.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                if let Some(told) = say(&buffer[..length], true) {
                    // Who is gone hears nothing.
                    socket.send_to(&told, from).ok();
                }
            }
        });
        let go = Arc::clone(&more);
        let streams = thread::spawn(move || {
            while go.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(5));
                    continue;
                };
                // It ends when the other side does.
                converse(stream, |bytes| answer(bytes, false)).ok();
            }
        });
        Ok(Self { more, asked, threads: vec![datagrams, streams] })
    }

    pub fn questions(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        self.more.store(false, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // What a panic in it said is on the terminal.
            thread.join().ok();
        }
    }
}

fn converse(mut stream: TcpStream, answer: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(IDLE))?;
    loop {
        let asked = framed(&mut stream)?;
        let told = answer(&asked).context("no question")?;
        stream.write_all(&[&u16::try_from(told.len())?.to_be_bytes()[..], &told].concat())?;
    }
}

fn framed(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn question(name: &str, kind: RecordType) -> Result<Message> {
    let mut name = Name::from_ascii(name)?;
    name.set_fqdn(true);
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    Ok(message)
}

/// Asks from a namespace by UDP. An error where nobody answers in time.
pub fn ask(from: &Netns, server: &str, name: &str, kind: RecordType, patience: Duration) -> Result<Message> {
    let question = question(name, kind)?;
    let told = from.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(patience))?;
        socket.connect(server)?;
        socket.send(&question.to_vec()?)?;
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).with_context(|| format!("{server} has no answer for {name} {kind}"))?;
        anyhow::Ok(Message::from_vec(&buffer[..length])?)
    })??;
    ensure!(told.metadata.id == question.metadata.id, "an answer to another question");
    Ok(told)
}

/// Asks by TCP.
pub fn ask_tcp(from: &Netns, server: &str, name: &str, kind: RecordType) -> Result<Message> {
    let question = question(name, kind)?.to_vec()?;
    let told = from.enter(|| {
        let mut stream = TcpStream::connect_timeout(&server.parse()?, IDLE)?;
        stream.set_read_timeout(Some(IDLE))?;
        stream.write_all(&[&u16::try_from(question.len())?.to_be_bytes()[..], &question].concat())?;
        framed(&mut stream)
    })??;
    Ok(Message::from_vec(&told)?)
}

/// What the records of an answer have a client connect to, with how long they may say so.
pub fn addresses(answers: &[Record]) -> Vec<(IpAddr, Duration)> {
    let of = |record: &Record| -> Vec<IpAddr> {
        #[expect(clippy::wildcard_enum_match_arm, reason = "the records of others have no addresses")]
        match &record.data {
            RData::A(address) => vec![address.0.into()],
            RData::AAAA(address) => vec![address.0.into()],
            RData::HTTPS(https) => {
                let hints = https.0.svc_params.iter().flat_map(|(_, value)| match value {
                    SvcParamValue::Ipv4Hint(hint) => hint.0.iter().map(|address| address.0.into()).collect(),
                    SvcParamValue::Ipv6Hint(hint) => hint.0.iter().map(|address| address.0.into()).collect(),
                    _ => Vec::<IpAddr>::new(),
                });
                hints.collect()
            }
            _ => Vec::new(),
        }
    };
    let told = answers.iter().flat_map(|record| {
        let ttl = Duration::from_secs(record.ttl.into());
        of(record).into_iter().map(move |address| (address, ttl))
    });
    told.collect()
}

const LOOK: Duration = Duration::from_millis(100);
const IDLE: Duration = Duration::from_secs(2);
