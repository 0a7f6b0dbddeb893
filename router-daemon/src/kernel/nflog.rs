//! The packets our ruleset logs, as the kernel hands them up.

use std::collections::VecDeque;
use std::io;

use config::units::IfName;
use mwan::state::NFLOG_GROUP;
use nix::net::if_::if_indextoname;

use super::netlink::{Heard, Listener, Message, NETLINK_NETFILTER, Received};
use crate::event_log::Logged;

/// Cancelling `next` loses nothing.
#[derive(Debug)]
pub struct PacketLog {
    listener: Listener,
    waiting: VecDeque<Logged>,
    overruns: u64,
}

impl PacketLog {
    /// There is one listener per group and namespace.
    pub fn open() -> io::Result<Self> {
        let listener = Listener::open(NETLINK_NETFILTER, &[], BUFFER)?;
        let config = |attribute, payload: &[u8]| message(NFULNL_MSG_CONFIG).attr(attribute, payload);
        let mut mode = COPIED.to_be_bytes().to_vec();
        mode.extend([NFULNL_COPY_PACKET, 0]);
        listener.ask(config(NFULA_CFG_CMD, &[NFULNL_CFG_CMD_BIND]))?;
        listener.ask(config(NFULA_CFG_MODE, &mode))?;
        // Handed up after a tenth of a second at the latest: somebody may be watching.
        listener.ask(config(NFULA_CFG_TIMEOUT, &10_u32.to_be_bytes()))?;
        Ok(Self { listener, waiting: VecDeque::new(), overruns: 0 })
    }

    pub async fn next(&mut self) -> io::Result<Logged> {
        loop {
            if let Some(logged) = self.waiting.pop_front() {
                return Ok(logged);
            }
            match self.listener.next().await? {
                Heard::Messages(messages) => self.waiting.extend(messages.iter().filter_map(logged)),
                Heard::Overrun => self.overruns += 1,
            }
        }
    }

    /// How often the kernel had more packets than we took. Counters are exact all the same.
    pub fn overruns(&self) -> u64 {
        self.overruns
    }
}

fn logged(message: &Received) -> Option<Logged> {
    if message.kind != NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_PACKET {
        return None;
    }
    let attributes = message.attributes(NFGENMSG);
    Some(Logged {
        prefix: attributes.text(NFULA_PREFIX)?.to_owned(),
        in_interface: attributes.be32(NFULA_IFINDEX_INDEV).and_then(link),
        out_interface: attributes.be32(NFULA_IFINDEX_OUTDEV).and_then(link),
        payload: attributes.get(NFULA_PAYLOAD).unwrap_or_default().to_vec(),
    })
}

fn link(index: u32) -> Option<IfName> {
    if_indextoname(index).ok()?.to_str().ok()?.parse().ok()
}

fn message(kind: u16) -> Message {
    let [high, low] = NFLOG_GROUP.to_be_bytes();
    Message::new(NFNL_SUBSYS_ULOG << 8 | kind, 0, &[0, 0, high, low])
}

/// Bytes of each packet: the headers, and enough for an ICMP error's quotation.
const COPIED: u32 = 128;
const BUFFER: usize = 2 << 20;
const NFGENMSG: usize = 4;
const NFNL_SUBSYS_ULOG: u16 = 4;
const NFULNL_MSG_PACKET: u16 = 0;
const NFULNL_MSG_CONFIG: u16 = 1;
const NFULA_CFG_CMD: u16 = 1;
const NFULA_CFG_MODE: u16 = 2;
const NFULA_CFG_TIMEOUT: u16 = 4;
const NFULNL_CFG_CMD_BIND: u8 = 1;
const NFULNL_COPY_PACKET: u8 = 2;
const NFULA_IFINDEX_INDEV: u16 = 4;
const NFULA_IFINDEX_OUTDEV: u16 = 5;
const NFULA_PAYLOAD: u16 = 9;
const NFULA_PREFIX: u16 = 10;
