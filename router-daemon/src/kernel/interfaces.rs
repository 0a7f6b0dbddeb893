//! What the links have carried and whom they see beside them, for people: nothing here is on the path of a decision.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use config::units::IfName;
use nix::libc::{
    IFLA_IFNAME, IFLA_STATS64, NUD_FAILED, NUD_INCOMPLETE, NUD_NOARP, NUD_NONE, RTM_GETLINK, RTM_GETNEIGH,
};

use super::netlink::{Message, Received, Socket, ne32};
use crate::counters::{Count, LinkCount};

/// Every link of the namespace. `socket` speaks with the routing side of the kernel.
pub(crate) fn links(socket: &mut Socket) -> io::Result<BTreeMap<IfName, LinkCount>> {
    let (mut links, mut names) = (BTreeMap::new(), BTreeMap::new());
    // Numbers that never stand still: a dump that mixes two moments does no harm.
    socket.dump_into(Message::new(RTM_GETLINK, 0, &[0; IFINFOMSG]), |message| {
        if let Some((index, name, count)) = link(&message) {
            names.insert(index, name.clone());
            links.insert(name, count);
        }
    })?;
    socket.dump_into(Message::new(RTM_GETNEIGH, 0, &[0; NDMSG]), |message| {
        if let Some(count) = neighbour(&message).and_then(|index| links.get_mut(names.get(&index)?)) {
            count.neighbours += 1;
        }
    })?;
    for (index, name) in &names {
        if let Some(count) = links.get_mut(name) {
            count.speed_megabits = speed(Path::new("/sys/class/net"), name, *index);
        }
    }
    Ok(links)
}

fn link(message: &Received) -> Option<(u32, IfName, LinkCount)> {
    let attributes = message.attributes(IFINFOMSG);
    let index = ne32(message.body.get(4..8)?);
    let flags = ne32(message.body.get(8..12)?);
    let numbers = attributes.get(IFLA_STATS64).unwrap_or_default();
    let number = |place: usize| {
        let bytes = numbers.get(place * 8..place * 8 + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u64::from_ne_bytes)
    };
    // The order of `struct rtnl_link_stats64`.
    let count = LinkCount {
        up: flags & IFF_UP != 0,
        carrier: flags & IFF_LOWER_UP != 0,
        speed_megabits: None,
        received: Count { packets: number(0), bytes: number(2) },
        sent: Count { packets: number(1), bytes: number(3) },
        receive_errors: number(4),
        send_errors: number(5),
        receive_drops: number(6),
        send_drops: number(7),
        neighbours: 0,
    };
    Some((index, attributes.text(IFLA_IFNAME)?.parse().ok()?, count))
}

/// The link of an entry that names somebody who answered at some time.
fn neighbour(message: &Received) -> Option<u32> {
    let state = u16::from_ne_bytes(message.body.get(8..10)?.try_into().ok()?);
    let nobody = state & (NUD_INCOMPLETE | NUD_FAILED | NUD_NOARP) != 0 || state == NUD_NONE;
    (!nobody).then(|| ne32(message.body.get(4..8).unwrap_or(&[0; 4])))
}

/// As the driver tells it. In a network namespace `/sys` may be the one of another: the same name is then another link.
fn speed(sys: &Path, name: &IfName, index: u32) -> Option<u32> {
    let directory = sys.join(name.as_str());
    let same = fs::read_to_string(directory.join("ifindex")).is_ok_and(|text| text.trim() == index.to_string());
    let text = same.then(|| fs::read_to_string(directory.join("speed")).ok())??;
    // Unknown is -1.
    text.trim().parse().ok()
}

const IFINFOMSG: usize = 16;
const NDMSG: usize = 12;
const IFF_UP: u32 = 1;
const IFF_LOWER_UP: u32 = 1 << 16;

#[cfg(test)]
mod tests {
    use super::super::netlink::NETLINK_ROUTE;
    use super::*;

    #[test]
    fn the_loopback_is_up_and_has_sent_what_it_received() {
        let links = links(&mut Socket::open(NETLINK_ROUTE).unwrap()).unwrap();
        let lo = &links[&"lo".parse().unwrap()];
        assert!(lo.up && lo.carrier, "{lo:?}");
        assert_eq!(lo.received, lo.sent);
    }

    #[test]
    fn the_speed_is_that_of_the_same_link() {
        let sys = tempfile::tempdir().unwrap();
        let eth0 = sys.path().join("eth0");
        fs::create_dir(&eth0).unwrap();
        fs::write(eth0.join("ifindex"), "7\n").unwrap();
        fs::write(eth0.join("speed"), "2500\n").unwrap();
        let name = "eth0".parse().unwrap();
        assert_eq!(speed(sys.path(), &name, 7), Some(2500));
        assert_eq!(speed(sys.path(), &name, 8), None);
        fs::write(eth0.join("speed"), "-1\n").unwrap();
        assert_eq!(speed(sys.path(), &name, 7), None);
    }
}
