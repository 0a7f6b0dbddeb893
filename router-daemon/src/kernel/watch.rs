//! What the kernel tells unasked: links, neighbours, and hints that somebody changed what is ours.
//!
//! A hint says only "look again": our own changes cause it too. Idle, this costs nothing; nothing polls.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::net::IpAddr;

use config::units::{Family, IfName};
use mwan::links::Links;
use nix::libc::{
    NUD_REACHABLE, RTM_DELADDR, RTM_DELLINK, RTM_DELNEIGH, RTM_DELROUTE, RTM_DELRULE, RTM_NEWADDR, RTM_NEWLINK,
    RTM_NEWNEIGH, RTM_NEWNETCONF, RTM_NEWROUTE, RTM_NEWRULE,
};
use rtnetlink::packet_core::{Emitable, ParseableParametrized};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use super::links::{Devices, Table};
use super::netlink::{
    Heard, Listener, Message, NETLINK_NETFILTER, NETLINK_ROUTE, NLM_F_CREATE, NLM_F_REPLACE, Socket, af,
};
use super::rtnl::{Rtnl, find};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Something about the links changed; this is all of them.
    Links(Links),
    Neighbour(Neighbour),
    /// Addresses, rules, routes or the nft table may not be what they were.
    Drift,
}

/// An entry of the neighbour table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    pub link: IfName,
    pub address: IpAddr,
    /// `None` while it does not resolve.
    pub mac: Option<[u8; 6]>,
    /// It answered just now (`NUD_REACHABLE`), and is not merely remembered.
    pub reachable: bool,
}

/// Cancelling `next` loses nothing.
#[derive(Debug)]
pub struct Watch {
    route: Listener,
    nftables: Listener,
    asker: Rtnl,
    devices: Devices,
    links: Links,
    table: Table,
    /// Heard and not digested.
    news: News,
    waiting: VecDeque<Change>,
}

impl Watch {
    /// The first change it yields is the links as they are.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            route: Listener::open(NETLINK_ROUTE, &ROUTE_GROUPS, BUFFER)?.without_questions()?,
            nftables: Listener::open(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES], BUFFER)?,
            asker: Rtnl::open()?,
            devices: Devices::default(),
            links: Links::default(),
            table: Table::default(),
            news: News { links: true, ..News::default() },
            waiting: VecDeque::new(),
        })
    }

    pub async fn next(&mut self) -> io::Result<Change> {
        loop {
            if let Some(change) = self.waiting.pop_front() {
                return Ok(change);
            }
            if self.news == News::default() {
                let (first, from_route) = tokio::select! {
                    heard = self.route.next() => (heard?, true),
                    heard = self.nftables.next() => (heard?, false),
                };
                self.news.hear(first, from_route);
            }
            // A burst (a table of routes that goes, a large nft transaction) is one change.
            while let Some(heard) = self.route.pending()? {
                self.news.hear(heard, true);
            }
            while let Some(heard) = self.nftables.pending()? {
                self.news.hear(heard, false);
            }
            self.digest().await?;
        }
    }

    /// Takes the news when all that had to be asked is answered.
    async fn digest(&mut self) -> io::Result<()> {
        let anew = self.news.overrun;
        let mut links = None;
        if self.news.links || anew {
            self.table = Table::read(&mut self.asker).await?;
            links = Some(self.table.facts(&mut self.devices)).filter(|links| *links != self.links);
        }
        if anew {
            let question = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
            self.news.neighbours = self.asker.dump(question).await?;
        }
        let news = mem::take(&mut self.news);
        if let Some(links) = links {
            self.links = links.clone();
            self.waiting.push_back(Change::Links(links));
        }
        let told = news.neighbours.iter().filter_map(|message| neighbour(message, &self.table));
        self.waiting.extend(told.map(Change::Neighbour));
        if news.drift || anew {
            self.waiting.push_back(Change::Drift);
        }
        Ok(())
    }
}

/// Asks neighbours to show that they are there. The answers come as [`Change::Neighbour`].
#[derive(Debug, Default)]
pub struct Asker {
    /// Opened at the first question.
    socket: Option<Socket>,
}

impl Asker {
    /// `link` is its index. Never waits.
    pub fn reconfirm(&mut self, link: u32, address: IpAddr) -> io::Result<()> {
        let mut entry = NeighbourMessage::default();
        entry.header.family = af(Family::of(address)).into();
        entry.header.ifindex = link;
        entry.header.state = NeighbourState::Probe;
        entry.attributes.push(NeighbourAttribute::Destination(address.into()));
        let socket = match &mut self.socket {
            Some(socket) => socket,
            none => none.insert(Socket::open(NETLINK_ROUTE)?),
        };
        // An entry that has a MAC is asked by unicast …
        if socket.tell(new_neighbour(NLM_F_REPLACE, &entry)).is_err() {
            // … and one that has none, or is not there, is resolved.
            entry.header.state = NeighbourState::None;
            entry.header.flags = NeighbourFlags::Use;
            socket.tell(new_neighbour(NLM_F_CREATE | NLM_F_REPLACE, &entry))?;
        }
        Ok(())
    }
}

fn new_neighbour(flags: u16, entry: &NeighbourMessage) -> Message {
    let mut bytes = vec![0; entry.buffer_len()];
    entry.emit(&mut bytes);
    Message::new(RTM_NEWNEIGH, flags, &bytes)
}

/// What a burst of messages amounts to.
#[derive(Debug, Default, PartialEq, Eq)]
struct News {
    links: bool,
    drift: bool,
    overrun: bool,
    neighbours: Vec<RouteNetlinkMessage>,
}

impl News {
    fn hear(&mut self, heard: Heard, from_route: bool) {
        let messages = match heard {
            Heard::Messages(messages) => messages,
            Heard::Overrun => {
                self.overrun = true;
                return;
            }
        };
        for message in messages {
            match message.kind {
                _ if !from_route => self.drift = true,
                RTM_NEWLINK | RTM_DELLINK => self.links = true,
                RTM_NEWADDR | RTM_DELADDR | RTM_NEWROUTE | RTM_DELROUTE | RTM_NEWRULE | RTM_DELRULE
                | RTM_NEWNETCONF => {
                    self.drift = true;
                }
                RTM_NEWNEIGH | RTM_DELNEIGH => {
                    self.neighbours.extend(RouteNetlinkMessage::parse_with_param(&message.body, message.kind));
                }
                _ => {}
            }
        }
        // Links of ours can be changed by others too.
        self.drift |= self.links;
    }
}

fn neighbour(message: &RouteNetlinkMessage, links: &Table) -> Option<Neighbour> {
    let there = matches!(message, RouteNetlinkMessage::NewNeighbour(_));
    let (RouteNetlinkMessage::NewNeighbour(entry) | RouteNetlinkMessage::DelNeighbour(entry)) = message else {
        return None;
    };
    let state = u16::from(entry.header.state);
    let address = match find!(entry.attributes, NeighbourAttribute::Destination)? {
        NeighbourAddress::Inet(address) => IpAddr::V4(*address),
        NeighbourAddress::Inet6(address) => IpAddr::V6(*address),
        NeighbourAddress::Other(_) | _ => return None,
    };
    let mac = find!(entry.attributes, NeighbourAttribute::LinkLayerAddress).filter(|_| there && state & NUD_VALID != 0);
    Some(Neighbour {
        link: links.name(entry.header.ifindex)?,
        address,
        mac: mac.and_then(|mac| mac.as_slice().try_into().ok()),
        reachable: there && state & NUD_REACHABLE != 0,
    })
}

/// Links, neighbours, and for both families addresses, routes, rules and what of the settings below `/proc/sys/net` is
/// told: forwarding and `rp_filter`.
const ROUTE_GROUPS: [u32; 10] = [1, 3, 5, 7, 8, 9, 11, 19, 24, 25];
const NFNLGRP_NFTABLES: u32 = 7;
const BUFFER: usize = 1 << 20;
/// Reachable, stale, delay, probe, noarp, permanent.
const NUD_VALID: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80;
