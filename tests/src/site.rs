//! The site the lab plays: an operator's file with its ports and lines replaced by those of the lab, and what of
//! it the lab has to build. Everything else in the file (VLANs, matrix, policies) stays as it was written.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, Value};

/// The addresses that the lab's lines are probed with, beyond every ISP.
pub const TARGETS4: [Ipv4Addr; 3] =
    [Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(198, 51, 100, 2), Ipv4Addr::new(198, 51, 100, 3)];
pub const TARGETS6: [Ipv6Addr; 3] = [target6(1), target6(2), target6(3)];

const fn target6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x100, 0, 0, 0, 0, last)
}

/// How many lines a lab can have.
pub const WANS: RangeInclusive<u8> = 1..=16;

/// A site file for the lab, and what has to be there for it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Site {
    pub text: String,
    pub wans: Vec<Wan>,
    pub vlans: Vec<Vlan>,
}

/// A line as the router and its ISP number it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wan {
    /// From 1: `wan1` in the router, `isp1` beyond it.
    pub number: u8,
    /// What the site file calls it.
    pub name: String,
    /// The address the router is seen from.
    pub router4: Ipv4Net,
    pub router6: Ipv6Net,
    pub gateway4: Ipv4Addr,
    pub gateway6: Ipv6Addr,
}

/// A VLAN and the host that stands for all hosts in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vlan {
    pub name: String,
    pub id: u16,
    /// The router's addresses.
    pub gateways: Vec<IpNet>,
    /// The addresses of the hosts, as the file documents them.
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
    /// What the namespace answers at: every documented address, in IPv6 also the same suffix.
    pub addresses: Vec<IpNet>,
}

impl Vlan {
    /// The port of the router, and the second half of the namespace's name: `v10`.
    pub fn port(&self) -> String {
        format!("v{}", self.id)
    }

    /// The first address of a family.
    pub fn address(&self, v6: bool) -> Option<IpAddr> {
        self.addresses.iter().map(IpNet::addr).find(|address| address.is_ipv6() == v6)
    }
}

impl Site {
    /// Takes an operator's file into the lab.
    pub fn derive(text: &str, wans: u8, same_gateway: bool) -> Result<Self> {
        if !WANS.contains(&wans) {
            bail!("a lab has {} to {} lines, not {wans}", WANS.start(), WANS.end());
        }
        let mut file: DocumentMut = text.parse().context("the site file is not TOML")?;
        let wans = lines(&mut file, wans, same_gateway)?;
        let vlans = segments(&mut file)?;
        file.remove("port");
        // The lab has one clock with the machine it is on.
        if let Some(ntp) = file.get_mut("ntp").and_then(Item::as_table_like_mut) {
            ntp.insert("set_clock", toml_edit::value(false));
        }
        Ok(Self { text: file.to_string(), wans, vlans })
    }

    /// The line whose router is seen from this address.
    pub fn wan_of(&self, seen: IpAddr) -> Option<&Wan> {
        self.wans.iter().find(|wan| match seen {
            IpAddr::V4(seen) => wan.router4.addr() == seen,
            IpAddr::V6(seen) => wan.router6.addr() == seen,
        })
    }
}

impl Wan {
    fn numbered(number: u8, name: String, same_gateway: bool) -> Result<Self> {
        let n = u16::from(number);
        // 2001:db8:ff01:: to 2001:db8:ff10::; with the same gateway the router is ::11 to ::26, as in IPv4.
        let prefix = |net: u16| move |host: u16| Ipv6Addr::new(0x2001, 0xdb8, 0xff00 + net, 0, 0, 0, 0, host);
        let decimal = |n: u16| (n / 10) * 16 + n % 10;
        let (router4, gateway4, router6, gateway6) = if same_gateway {
            let own = Ipv4Addr::new(100, 64, 0, 10 + number);
            let all = prefix(0);
            (own, Ipv4Addr::new(100, 64, 0, 1), all(decimal(10 + n)), Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1))
        } else {
            let own = Ipv4Addr::new(100, 64, number, 2);
            let net = prefix(n);
            (own, Ipv4Addr::new(100, 64, number, 1), net(2), net(1))
        };
        Ok(Self {
            number,
            name,
            router4: Ipv4Net::new(router4, 24)?,
            router6: Ipv6Net::new(router6, 64)?,
            gateway4,
            gateway6,
        })
    }
}

/// The same file without the programs that serve its VLANs: for tests of what their ports do when nobody listens there,
/// and of what routerd alone costs.
pub fn unserved(text: &str) -> Result<String> {
    let mut file: DocumentMut = text.parse().context("the site file is not TOML")?;
    for section in ["dhcp", "ra", "ntp"] {
        file.remove(section);
    }
    for (section, keys) in [("vlan", ["dhcp", "ra"].as_slice()), ("host", &["mac"])] {
        let Some(tables) = file.get_mut(section).and_then(Item::as_table_like_mut) else { continue };
        for (_, table) in tables.iter_mut() {
            for key in keys {
                table.as_table_like_mut().and_then(|table| table.remove(key));
            }
        }
    }
    Ok(file.to_string())
}

/// Makes the lines of the file those of the lab: as many as asked for, in the file's order, more if it has too few.
fn lines(file: &mut DocumentMut, count: u8, same_gateway: bool) -> Result<Vec<Wan>> {
    let tables = section(file, "wan")?;
    let written: Vec<String> = tables.iter().map(|(name, _)| name.to_owned()).collect();
    let mut names: Vec<String> = written.iter().take(usize::from(count)).cloned().collect();
    let gone: BTreeSet<String> = written.iter().skip(usize::from(count)).cloned().collect();
    let mut added = Vec::new();
    for number in 1..=count {
        let name = format!("wan{number}");
        if names.len() < usize::from(count) && !names.contains(&name) {
            added.push(name.clone());
            names.push(name);
        }
    }

    let mut wans = Vec::new();
    for (number, name) in (1..=count).zip(&names) {
        let wan = Wan::numbered(number, name.clone(), same_gateway)?;
        let table = tables.entry(name).or_insert_with(|| Item::Table(Table::new()));
        let table = table.as_table_like_mut().with_context(|| format!("[wan.{name}] is no table"))?;
        let kept = ["id", "weight", "mtu", "nat6", "input", "comment"];
        let other: Vec<_> = table.iter().map(|(key, _)| key.to_owned()).filter(|k| !kept.contains(&&**k)).collect();
        for key in other {
            table.remove(&key);
        }
        table.insert("interface", toml_edit::value(format!("wan{number}")));
        let addresses = Array::from_iter([wan.router4.to_string(), wan.router6.to_string()]);
        table.insert("addresses", toml_edit::value(addresses));
        table.insert("gateway", toml_edit::value(wan.gateway4.to_string()));
        table.insert("gateway6", toml_edit::value(wan.gateway6.to_string()));
        table.insert("probe", toml_edit::value(probe()));
        wans.push(wan);
    }
    for name in &gone {
        tables.remove(name);
    }

    let main =
        file.get("router").and_then(|router| router.get("default_policy")).and_then(Item::as_str).map(str::to_owned);
    if let Some(policies) = file.get_mut("policy").and_then(Item::as_table_like_mut) {
        for (name, policy) in policies.iter_mut() {
            let Some(members) = policy.get_mut("members").and_then(Item::as_array_mut) else { continue };
            members.retain(|member| member_wan(member).is_none_or(|wan| !gone.contains(wan)));
            if members.is_empty() {
                members.push(&names[0]);
            }
            if Some(name.get()) == main.as_deref() {
                for name in &added {
                    members.push(name);
                }
            }
        }
    }
    // An assertion about a line that the lab does not have says nothing about the lab.
    if let Some(asserts) = file.get_mut("assert").and_then(Item::as_array_of_tables_mut) {
        asserts.retain(|assert| {
            let that = assert.get("that").and_then(Item::as_str).unwrap_or_default();
            !that.split(|c: char| !(c.is_alphanumeric() || "-_.".contains(c))).any(|word| gone.contains(word))
                && (added.is_empty() || !that.contains("uses"))
        });
    }
    Ok(wans)
}

fn member_wan(member: &Value) -> Option<&str> {
    member.as_str().or_else(|| member.as_inline_table()?.get("wan")?.as_str())
}

/// Fast enough for a demonstration: a dead line is out after three probes of 100 ms, or of 500 on an emulated machine.
fn probe() -> InlineTable {
    let pace = format!("{}ms", crate::patience(Duration::from_millis(100)).as_millis());
    let pace = pace.as_str();
    let targets = TARGETS4.iter().map(ToString::to_string).chain(TARGETS6.iter().map(ToString::to_string));
    let mut probe = InlineTable::new();
    probe.insert("targets", targets.map(|address| format!("icmp {address}")).collect::<Array>().into());
    for (key, value) in [("interval", pace), ("timeout", pace), ("hold", "1s"), ("hold_max", "8s")] {
        probe.insert(key, value.into());
    }
    for key in ["fall", "rise"] {
        probe.insert(key, 3.into());
    }
    probe
}

/// Gives every VLAN its port in the lab, and an IPv6 subnet if it has none.
fn segments(file: &mut DocumentMut) -> Result<Vec<Vlan>> {
    let hosts = documented(file)?;
    let mut vlans = Vec::new();
    for (name, item) in section(file, "vlan")?.iter_mut() {
        let name = name.get().to_owned();
        let table = item.as_table_like_mut().with_context(|| format!("[vlan.{name}] is no table"))?;
        let id = table.get("id").and_then(Item::as_integer).and_then(|id| u16::try_from(id).ok());
        let id = id.with_context(|| format!("[vlan.{name}] has no id"))?;
        let mut gateways = Vec::new();
        for address in strings(table.get("addresses")) {
            gateways.push(address.parse::<IpNet>().with_context(|| format!("[vlan.{name}]: {address:?}"))?);
        }
        if !gateways.iter().any(|net| matches!(net, IpNet::V6(_))) {
            // fd10:10:30::/64 for VLAN 30, digit for digit.
            gateways.push(format!("fd10:10:{id}::1/64").parse()?);
            let addresses = gateways.iter().map(ToString::to_string);
            table.insert("addresses", toml_edit::value(addresses.collect::<Array>()));
        }
        for key in ["trunk", "native"] {
            table.remove(key);
        }
        table.insert("access", toml_edit::value(Array::from_iter([format!("v{id}")])));
        vlans.push(populate(name, id, gateways, &hosts));
    }
    Ok(vlans)
}

fn populate(name: String, id: u16, gateways: Vec<IpNet>, hosts: &BTreeMap<String, Vec<IpAddr>>) -> Vlan {
    let local = |address: &IpAddr| gateways.iter().find(|net| net.contains(address));
    let hosts: BTreeMap<_, Vec<_>> = hosts
        .iter()
        .map(|(host, addresses)| {
            let here = addresses.iter().filter(|address| local(address).is_some()).copied();
            (host.clone(), here.collect())
        })
        .filter(|(_, here): &(String, Vec<IpAddr>)| !here.is_empty())
        .collect();

    let mut addresses = Vec::new();
    let mut add = |address: IpAddr| {
        let prefix = gateways.iter().find(|net| net.contains(&address)).map(IpNet::prefix_len);
        if let Some(net) = prefix.and_then(|prefix| IpNet::new(address, prefix).ok())
            && !addresses.contains(&net)
            && gateways.iter().all(|own| own.addr() != address)
        {
            addresses.push(net);
        }
    };
    let mut documented: Vec<IpAddr> = hosts.values().flatten().copied().collect();
    // A VLAN without documented hosts gets one.
    let spare = gateways.iter().find_map(|net| match net {
        IpNet::V4(net) => net.hosts().nth(199).map(IpAddr::V4),
        IpNet::V6(_) => None,
    });
    if documented.is_empty() {
        documented.extend(spare);
    }
    documented.sort();
    for &address in &documented {
        add(address);
        if let IpAddr::V4(address) = address {
            for net in &gateways {
                if let IpNet::V6(net) = net {
                    add(IpAddr::V6(suffixed(*net, address)));
                }
            }
        }
    }
    Vlan { name, id, gateways, hosts, addresses }
}

/// `10.10.10.20` in `fd10:10:10::/64` is `fd10:10:10::20`, digit for digit.
fn suffixed(net: Ipv6Net, like: Ipv4Addr) -> Ipv6Addr {
    let last = u128::from(like.octets()[3]);
    let digits = ((last / 100) << 8) | ((last / 10 % 10) << 4) | (last % 10);
    Ipv6Addr::from_bits(net.network().to_bits() | digits)
}

/// Every host's addresses; of a range the first.
fn documented(file: &DocumentMut) -> Result<BTreeMap<String, Vec<IpAddr>>> {
    let mut hosts = BTreeMap::new();
    for (name, host) in file.get("host").and_then(Item::as_table_like).into_iter().flat_map(|table| table.iter()) {
        let mut addresses = Vec::new();
        for text in strings(host.get("address")).into_iter().chain(strings(host.get("addresses"))) {
            let first = text.split(['-', '/']).next().unwrap_or_default().trim();
            let address: IpAddr = first.parse().with_context(|| format!("[host.{name}]: {text:?}"))?;
            addresses.push(address);
        }
        hosts.insert(name.to_owned(), addresses);
    }
    Ok(hosts)
}

/// A string, or a list of them.
fn strings(item: Option<&Item>) -> Vec<&str> {
    match item.and_then(Item::as_value) {
        Some(Value::String(text)) => vec![text.value()],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        Some(_) | None => Vec::new(),
    }
}

fn section<'a>(file: &'a mut DocumentMut, key: &str) -> Result<&'a mut dyn toml_edit::TableLike> {
    file.get_mut(key).and_then(Item::as_table_like_mut).with_context(|| format!("the site file has no [{key}.NAME]"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = include_str!("../../config/examples/minimal.toml");

    #[test]
    fn the_minimal_site_gets_the_lines_of_the_lab() {
        let site = Site::derive(MINIMAL, 2, false).unwrap();
        assert_eq!(site.wans.len(), 2);
        assert_eq!(site.wans[1].router4.to_string(), "100.64.2.2/24");
        assert_eq!(site.wans[1].router6.to_string(), "2001:db8:ff02::2/64");
        assert_eq!(site.wan_of("100.64.2.2".parse().unwrap()).unwrap().name, "wan2");
        assert!(!site.text.contains("203.0.113"), "{}", site.text);
        assert!(
            site.text.contains("access    = [\"v10\"]") || site.text.contains("access = [\"v10\"]"),
            "{}",
            site.text
        );
    }

    #[test]
    fn an_unserved_site_runs_no_program_and_is_otherwise_the_same() {
        let whole = include_str!("../../config/examples/spectrum-site.toml");
        let parsed =
            |text: &str| config::parse("site.toml", text).unwrap_or_else(|problems| panic!("{problems}")).config;
        let (whole, unserved) = (parsed(whole), parsed(&unserved(whole).unwrap()));
        assert!(whole.dhcp.is_some() && whole.ra.is_some() && whole.ntp.is_some());
        assert!(unserved.dhcp.is_none() && unserved.ra.is_none() && unserved.ntp.is_none());
        assert_eq!(unserved.vlans.len(), whole.vlans.len());
        assert_eq!(unserved.cells.len(), whole.cells.len());
    }

    #[test]
    fn no_lab_sets_the_clock_of_its_machine() {
        let text = format!("{MINIMAL}\n[ntp]\nservers = [\"192.0.2.1\"]\nset_clock = true\n");
        let site = Site::derive(&text, 2, false).unwrap();
        assert!(!config::parse("site.toml", &site.text).unwrap().config.ntp.unwrap().set_clock);
    }

    #[test]
    fn hosts_are_where_the_file_documents_them() {
        let site = Site::derive(MINIMAL, 2, false).unwrap();
        let guests = site.vlans.iter().find(|vlan| vlan.name == "guests").unwrap();
        assert_eq!(guests.hosts["printer"], ["10.0.20.5".parse::<IpAddr>().unwrap()]);
        let addresses: Vec<_> = guests.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.20.5/24", "fd10:10:20::5/64"]);
        let office = site.vlans.iter().find(|vlan| vlan.name == "office").unwrap();
        assert_eq!(office.addresses[0].to_string(), "10.0.10.200/24");
    }

    #[test]
    fn lines_can_be_fewer_or_more_than_the_file_has() {
        let one = Site::derive(MINIMAL, 1, false).unwrap();
        assert!(!one.text.contains("wan2"), "{}", one.text);
        let six = Site::derive(MINIMAL, 6, false).unwrap();
        assert_eq!(six.wans.len(), 6);
        assert!(six.text.contains("\"wan6\"]"), "joins the main policy: {}", six.text);
        assert!(Site::derive(MINIMAL, 17, false).is_err());
    }

    #[test]
    fn what_the_lab_plays_is_a_site_that_routerd_takes() {
        for text in [MINIMAL, include_str!("../../config/examples/spectrum-site.toml")] {
            for wans in WANS {
                for same_gateway in [false, true] {
                    let site = Site::derive(text, wans, same_gateway).unwrap();
                    if let Err(problems) = config::parse("site.toml", &site.text) {
                        panic!("{wans} lines, same gateway {same_gateway}:\n{problems}");
                    }
                }
            }
        }
    }

    #[test]
    fn all_lines_can_have_the_same_gateway() {
        let site = Site::derive(MINIMAL, 16, true).unwrap();
        assert!(site.wans.iter().all(|wan| wan.gateway4 == Ipv4Addr::new(100, 64, 0, 1)));
        assert_eq!(site.wans[0].router6.to_string(), "2001:db8:ff00::11/64");
        assert_eq!(site.wans[15].router4.to_string(), "100.64.0.26/24");
        assert_eq!(site.wans[15].router6.to_string(), "2001:db8:ff00::26/64");
    }
}
