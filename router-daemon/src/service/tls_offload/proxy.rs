//! The header by which a backend learns whom it serves: the PROXY protocol, version 2, as the
//! `proxy-protocol.txt` of `HAProxy` has it. Pure.

use std::net::{IpAddr, SocketAddr};

/// What a backend is told of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Told<'a> {
    pub(super) client: SocketAddr,
    /// The router's end.
    pub(super) listener: SocketAddr,
    pub(super) alpn: Option<&'a [u8]>,
    /// The name the client asked for.
    pub(super) name: Option<&'a str>,
    /// `TLSv1.3`.
    pub(super) version: &'a str,
    /// The client showed a certificate, and it was found good.
    pub(super) verified: bool,
    /// Its common name, where it has one.
    pub(super) cn: Option<&'a str>,
}

/// The bytes that go before those of the client.
pub(super) fn header(told: &Told<'_>) -> Vec<u8> {
    let mut body = Vec::with_capacity(128);
    // An address of each family cannot meet on one connection; were it so, nothing is said of addresses.
    let family = match (told.client.ip(), told.listener.ip()) {
        (IpAddr::V4(client), IpAddr::V4(own)) => {
            body.extend(client.octets());
            body.extend(own.octets());
            TCP4
        }
        (IpAddr::V6(client), IpAddr::V6(own)) => {
            body.extend(client.octets());
            body.extend(own.octets());
            TCP6
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => UNSPECIFIED,
    };
    if family != UNSPECIFIED {
        body.extend(told.client.port().to_be_bytes());
        body.extend(told.listener.port().to_be_bytes());
    }
    if let Some(alpn) = told.alpn {
        put(&mut body, PP2_TYPE_ALPN, alpn);
    }
    if let Some(name) = told.name {
        put(&mut body, PP2_TYPE_AUTHORITY, name.as_bytes());
    }
    // Zero tells of a certificate that was shown and found good; everything else is another number.
    let (client, verify) = if told.verified {
        (PP2_CLIENT_SSL | PP2_CLIENT_CERT_CONN | PP2_CLIENT_CERT_SESS, 0)
    } else {
        (PP2_CLIENT_SSL, 1_u32)
    };
    let mut tls = vec![client];
    tls.extend(verify.to_be_bytes());
    put(&mut tls, PP2_SUBTYPE_SSL_VERSION, told.version.as_bytes());
    if let Some(cn) = told.cn.filter(|_| told.verified) {
        put(&mut tls, PP2_SUBTYPE_SSL_CN, cn.as_bytes());
    }
    put(&mut body, PP2_TYPE_SSL, &tls);

    let mut header = SIGNATURE.to_vec();
    header.extend([VERSION_2_PROXY, family]);
    header.extend(u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
    header.extend(body);
    header
}

/// Nothing here is longer than a name or an ALPN word.
fn put(to: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let value = &value[..value.len().min(LONGEST)];
    to.push(kind);
    to.extend(u16::try_from(value.len()).unwrap_or_default().to_be_bytes());
    to.extend(value);
}

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const VERSION_2_PROXY: u8 = 0x21;
const UNSPECIFIED: u8 = 0x00;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
const PP2_TYPE_ALPN: u8 = 0x01;
const PP2_TYPE_AUTHORITY: u8 = 0x02;
const PP2_TYPE_SSL: u8 = 0x20;
const PP2_SUBTYPE_SSL_VERSION: u8 = 0x21;
const PP2_SUBTYPE_SSL_CN: u8 = 0x22;
const PP2_CLIENT_SSL: u8 = 0x01;
const PP2_CLIENT_CERT_CONN: u8 = 0x02;
const PP2_CLIENT_CERT_SESS: u8 = 0x04;
const LONGEST: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_is_told_in_these_bytes() {
        let told = Told {
            client: "192.0.2.7:50000".parse().unwrap(),
            listener: "10.0.10.1:443".parse().unwrap(),
            alpn: Some(b"h2"),
            name: Some("a.example"),
            version: "TLSv1.3",
            verified: true,
            cn: Some("me"),
        };
        let mut wanted =
            vec![0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, 0x21, 0x11, 0, 52];
        wanted.extend([192, 0, 2, 7, 10, 0, 10, 1, 0xc3, 0x50, 0x01, 0xbb]);
        wanted.extend([1, 0, 2, b'h', b'2']);
        wanted.extend([2, 0, 9]);
        wanted.extend(b"a.example");
        wanted.extend([0x20, 0, 20, 7, 0, 0, 0, 0, 0x21, 0, 7]);
        wanted.extend(b"TLSv1.3");
        wanted.extend([0x22, 0, 2, b'm', b'e']);
        assert_eq!(header(&told), wanted);
    }

    #[test]
    fn the_length_is_that_of_what_follows_whatever_is_told() {
        let six: (SocketAddr, SocketAddr) = ("[fd00::7]:1".parse().unwrap(), "[fd00::1]:443".parse().unwrap());
        let four: (SocketAddr, SocketAddr) = ("10.0.0.7:1".parse().unwrap(), "10.0.0.1:443".parse().unwrap());
        let long = "x".repeat(70_000);
        for ((client, listener), family, addresses) in
            [(six, 0x21, 36), (four, 0x11, 12), ((four.0, six.1), 0, 0), ((six.0, four.1), 0, 0)]
        {
            for (name, verified, cn) in
                [(None, false, None), (Some(long.as_str()), true, None), (None, true, Some(&*long))]
            {
                let told = Told { client, listener, alpn: None, name, version: "TLSv1.2", verified, cn };
                let bytes = header(&told);
                assert_eq!((bytes[12], bytes[13]), (0x21, family));
                assert_eq!(usize::from(u16::from_be_bytes([bytes[14], bytes[15]])), bytes.len() - 16);
                assert!(bytes.len() >= 16 + addresses);
                // Each value ends where the next begins, and the last with the header.
                let mut rest = &bytes[16 + addresses..];
                while let [_, high, low, more @ ..] = rest {
                    rest = &more[usize::from(u16::from_be_bytes([*high, *low]))..];
                }
                assert!(rest.is_empty());
            }
        }
    }
}
