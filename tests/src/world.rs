//! Who answers in the lab: the Internet behind the ISPs, and the hosts in the VLANs.
//!
//! One process per namespace, both families. Every TCP and UDP port answers, because a rule of the namespace
//! redirects what has no server of its own to port 7, where TCP is greeted and echoed and UDP is echoed, or greeted
//! when it asks. The greeting and the HTTP answer tell the peer's address as it is seen here, hence the line it came by.

use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::str::FromStr;
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Where everything without a server of its own arrives.
pub const ECHO: u16 = 7;
/// The ports with an HTTP server.
pub const HTTP: [u16; 2] = [80, 8080];
pub const DNS: u16 = 53;
/// Nobody's: for a server that a test brings.
pub const FREE: u16 = 8088;

/// The datagram that the echo server answers with a greeting.
pub const WHO: &[u8] = b"who sees me?";

/// The answer to every name: an address of the Internet.
pub const NAMED4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 80);
pub const NAMED6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0x80);

/// The rules that make every port answer.
pub fn ruleset() -> String {
    let [http, other] = HTTP;
    format!(
        "table inet world\ndelete table inet world\n\
         table inet world {{\nchain all_ports {{\ntype nat hook prerouting priority dstnat\n\
         tcp dport != {{ {DNS}, {http}, {other}, {FREE} }} redirect to :{ECHO}\n\
         udp dport != {{ {DNS}, {FREE} }} redirect to :{ECHO}\n}}\n}}\n"
    )
}

/// What a server said about who it is and whom it sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    pub server: String,
    pub peer: IpAddr,
}

impl std::fmt::Display for Greeting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} sees {}", self.server, self.peer)
    }
}

impl FromStr for Greeting {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (server, peer) = text.trim().split_once(" sees ").with_context(|| format!("{text:?} is no greeting"))?;
        Ok(Self { server: server.to_owned(), peer: peer.parse()? })
    }
}

/// Answers in the current namespace under `name` for ever; calls `ready` once everything listens.
pub fn serve(name: &str, ready: impl FnOnce()) -> Result<()> {
    for any in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
        let server = name.to_owned();
        spawn_udp(SocketAddr::new(any, ECHO), move |request, peer| {
            let greeting = || Greeting { server: server.clone(), peer }.to_string().into_bytes();
            Some(if request == WHO { greeting() } else { request.to_vec() })
        })?;
        spawn_udp(SocketAddr::new(any, DNS), |request, _| answer(request))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut servers = tokio::task::JoinSet::new();
        for (port, service) in
            [(ECHO, Service::Echo), (DNS, Service::Dns)].into_iter().chain(HTTP.map(|port| (port, Service::Http)))
        {
            let listener = listen(port).with_context(|| format!("cannot listen on TCP port {port}"))?;
            servers.spawn(accept(listener, service, name.to_owned()));
        }
        ready();
        match servers.join_next().await {
            Some(ended) => ended?.context("a server ended"),
            None => Ok(()),
        }
    })
}

#[derive(Debug, Clone, Copy)]
enum Service {
    Echo,
    Http,
    Dns,
}

fn listen(port: u16) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    // 2,000 connections arrive at once in some tests.
    socket.listen(4096)?;
    TcpListener::from_std(socket.into())
}

async fn accept(listener: TcpListener, service: Service, name: String) -> std::io::Result<()> {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let greeting = Greeting { server: name.clone(), peer: peer.ip().to_canonical() };
                // A connection's errors are its client's business.
                tokio::spawn(async move { drop(converse(stream, service, &greeting).await) });
            }
            Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
            Err(error) => return Err(error),
        }
    }
}

async fn converse(mut stream: TcpStream, service: Service, greeting: &Greeting) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    match service {
        Service::Echo => {
            stream.write_all(greeting.to_string().as_bytes()).await?;
            let (mut from, mut to) = stream.split();
            tokio::io::copy(&mut from, &mut to).await?;
        }
        Service::Http => {
            let mut request = Vec::new();
            while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < buffer.len() {
                match stream.read(&mut buffer).await? {
                    0 => return Ok(()),
                    length => request.extend_from_slice(&buffer[..length]),
                }
            }
            let body = greeting.to_string();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(body.as_bytes()).await?;
        }
        Service::Dns => loop {
            let length = usize::from(stream.read_u16().await?);
            let Some(request) = buffer.get_mut(..length) else { return Ok(()) };
            stream.read_exact(request).await?;
            let Some(answer) = answer(request) else { return Ok(()) };
            stream.write_u16(u16::try_from(answer.len()).unwrap_or(u16::MAX)).await?;
            stream.write_all(&answer).await?;
        },
    }
    Ok(())
}

fn spawn_udp(address: SocketAddr, reply: impl Fn(&[u8], IpAddr) -> Option<Vec<u8>> + Send + 'static) -> Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    }
    setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20))?;
    socket.bind(&address.into()).with_context(|| format!("cannot listen on UDP {address}"))?;
    let socket = UdpSocket::from(socket);
    thread::spawn(move || {
        loop {
            // ICMP errors of earlier answers are reported here; the next request is not to blame.
            drop(udp_once(&socket, &reply));
        }
    });
    Ok(())
}

/// Answers one datagram from the address it was sent to: a wildcard socket alone would answer from the address of
/// the outgoing link.
fn udp_once(socket: &UdpSocket, reply: impl Fn(&[u8], IpAddr) -> Option<Vec<u8>>) -> Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut control = nix::cmsg_space!(nix::libc::in6_pktinfo);
    let (length, peer, own) = {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let got = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty())?;
        let own = got.cmsgs()?.next();
        (got.bytes, got.address.context("a datagram without a sender")?, own)
    };
    let seen = peer
        .as_sockaddr_in()
        .map(|peer| IpAddr::V4(peer.ip()))
        .or(peer.as_sockaddr_in6().map(|peer| IpAddr::V6(peer.ip())))
        .context("a sender that is neither IPv4 nor IPv6")?;
    let Some(answer) = reply(&buffer[..length], seen) else { return Ok(()) };
    let slices = [IoSlice::new(&answer)];
    match own {
        Some(ControlMessageOwned::Ipv4PacketInfo(mut info)) => {
            info.ipi_ifindex = 0;
            info.ipi_spec_dst = info.ipi_addr;
            let control = [ControlMessage::Ipv4PacketInfo(&info)];
            sendmsg(socket.as_raw_fd(), &slices, &control, MsgFlags::empty(), Some(&peer))?;
        }
        Some(ControlMessageOwned::Ipv6PacketInfo(mut info)) => {
            info.ipi6_ifindex = 0;
            let control = [ControlMessage::Ipv6PacketInfo(&info)];
            sendmsg(socket.as_raw_fd(), &slices, &control, MsgFlags::empty(), Some(&peer))?;
        }
        Some(_) | None => bail!("the kernel did not say where the datagram was sent to"),
    }
    Ok(())
}

/// Answers a DNS query: A and AAAA of every name are known, except of names below `nx.`, which do not exist.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 12;
    let asked = query.get(HEADER..)?;
    let mut end = 0;
    let mut last: &[u8] = &[];
    while let length @ 1.. = usize::from(*asked.get(end)?) {
        last = asked.get(end + 1..=end + length)?;
        end += 1 + length;
    }
    let question = asked.get(..end + 5)?;
    let kind = u16::from_be_bytes([question[end + 1], question[end + 2]]);
    let data: Option<Vec<u8>> = match kind {
        1 => Some(NAMED4.octets().to_vec()),
        28 => Some(NAMED6.octets().to_vec()),
        _ => None,
    };
    let absent = last == b"nx";
    let data = data.filter(|_| !absent);

    let mut out = query[..2].to_vec();
    // An authoritative answer, recursion available; RD as asked.
    out.push(0x84 | (query[2] & 1));
    out.push(0x80 | if absent { 3 } else { 0 });
    out.extend([0, 1, 0, u8::from(data.is_some()), 0, 0, 0, 0]);
    out.extend_from_slice(question);
    if let Some(data) = data {
        // A pointer to the question's name, the type, class IN, 60 seconds.
        out.extend([0xc0, 12]);
        out.extend(kind.to_be_bytes());
        out.extend([0, 1, 0, 0, 0, 60]);
        out.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
        out.extend(data);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut query = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(u8::try_from(label.len()).unwrap());
            query.extend(label.as_bytes());
        }
        query.push(0);
        query.extend(kind.to_be_bytes());
        query.extend([0, 1]);
        query
    }

    #[test]
    fn names_have_addresses_of_both_families() {
        let a = answer(&query("example.org", 1)).unwrap();
        assert_eq!(a[..2], [0xab, 0xcd]);
        assert_eq!(a[7], 1, "one answer");
        assert!(a.ends_with(&NAMED4.octets()));
        let aaaa = answer(&query("example.org", 28)).unwrap();
        assert!(aaaa.ends_with(&NAMED6.octets()));
    }

    #[test]
    fn other_types_are_empty_and_nx_does_not_exist() {
        let mx = answer(&query("example.org", 15)).unwrap();
        assert_eq!((mx[3] & 15, mx[7]), (0, 0));
        let nx = answer(&query("example.nx", 1)).unwrap();
        assert_eq!((nx[3] & 15, nx[7]), (3, 0));
    }

    #[test]
    fn a_cut_query_gets_no_answer() {
        let whole = query("example.org", 1);
        for length in 0..whole.len() {
            assert_eq!(answer(&whole[..length]), None, "{length}");
        }
    }

    #[test]
    fn a_greeting_reads_as_it_is_written() {
        let greeting = Greeting { server: "lab-v30".into(), peer: "2001:db8::1".parse().unwrap() };
        assert_eq!(greeting.to_string().parse::<Greeting>().unwrap(), greeting);
    }
}
