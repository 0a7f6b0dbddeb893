//! Certificates for a lab, `[[tls_offload]]` in its site file, and a web server to stand behind one.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use serde_json::Value;

use crate::lab::{Lab, tail};
use crate::netns::{Netns, run};
use crate::watch::status;

/// Signs certificates.
#[derive(Debug)]
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// What a certificate says, and the kind of its key.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub names: &'a [&'a str],
    pub cn: &'a str,
    /// A server's, else a client's.
    pub server: bool,
    /// The year whose first day ends it.
    pub until: i32,
    pub key: KeyKind,
}

#[derive(Debug, Clone, Copy)]
pub enum KeyKind {
    P256,
    P384,
    Rsa2048,
}

/// A certificate and its key, in PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    pub fn pem(&self) -> String {
        self.0.pem()
    }

    pub fn signs(&self, wanted: &Wanted<'_>) -> Result<Identity> {
        let names: Vec<_> = wanted.names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, wanted.cn);
        params.use_authority_key_identifier_extension = true;
        let usage =
            if wanted.server { ExtendedKeyUsagePurpose::ServerAuth } else { ExtendedKeyUsagePurpose::ClientAuth };
        params.extended_key_usages = vec![usage];
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(wanted.until, 1, 1);
        let key = wanted.key.generate()?;
        Ok(Identity { certificate: params.signed_by(&key, &self.0)?.pem(), key: key.serialize_pem() })
    }
}

impl KeyKind {
    fn generate(self) -> Result<KeyPair> {
        let key = match self {
            Self::P256 => KeyPair::generate()?,
            Self::P384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384)?,
            Self::Rsa2048 => {
                let mut openssl = Command::new("openssl");
                openssl.args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]);
                KeyPair::from_pem(&run(&mut openssl)?)?
            }
        };
        Ok(key)
    }
}

impl Identity {
    /// As `NAME.pem` and `NAME.key`, which nobody else may read.
    pub fn put(&self, folder: &Path, name: &str) -> Result<()> {
        secret(&folder.join(format!("{name}.pem")), &self.certificate)?;
        secret(&folder.join(format!("{name}.key")), &self.key)
    }
}

fn secret(path: &Path, text: &str) -> Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

/// Adds this to the site file, applies it, and waits until every `[[tls_offload]]` of it serves.
pub fn offload(lab: &Lab, text: &str) -> Result<()> {
    let site = fs::read_to_string(lab.site_file())? + text;
    fs::write(lab.site_file(), site)?;
    run(lab.routerctl()?.arg("apply").arg(lab.site_file()))?;
    serves(lab)
}

/// Waits until every `[[tls_offload]]` serves. Certificates may take their time where a device is tested first.
pub fn serves(lab: &Lab) -> Result<()> {
    let well = |line: &Value| {
        let all = |key: &str, so: &dyn Fn(&Value) -> bool| {
            line[key].as_array().is_some_and(|list| !list.is_empty() && list.iter().all(so))
        };
        line["trouble"].is_null()
            && all("certificates", &|certificate| certificate["expired"] == false)
            && all("listen", &|listen| listen["trouble"].is_null())
            && all("backends", &|backend| backend["up"] == true)
    };
    let wanted = fs::read_to_string(lab.site_file())?.matches("[[tls_offload]]").count();
    let start = Instant::now();
    loop {
        let told = status(lab)?["tls_offload"].clone();
        if told.as_array().is_some_and(|lines| lines.len() == wanted && lines.iter().all(well)) {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            bail!("TLS is not offloaded: {told:#}\n{}", tail(&lab.log("routerd")));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The first address of a kind.
pub fn first(nets: &[IpNet], ipv6: bool) -> Result<IpAddr> {
    let mut addresses = nets.iter().map(IpNet::addr);
    addresses.find(|address| address.is_ipv6() == ipv6).context("there is no address of the kind")
}

/// A web server in a namespace that says which HTTP it was asked by: `http/1.1`, or `h2` to who begins with that. It
/// ends with the program.
pub fn web(place: &Netns, at: SocketAddr) -> Result<()> {
    let listener = place.enter(|| TcpListener::bind(at))??;
    thread::spawn(move || {
        for stream in listener.incoming() {
            // A client that goes away is its own trouble.
            thread::spawn(move || stream.and_then(|mut stream| answer(&mut stream)).ok());
        }
    });
    Ok(())
}

fn answer(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    if head == PREFACE {
        let mut rest = [0; PREFACE_REST];
        stream.read_exact(&mut rest)?;
        return answer_h2(stream);
    }
    let page = page("http/1.1");
    let length = page.len();
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\ncontent-length:";
    write!(stream, "{head} {length}\r\n\r\n{page}")
}

/// Every request gets the page (RFC 9113, in the little that takes).
fn answer_h2(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(&frame(SETTINGS, 0, 0, &[]))?;
    loop {
        let mut head = [0; 9];
        match stream.read_exact(&mut head) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            done => done?,
        }
        let [long, high, low, kind, flags, stream_id @ ..] = head;
        let mut body = vec![0; usize::from(long) << 16 | usize::from(high) << 8 | usize::from(low)];
        stream.read_exact(&mut body)?;
        match kind {
            SETTINGS if flags & ACK == 0 => stream.write_all(&frame(SETTINGS, ACK, 0, &[]))?,
            PING if flags & ACK == 0 => stream.write_all(&frame(PING, ACK, 0, &body))?,
            HEADERS => {
                let stream_id = u32::from_be_bytes(stream_id);
                // RFC 7541, appendix A: 8 is `:status: 200`, and 31 is `content-type`.
                let mut fields = vec![0x88, 0x0f, 31 - 15, 9];
                fields.extend(b"text/html");
                stream.write_all(&frame(HEADERS, END_HEADERS, stream_id, &fields))?;
                stream.write_all(&frame(DATA, END_STREAM, stream_id, page("h2").as_bytes()))?;
            }
            _ => {}
        }
    }
}

fn page(protocol: &str) -> String {
    format!("<!doctype html><title>behind</title><p>asked by {protocol}</p>\n")
}

fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap_or_default().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), body].concat()
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";
/// `SM`, and the line ends behind it.
const PREFACE_REST: usize = 6;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PATIENCE: Duration = Duration::from_secs(40);
