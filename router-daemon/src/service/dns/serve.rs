//! Sockets of the resolver: UDP and TCP at port 53 of the router's addresses. Bounded in what is on the way at once, in all
//! and for one client.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use config::units::VlanName;
use hickory_proto::op::{Edns, Message, MessageType, ResponseCode};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::Terms;
use crate::accept;

type Told = watch::Sender<Option<Arc<Terms>>>;

/// What listens, and for whom.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    tasks: BTreeMap<SocketAddr, (VlanName, AbortHandle)>,
    clients: Arc<Clients>,
}

/// Who is being served.
#[derive(Debug, Default)]
struct Clients(Mutex<BTreeMap<IpAddr, usize>>);

/// Is there while a client is being served.
struct Served {
    clients: Arc<Clients>,
    who: IpAddr,
}

impl Drop for Served {
    fn drop(&mut self) {
        let mut all = self.clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.who) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.who);
            }
        }
    }
}

impl Clients {
    fn serve(clients: &Arc<Self>, who: IpAddr) -> Option<Served> {
        let mut all = clients.0.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = all.values().sum();
        let own = all.entry(who).or_default();
        if *own >= OF_ONE || total >= OF_ALL {
            if *own == 0 {
                all.remove(&who);
            }
            return None;
        }
        *own += 1;
        Some(Served { clients: Arc::clone(clients), who })
    }
}

impl Listeners {
    /// Listens there and nowhere else; what already does goes on. What cannot be listened on is told.
    pub(super) fn keep(&mut self, wanted: &BTreeMap<SocketAddr, VlanName>, terms: &Told) -> Vec<String> {
        self.tasks.retain(|address, (vlan, task)| {
            let stays = wanted.get(address) == Some(vlan) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        let mut trouble = Vec::new();
        for (address, vlan) in wanted {
            if self.tasks.contains_key(address) {
                continue;
            }
            match bind(*address) {
                Ok((udp, tcp)) => {
                    let place = Arc::new(Place {
                        vlan: vlan.clone(),
                        terms: terms.subscribe(),
                        clients: Arc::clone(&self.clients),
                    });
                    let task = tokio::spawn(async move {
                        tokio::join!(datagrams(udp, Arc::clone(&place)), streams(tcp, Arc::clone(&place)));
                    });
                    self.tasks.insert(*address, (vlan.clone(), task.abort_handle()));
                }
                Err(error) => trouble.push(format!("{address} cannot be listened on: {error}")),
            }
        }
        trouble
    }
}

/// One address that is listened on.
struct Place {
    vlan: VlanName,
    terms: watch::Receiver<Option<Arc<Terms>>>,
    clients: Arc<Clients>,
}

async fn datagrams(socket: UdpSocket, place: Arc<Place>) {
    let socket = Arc::new(socket);
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; LARGEST_QUESTION];
    loop {
        while tasks.try_join_next().is_some() {}
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                debug!(%error, "a question could not be received");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let Some(terms) = place.terms.borrow().clone() else { continue };
        let Some(served) = Clients::serve(&place.clients, from.ip()) else {
            terms.resolver.0.tally.dropped.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let bytes = buffer.get(..length).unwrap_or_default().to_vec();
        let (socket, place) = (Arc::clone(&socket), Arc::clone(&place));
        tasks.spawn(async move {
            let _served = served;
            if let Some(answer) = answer(&terms, &place.vlan, &bytes, true).await
                && let Err(error) = socket.send_to(&answer, from).await
            {
                debug!(%error, %from, "an answer could not be sent");
            }
        });
    }
}

async fn streams(listener: TcpListener, place: Arc<Place>) {
    let mut tasks = JoinSet::new();
    loop {
        let (stream, from) = accept::next(&mut tasks, "the resolver", || listener.accept()).await;
        let Some(served) = Clients::serve(&place.clients, from.ip()) else { continue };
        let place = Arc::clone(&place);
        tasks.spawn(async move {
            let _served = served;
            if let Err(error) = stream_of(stream, &place).await {
                debug!(%error, %from, "a client of the resolver is let go");
            }
        });
    }
}

/// One question after the other (RFC 7766 lets them overlap; few clients do).
async fn stream_of(mut stream: TcpStream, place: &Place) -> io::Result<()> {
    loop {
        let mut length = [0; 2];
        match timeout(IDLE, stream.read_exact(&mut length)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => return Ok(()),
        }
        let mut bytes = vec![0; u16::from_be_bytes(length).into()];
        timeout(IDLE, stream.read_exact(&mut bytes)).await??;
        let Some(terms) = place.terms.borrow().clone() else { return Ok(()) };
        let Some(answer) = answer(&terms, &place.vlan, &bytes, false).await else { return Ok(()) };
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend(answer);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

/// `None` for what deserves no answer.
async fn answer(terms: &Terms, vlan: &VlanName, bytes: &[u8], datagram: bool) -> Option<Vec<u8>> {
    let asked = match Message::from_vec(bytes) {
        Ok(asked) if asked.metadata.message_type == MessageType::Query => asked,
        Ok(_) => return None,
        Err(_) => {
            let id = u16::from_be_bytes([*bytes.first()?, *bytes.get(1)?]);
            // An answer to an answer would go on for ever.
            if bytes.get(2)? & 0x80 != 0 {
                return None;
            }
            let bad = Message::error_msg(id, hickory_proto::op::OpCode::Query, ResponseCode::FormErr);
            return bad.to_vec().ok();
        }
    };
    let mut told = terms.answer(vlan, &asked).await;
    let room = match &asked.edns {
        Some(edns) => {
            let mut own = Edns::new();
            own.set_max_payload(PAYLOAD).set_version(0);
            told.set_edns(own);
            usize::from(edns.max_payload().clamp(512, PAYLOAD))
        }
        None => 512,
    };
    let whole = match told.to_vec() {
        Ok(bytes) => bytes,
        Err(error) => {
            warn!(%error, "an answer cannot be written");
            let bad = Message::error_msg(asked.metadata.id, asked.metadata.op_code, ResponseCode::ServFail);
            return bad.to_vec().ok();
        }
    };
    if !datagram || whole.len() <= room {
        return Some(whole);
    }
    // Asked again over TCP (RFC 2181, 9: nothing of it may be used).
    told.answers.clear();
    told.authorities.clear();
    told.additionals.clear();
    told.metadata.truncation = true;
    told.to_vec().ok()
}

/// The addresses need not be there yet.
fn bind(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let open = |kind: Type, protocol| -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), kind.nonblocking().cloexec(), Some(protocol))?;
        match address {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => {
                socket.set_only_v6(true)?;
                socket.set_freebind_v6(true)?;
            }
        }
        Ok(socket)
    };
    let udp = open(Type::DGRAM, Protocol::UDP)?;
    udp.bind(&address.into())?;
    let tcp = open(Type::STREAM, Protocol::TCP)?;
    tcp.set_reuse_address(true)?;
    tcp.bind(&address.into())?;
    tcp.listen(BACKLOG)?;
    Ok((UdpSocket::from_std(udp.into())?, TcpListener::from_std(tcp.into())?))
}

/// What is on the way at once, in all and for one client.
const OF_ALL: usize = 2048;
const OF_ONE: usize = 256;
const LARGEST_QUESTION: usize = 4096;
/// Fits any path without fragments (DNS flag day 2020).
const PAYLOAD: u16 = 1232;
const IDLE: Duration = Duration::from_secs(10);
const BACKLOG: i32 = 128;
