use std::collections::BTreeMap;
use std::sync::Arc;

use abi::Flow;
use config::units::WanId;
use ebpf::MapError;
use proptest::prelude::*;

use super::*;
use crate::counters::Count;
use crate::fixture;

#[test]
fn a_masqueraded_flow_gets_the_line_outwards_and_the_host_inwards() {
    let [out, back] = entries(&outward(), &topology()).unwrap();
    assert_eq!(out.key, Key::of(&outward().original).unwrap());
    assert_eq!((out.flow.in_port, out.flow.in_vlan, out.flow.in_mac), (3, 50, mac(20)));
    assert_eq!((out.flow.out_port, out.flow.out_vlan, out.flow.mtu), (1, 0, 1400));
    assert_eq!((out.flow.source_mac, out.flow.destination_mac), (mac(1), mac(99)));
    assert_eq!((out.flow.rewrite, out.flow.flags), (Rewrite::Source as u8, Flow::OUTWARD));
    assert_eq!((&out.flow.address[..4], out.flow.port), (&[203, 0, 113, 2][..], 40_001_u16.to_be_bytes()));
    assert_eq!(out.flow.slot, abi::slot(1, false));

    assert_eq!(back.key, Key::of(&outward().reply).unwrap());
    assert_eq!((back.flow.in_port, back.flow.in_vlan, back.flow.in_mac), (1, 0, mac(1)));
    assert_eq!((back.flow.out_port, back.flow.out_vlan, back.flow.mtu), (3, 50, 1500));
    assert_eq!((back.flow.source_mac, back.flow.destination_mac), (mac(20), mac(7)));
    assert_eq!((back.flow.rewrite, back.flow.flags), (Rewrite::Destination as u8, 0));
    assert_eq!((&back.flow.address[..4], back.flow.port), (&[10, 10, 50, 7][..], 5000_u16.to_be_bytes()));
    assert_eq!(back.flow.slot, abi::slot(1, false));
}

#[test]
fn between_vlans_nothing_is_rewritten() {
    let [there, back] = entries(&between(), &topology()).unwrap();
    for entry in [there, back] {
        assert_eq!((entry.flow.rewrite, entry.flow.flags, entry.flow.slot), (0, 0, 0));
        assert_eq!((entry.flow.ip_delta, entry.flow.l4_delta), (0, 0));
    }
    assert_eq!((there.flow.out_port, there.flow.out_vlan), (4, 0));
    assert_eq!((back.flow.out_port, back.flow.out_vlan), (3, 50));
}

#[test]
fn what_comes_in_by_a_line_to_a_host_behind_it_is_found_both_ways() {
    let out = outward();
    let tracked = Tracked { original: out.reply, reply: out.original, ..out };
    let [inward, outward] = entries(&tracked, &topology()).unwrap();
    assert_eq!((inward.flow.rewrite, outward.flow.rewrite), (Rewrite::Destination as u8, Rewrite::Source as u8));
    assert_eq!((inward.flow.flags, outward.flow.flags), (0, Flow::OUTWARD));
}

/// Every condition, one at a time.
#[test]
fn what_is_not_sure_is_left_to_the_kernel() {
    let flow = outward();
    let cases: &[(&str, &Spoil)] = &[
        ("not assured", &|flow, _| flow.status &= !ASSURED),
        ("dying", &|flow, _| flow.status |= 1 << 9),
        ("a helper by status", &|flow, _| flow.status |= 1 << 13),
        ("a helper", &|flow, _| flow.helped = true),
        ("in a zone", &|flow, _| flow.zoned = true),
        ("sequence numbers adjusted", &|flow, _| flow.status |= 1 << 6),
        ("closing", &|flow, _| flow.tcp_state = Some(4)),
        ("of unknown state", &|flow, _| flow.tcp_state = None),
        ("ICMP", &|flow, _| flow.original.protocol = 1),
        ("without a line", &|flow, _| flow.mark = Mark(0)),
        ("of another line", &|flow, _| flow.mark = WanId::new(9).unwrap().mark()),
        ("to the router", &|flow, _| flow.reply.source = ip("10.10.60.1")),
        ("from the router", &|flow, _| flow.original.source = ip("10.10.50.1")),
        ("to a neighbour of the line", &|flow, _| flow.reply.source = ip("203.0.113.9")),
        ("to many", &|flow, _| flow.reply.source = ip("239.1.1.1")),
        ("link-local", &|flow, _| flow.original.source = ip("169.254.1.1")),
        ("both ends rewritten", &|flow, _| flow.original.destination = ip("203.0.113.2")),
        ("of two families", &|flow, _| flow.reply.destination = ip("2001:db8::1")),
        ("from an unknown host", &|flow, _| flow.original.source = ip("10.10.50.8")),
        ("the MAC is behind no port", &|_, there| there.forwarding.clear()),
        ("the port is not attached", &|_, there| there.ports.clear()),
        ("the gateway has no MAC", &|_, there| there.neighbours.retain(|(link, _), _| *link != 1)),
        ("the line is down", &|_, there| there.lines.clear()),
        ("the VLAN is not there", &|_, there| there.lans.clear()),
        ("two VLANs claim the host", &|_, there| there.lans[1].nets = there.lans[0].nets.clone()),
    ];
    assert!(entries(&flow, &topology()).is_some());
    for (what, spoil) in cases {
        let (mut flow, mut topology) = (flow, topology());
        spoil(&mut flow, &mut topology);
        assert_eq!(entries(&flow, &topology), None, "{what}");
    }
}

#[test]
fn nat_between_vlans_and_a_vlan_with_itself_are_left_to_the_kernel() {
    let mut translated = between();
    translated.reply.destination = ip("10.10.60.9");
    assert_eq!(entries(&translated, &topology()), None);
    let mut same = between();
    (same.original.destination, same.reply.source) = (ip("10.10.50.7"), ip("10.10.50.7"));
    assert_eq!(entries(&same, &topology()), None);
}

#[test]
fn the_topology_is_made_of_config_and_links() {
    let link = |index, name: &str, master, tagged| Link {
        index,
        name: name.to_owned(),
        works: true,
        mac: Some(mac(u8::try_from(index).unwrap())),
        mtu: 1500,
        master,
        tagged,
    };
    let config = fixture::config();
    let vlan = config.vlans.values().next().unwrap();
    let wan = config.wans.values().next().unwrap();
    let mut links = vec![
        link(1, wan.interface.as_str(), None, None),
        link(3, "trunk", None, None),
        link(4, "plain", Some(20), None),
        link(5, "trunk.50", Some(20), Some((3, 50))),
        link(6, "elsewhere", Some(20), None),
        link(20, vlan.interface.as_str(), None, None),
    ];
    let topology = Topology::new(&config, &links, [1, 3, 4].into());
    assert_eq!(topology.lines.keys().copied().collect::<Vec<_>>(), [wan.id]);
    assert_eq!(topology.lines[&wan.id].port, 1);
    assert_eq!(topology.lans.iter().map(|lan| lan.bridge).collect::<Vec<_>>(), [20]);
    let ports = BTreeMap::from([(4, (4, 0)), (5, (3, 50))]);
    assert_eq!(
        topology.ports.iter().map(|(at, port)| (*at, (port.port, port.vlan))).collect::<BTreeMap<_, _>>(),
        ports
    );
    assert!(topology.own.contains(&vlan.addresses[0].addr()));

    links[0].works = false;
    assert!(Topology::new(&config, &links, [1, 3, 4].into()).lines.is_empty());
}

#[test]
fn entries_live_as_long_as_the_flow() {
    let mut site = Site::default();
    site.learn(outward());
    assert_eq!((site.cache.len(), site.flows()), (2, 1));
    // An event that tells nothing of TCP changes nothing.
    site.learn(Tracked { tcp_state: None, ..outward() });
    assert_eq!(site.cache.len(), 2);
    // That of an earlier flow of the same name comes late.
    site.book.forget(&outward().original, 1, &mut site.cache).unwrap();
    assert_eq!(site.cache.len(), 2);
    site.book.forget(&outward().original, 7, &mut site.cache).unwrap();
    assert_eq!((site.cache.len(), site.flows(), site.book.len()), (0, 0, 0));
}

#[test]
fn a_connection_that_closes_has_no_entries() {
    let mut site = Site::default();
    site.learn(outward());
    site.learn(Tracked { tcp_state: Some(4), ..outward() });
    assert_eq!((site.cache.len(), site.book.len()), (0, 0));
}

#[test]
fn entries_follow_the_macs() {
    let mut site = Site::default();
    site.learn(outward());
    site.topology.neighbours.insert((20, ip("10.10.50.7")), mac(8));
    site.review();
    assert_eq!(site.cache.len(), 0, "behind no known port");
    site.topology.forwarding.insert((20, mac(8)), 4);
    site.review();
    assert_eq!(site.cache.len(), 2);
    assert_eq!(site.entry(&outward().reply).unwrap().destination_mac, mac(8));
}

#[test]
fn a_bump_is_answered_only_by_a_listing_begun_since() {
    let mut site = Site::default();
    site.learn(outward());
    site.generations = Arc::new(BTreeMap::from([(abi::slot(1, false), 6)]));
    site.review();
    assert_eq!(site.entry(&outward().original).unwrap().generation, 5);
    site.book.begin_listing();
    site.list(outward());
    assert_eq!(site.book.end_listing(), []);
    assert_eq!(site.entry(&outward().original).unwrap().generation, 6);
}

#[test]
fn a_closed_class_gets_no_entries() {
    let mut site = Site { closed: outward().class(), ..Site::default() };
    site.learn(outward());
    assert_eq!(site.cache.len(), 0);
    site.closed = None;
    site.review();
    assert_eq!(site.cache.len(), 2);
    site.closed = outward().class();
    site.review();
    assert_eq!(site.cache.len(), 0);
}

#[test]
fn a_listing_ends_what_it_does_not_have_and_revives_nothing() {
    let mut site = Site::default();
    site.learn(outward());
    site.learn(between());
    site.book.begin_listing();
    site.book.forget(&between().original, 7, &mut site.cache).unwrap();
    site.list(between());
    let missing = site.book.end_listing();
    assert_eq!(missing, [outward().original]);
    assert_eq!(site.cache.len(), 2);
    site.book.end(&missing[0], &mut site.cache).unwrap();
    assert_eq!((site.cache.len(), site.book.len()), (0, 0));
}

#[test]
fn what_entries_carried_is_counted_once() {
    let mut site = Site::default();
    site.learn(outward());
    let tuple = outward().original;
    assert_eq!(site.book.count(&tuple, &mut site.cache).unwrap(), None);
    site.carry(&tuple, 3);
    site.carry(&outward().reply, 2);
    assert_eq!(site.book.count(&tuple, &mut site.cache).unwrap(), Some(outward()));
    assert_eq!(site.book.count(&tuple, &mut site.cache).unwrap(), None);
    site.carry(&tuple, 1);
    site.book.end(&tuple, &mut site.cache).unwrap();
    let carried = site.book.counts()[&(WanId::new(1), Family::V4)];
    let count = |packets| Count { packets, bytes: packets * 100 };
    assert_eq!(carried, Carried { flows: 0, sent: count(4), received: count(2) });
}

#[test]
fn an_entry_that_gave_way_is_forgotten_and_a_listing_puts_it_in_again() {
    let mut site = Site::default();
    site.learn(outward());
    site.cache.0.remove(&Key::of(&outward().reply).unwrap());
    assert_eq!(site.book.count(&outward().original, &mut site.cache).unwrap(), None);
    assert_eq!((site.cache.len(), site.book.len(), site.flows()), (0, 0, 0));
    site.book.begin_listing();
    site.list(outward());
    assert_eq!(site.book.end_listing(), []);
    assert_eq!((site.cache.len(), site.book.len(), site.flows()), (2, 1, 1));
}

proptest! {
    /// The deltas give what a full computation over the rewritten packet gives.
    #[test]
    fn the_deltas_are_those_of_a_full_computation(
        v6 in any::<bool>(),
        udp in any::<bool>(),
        inward in any::<bool>(),
        host in any::<[u8; 8]>(),
        seen in any::<[u8; 8]>(),
        remote in any::<[u8; 8]>(),
        ports in any::<[u16; 3]>(),
        payload in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let address = |prefix: [u8; 8], end: [u8; 8]| if v6 {
            IpAddr::from(<[u8; 16]>::try_from([prefix, end].concat()).unwrap())
        } else {
            IpAddr::from([prefix[0], prefix[1], end[0], end[1]])
        };
        let place = |line: Option<u8>| Place {
            spot: Spot { port: 1, vlan: 0, mac: mac(1), peer: mac(2), mtu: 1500 },
            line: line.and_then(WanId::new),
        };
        let (host, seen, remote) = (address([10; 8], host), address([32; 8], seen), address([33; 8], remote));
        let protocol = if udp { UDP } else { TCP };
        let tuple = |source, destination, source_port, destination_port| {
            Tuple { source, destination, protocol, source_port, destination_port }
        };
        let out = tuple(host, remote, ports[0], ports[1]);
        let back = tuple(remote, seen, ports[1], ports[2]);
        let (lan, line) = (place(None), place(Some(1)));
        let (comes, leaves, made) = if inward {
            (back, tuple(remote, host, ports[1], ports[0]), entry(&back, &out, &line, &lan, 2))
        } else {
            (out, tuple(seen, remote, ports[2], ports[1]), entry(&out, &back, &lan, &line, 2))
        };
        let made = made.unwrap();
        let sum = |tuple: &Tuple, whole: bool| {
            let ends = [bytes(tuple.source), bytes(tuple.destination)].concat();
            let ports = [tuple.source_port, tuple.destination_port].map(u16::to_be_bytes).concat();
            let rest = if whole { [&ports[..], &payload].concat() } else { Vec::new() };
            checksum_of(&[&ends[..], &[0, protocol, 1, 2], &rest].concat())
        };
        let flow = made.flow;
        prop_assert_eq!(checksum::apply(sum(&comes, true), flow.l4_delta), sum(&leaves, true));
        if v6 {
            prop_assert_eq!(flow.ip_delta, 0);
        } else {
            prop_assert_eq!(checksum::apply(sum(&comes, false), flow.ip_delta), sum(&leaves, false));
        }
    }
}

/// RFC 1071, as it lies in the packet.
fn checksum_of(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u64::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)])));
    let mut sum: u64 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(0xffff - sum).unwrap().to_be()
}

fn outward() -> Tracked {
    let tuple = |source, destination, source_port, destination_port| Tuple {
        source: ip(source),
        destination: ip(destination),
        protocol: TCP,
        source_port,
        destination_port,
    };
    Tracked {
        id: 7,
        original: tuple("10.10.50.7", "198.51.100.1", 5000, 443),
        reply: tuple("198.51.100.1", "203.0.113.2", 443, 40_001),
        mark: WanId::new(1).unwrap().mark(),
        status: ASSURED | 1 << 1 | 1 << 3 | 1 << 4,
        tcp_state: Some(ESTABLISHED),
        helped: false,
        zoned: false,
    }
}

fn between() -> Tracked {
    let mut flow = Tracked { mark: Mark(0), ..outward() };
    (flow.original.destination, flow.reply.source) = (ip("10.10.60.3"), ip("10.10.60.3"));
    (flow.reply.destination, flow.reply.destination_port) = (flow.original.source, flow.original.source_port);
    flow
}

/// Two lines and two VLANs: one on a trunk, one on a port of its own.
fn topology() -> Topology {
    let line = Line {
        port: 1,
        mac: mac(1),
        mtu: 1400,
        gateways: BTreeMap::from([(Family::V4, ip("203.0.113.1"))]),
        nets: vec!["203.0.113.0/24".parse().unwrap()],
    };
    let lan = |bridge, net: &str| Lan {
        bridge,
        mac: mac(u8::try_from(bridge).unwrap()),
        mtu: 1500,
        nets: vec![net.parse().unwrap()],
    };
    Topology {
        lines: BTreeMap::from([(WanId::new(1).unwrap(), line)]),
        lans: vec![lan(20, "10.10.50.0/24"), lan(21, "10.10.60.0/24")],
        attached: [1, 3, 4].into(),
        ports: BTreeMap::from([(3, Port { port: 3, vlan: 50, mtu: 1500 }), (4, Port { port: 4, vlan: 0, mtu: 1500 })]),
        own: ["10.10.50.1", "10.10.60.1", "203.0.113.2"].map(ip).into(),
        neighbours: BTreeMap::from([
            ((1, ip("203.0.113.1")), mac(99)),
            ((20, ip("10.10.50.7")), mac(7)),
            ((21, ip("10.10.60.3")), mac(3)),
        ]),
        forwarding: BTreeMap::from([((20, mac(7)), 3), ((21, mac(3)), 4)]),
    }
}

type Spoil = dyn Fn(&mut Tracked, &mut Topology);

/// A book with what is around it.
struct Site {
    book: Book,
    cache: Table,
    topology: Topology,
    generations: Arc<BTreeMap<u32, u32>>,
    closed: Option<FlowClass>,
}

impl Default for Site {
    fn default() -> Self {
        Self {
            book: Book::default(),
            cache: Table::default(),
            topology: topology(),
            generations: Arc::new(BTreeMap::from([(0, 1), (abi::slot(1, false), 5)])),
            closed: None,
        }
    }
}

impl Site {
    fn with(&mut self, act: impl FnOnce(&mut Book, Sight<'_>, &mut Table)) {
        let closed = self.closed;
        let open = |class| Some(class) != closed;
        act(
            &mut self.book,
            Sight { topology: &self.topology, generations: &self.generations, open: &open },
            &mut self.cache,
        );
    }

    fn learn(&mut self, flow: Tracked) {
        self.with(|book, sight, cache| book.learn(flow, sight, cache).unwrap());
    }

    fn list(&mut self, flow: Tracked) {
        self.with(|book, sight, cache| book.list(flow, sight, cache).unwrap());
    }

    fn review(&mut self) {
        for tuple in self.book.tuples() {
            self.with(|book, sight, cache| book.review(&tuple, sight, cache).unwrap());
        }
    }

    fn carry(&mut self, tuple: &Tuple, packets: u64) {
        let flow = self.cache.0.get_mut(&Key::of(tuple).unwrap()).unwrap();
        flow.packets += packets;
        flow.bytes += packets * 100;
    }

    fn entry(&self, tuple: &Tuple) -> Option<Flow> {
        self.cache.get(&Key::of(tuple).unwrap()).unwrap()
    }

    fn flows(&self) -> u64 {
        self.book.counts().values().map(|carried| carried.flows).sum()
    }
}

#[derive(Default)]
struct Table(BTreeMap<Key, Flow>);

impl Table {
    fn len(&self) -> usize {
        self.0.len()
    }
}

impl Cache for Table {
    fn get(&self, key: &Key) -> Result<Option<Flow>, MapError> {
        Ok(self.0.get(key).copied())
    }

    fn set(&mut self, entry: &Entry) -> Result<(), MapError> {
        self.0.insert(entry.key, entry.flow);
        Ok(())
    }

    fn remove(&mut self, key: &Key) -> Result<(), MapError> {
        self.0.remove(key);
        Ok(())
    }
}

fn mac(end: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, end]
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
