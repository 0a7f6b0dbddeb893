//! What the kernel tells unasked: links, neighbours, and hints that somebody changed what is ours.
//!
//! A hint says only "look again": our own changes cause it too. Idle, this costs nothing; nothing polls.

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;

use config::units::{Family, IfName};
use mwan::links::Links;

use super::links::{Devices, RTM_DELLINK, RTM_NEWLINK, Table};
use super::netlink::{
    Heard, Listener, Message, NETLINK_NETFILTER, NETLINK_ROUTE, NLM_F_CREATE, NLM_F_REPLACE, Received, Socket, ne32,
};
use super::routing::{
    RTM_DELADDR, RTM_DELROUTE, RTM_DELRULE, RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWRULE, af, family_of, ip, with_address,
};

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
    asker: Socket,
    devices: Devices,
    links: Links,
    table: Table,
    waiting: VecDeque<Change>,
}

impl Watch {
    /// The first change it yields is the links as they are.
    pub fn open() -> io::Result<Self> {
        let mut watch = Self {
            route: Listener::open(NETLINK_ROUTE, &ROUTE_GROUPS, BUFFER)?,
            nftables: Listener::open(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES], BUFFER)?,
            asker: Socket::open(NETLINK_ROUTE)?,
            devices: Devices::default(),
            links: Links::default(),
            table: Table::default(),
            waiting: VecDeque::new(),
        };
        watch.look_at_links()?;
        Ok(watch)
    }

    pub async fn next(&mut self) -> io::Result<Change> {
        loop {
            if let Some(change) = self.waiting.pop_front() {
                return Ok(change);
            }
            let (first, from_route) = tokio::select! {
                heard = self.route.next() => (heard?, true),
                heard = self.nftables.next() => (heard?, false),
            };
            let mut news = News::default();
            news.hear(first, from_route);
            // A burst (a table of routes that goes, a large nft transaction) is one change.
            while let Some(heard) = self.route.pending()? {
                news.hear(heard, true);
            }
            while let Some(heard) = self.nftables.pending()? {
                news.hear(heard, false);
            }
            self.digest(&news)?;
        }
    }

    fn digest(&mut self, news: &News) -> io::Result<()> {
        if news.links || news.overrun {
            self.look_at_links()?;
        }
        if news.overrun {
            let all = self.asker.dump(&Message::new(RTM_GETNEIGH, 0, &[0; NDMSG]))?;
            self.waiting
                .extend(all.iter().filter_map(|message| neighbour(message, &self.table)).map(Change::Neighbour));
        } else {
            let told = news.neighbours.iter().filter_map(|message| neighbour(message, &self.table));
            self.waiting.extend(told.map(Change::Neighbour));
        }
        if news.drift || news.overrun {
            self.waiting.push_back(Change::Drift);
        }
        Ok(())
    }

    fn look_at_links(&mut self) -> io::Result<()> {
        self.table = Table::read(&mut self.asker)?;
        let links = self.table.facts(&mut self.devices);
        if links != self.links {
            self.links = links.clone();
            self.waiting.push_back(Change::Links(links));
        }
        Ok(())
    }
}

/// Asks a neighbour to show that it is there. The answer comes as a [`Change::Neighbour`].
pub fn reconfirm(link: &IfName, address: IpAddr) -> io::Result<()> {
    let mut socket = Socket::open(NETLINK_ROUTE)?;
    let index = Table::read(&mut socket)?.index(link)?;
    // An entry that has a MAC is asked by unicast …
    let probe = neighbour_message(NLM_F_REPLACE, index, NUD_PROBE, 0, address);
    match socket.ask(probe) {
        Ok(_) => Ok(()),
        // … and one that has none, or is not there, is resolved.
        Err(_) => socket.ask(neighbour_message(NLM_F_CREATE | NLM_F_REPLACE, index, 0, NTF_USE, address)).map(drop),
    }
}

fn neighbour_message(flags: u16, index: u32, state: u16, ndm_flags: u8, address: IpAddr) -> Message {
    let mut header = [0; NDMSG];
    header[0] = af(Family::of(address));
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&state.to_ne_bytes());
    header[10] = ndm_flags;
    with_address(Message::new(RTM_NEWNEIGH, flags, &header), NDA_DST, address)
}

/// What a burst of messages amounts to.
#[derive(Debug, Default)]
struct News {
    links: bool,
    drift: bool,
    overrun: bool,
    neighbours: Vec<Received>,
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
                RTM_NEWADDR | RTM_DELADDR | RTM_NEWROUTE | RTM_DELROUTE | RTM_NEWRULE | RTM_DELRULE => {
                    self.drift = true;
                }
                RTM_NEWNEIGH | RTM_DELNEIGH => self.neighbours.push(message),
                _ => {}
            }
        }
        // Links of ours can be changed by others too.
        self.drift |= self.links;
    }
}

fn neighbour(message: &Received, links: &Table) -> Option<Neighbour> {
    let state = u16::from_ne_bytes(message.body.get(8..10)?.try_into().ok()?);
    family_of(*message.body.first()?)?;
    let attributes = message.attributes(NDMSG);
    let known = message.kind == RTM_NEWNEIGH && state & NUD_VALID != 0;
    Some(Neighbour {
        link: links.name(ne32(message.body.get(4..8)?))?,
        address: attributes.get(NDA_DST).and_then(ip)?,
        mac: attributes.get(NDA_LLADDR).filter(|_| known).and_then(|mac| mac.try_into().ok()),
        reachable: message.kind == RTM_NEWNEIGH && state & NUD_REACHABLE != 0,
    })
}

/// Links, neighbours, and for both families addresses, routes and rules.
const ROUTE_GROUPS: [u32; 8] = [1, 3, 5, 7, 8, 9, 11, 19];
const NFNLGRP_NFTABLES: u32 = 7;
const BUFFER: usize = 1 << 20;
const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
const NDMSG: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_REACHABLE: u16 = 0x02;
const NUD_PROBE: u16 = 0x10;
/// Reachable, stale, delay, probe, noarp, permanent.
const NUD_VALID: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80;
const NTF_USE: u8 = 0x01;
