//! Services every site may name without declaring them, each with where its ports are assigned. A `[service.NAME]`
//! in the file takes the place of one of these.

pub(crate) mod egress;

use crate::file::port_spec;
use crate::model::PortSet;

/// The ports of a built-in service.
pub(crate) fn service(name: &str) -> Option<PortSet> {
    let (_, specs, _) = SERVICES.iter().find(|(known, _, _)| *known == name)?;
    let mut ports = PortSet::default();
    for spec in *specs {
        ports.merge(&port_spec(spec).ok()?);
    }
    Some(ports)
}

pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    SERVICES.iter().map(|(name, _, _)| *name)
}

/// Name, ports, source. IANA is the service name and port number registry.
const SERVICES: &[(&str, &[&str], &str)] = &[
    ("dhcp", &["udp/67", "udp/547"], "RFC 2131 4.1; RFC 8415 7.2"),
    ("dns", &["udp/53", "tcp/53"], "RFC 1035 4.2"),
    ("dns-tls", &["tcp/853"], "RFC 7858 3.1"),
    ("ntp", &["udp/123"], "RFC 5905 7.2"),
    ("ssh", &["tcp/22"], "RFC 4253 4.1"),
    ("http", &["tcp/80"], "RFC 9110 4.2.1"),
    ("https", &["tcp/443", "udp/443"], "RFC 9110 4.2.2; RFC 9114 3.1"),
    ("ipsec", &["udp/500", "udp/4500", "proto/50"], "RFC 7296 2; RFC 3948 2.1; RFC 4303"),
    ("nfs", &["tcp/2049"], "RFC 7530 3.1"),
    ("smb", &["tcp/445"], "IANA microsoft-ds"),
    ("iscsi", &["tcp/3260"], "RFC 7143 4.2.7.1"),
    ("rdp", &["tcp/3389", "udp/3389"], "IANA ms-wbt-server"),
    ("snmp", &["udp/161"], "RFC 3417 3.2"),
    ("syslog", &["udp/514", "tcp/6514"], "RFC 5426 3.3; RFC 5425 4.1"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_readable() {
        for name in names() {
            assert!(service(name).is_some_and(|ports| !ports.is_empty()), "{name}");
        }
        assert_eq!(service("telnet"), None);
    }
}
