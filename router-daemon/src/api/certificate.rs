//! The files of the HTTPS listener, read and judged, and who somebody is by the certificate that came with the
//! connection. The secret key goes from its file to whoever signs and nowhere else: no message quotes a byte
//! of it.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use config::model::{Api, ApiClient, KnownBy};
use config::units::ClientName;
use nix::libc;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::crypto::signing::{Engine, Key, Signatures};

/// What the files hold.
#[derive(Debug, Clone)]
pub(super) struct Loaded {
    pub(super) tls: Arc<ServerConfig>,
    /// Tells these files from others. Of the secret key it knows what the certificate says.
    pub(super) digest: String,
}

/// What a connection is made with. `engine` signs. Reads files: not for the daemon's own thread.
pub(super) fn load(api: &Api, engine: &dyn Engine, signatures: &Arc<Signatures>) -> Result<Loaded, String> {
    let certified = certified(&api.certificate, &api.key, engine, signatures)?;
    let mut digest: Vec<u8> = certified.cert.iter().flat_map(|one| one.to_vec()).collect();
    let roots = roots(&api.client_ca, &mut digest)?;
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .build()
        .map_err(|error| format!("{} holds no authority: {error}", api.client_ca.display()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Each connection shows its certificate; nothing is kept of the last one.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Loaded { tls: Arc::new(config), digest: ebpf::digest(&digest) })
}

/// A certificate with its chain, and its key in the hands of whoever signs.
pub(crate) fn certified(
    certificate: &Path,
    key: &Path,
    engine: &dyn Engine,
    signatures: &Arc<Signatures>,
) -> Result<CertifiedKey, String> {
    let chain = certificates(certificate)?;
    let secret = self::key(key)?;
    let signs = engine.take(&secret).map_err(|trouble| format!("{}: {trouble}", key.display()))?;
    let certified = CertifiedKey::new(chain, Arc::new(Key::new(signs, Arc::clone(signatures))));
    certified
        .keys_match()
        .map_err(|error| format!("{} and {} cannot be used together: {error}", key.display(), certificate.display()))?;
    Ok(certified)
}

/// Authorities, which `seen` takes in.
pub(crate) fn roots(path: &Path, seen: &mut Vec<u8>) -> Result<Arc<RootCertStore>, String> {
    let mut roots = RootCertStore::empty();
    for root in certificates(path)? {
        seen.extend_from_slice(&root);
        roots.add(root).map_err(|error| format!("{} holds no authority: {error}", path.display()))?;
    }
    Ok(Arc::new(roots))
}

/// What a certificate says of its owner.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Presented {
    pub(crate) fingerprint: String,
    /// Its DNS names, without those that stand for others (`*.example`), and its URIs.
    pub(crate) sans: Vec<String>,
    /// The common name, where there is exactly one.
    pub(crate) cn: Option<String>,
}

impl Presented {
    /// The verifier has accepted it; one that cannot be read is still known by its fingerprint.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Self {
        let fingerprint = ebpf::digest(certificate);
        let Ok(read) = webpki::EndEntityCert::try_from(certificate) else {
            return Self { fingerprint, ..Self::default() };
        };
        let sans = read.valid_dns_names().chain(read.valid_uri_names()).map(str::to_owned).collect();
        Self { fingerprint, sans, cn: common_name(read.subject()) }
    }

    /// The client of the site file that this is. A fingerprint says more than a name.
    pub(super) fn among<'c>(&self, clients: &'c BTreeMap<ClientName, ApiClient>) -> Option<&'c ApiClient> {
        let known = |client: &&ApiClient| match &client.known_by {
            KnownBy::Fingerprint(fingerprint) => *fingerprint == self.fingerprint,
            KnownBy::San(san) => self.sans.contains(san),
            KnownBy::Cn(cn) => self.cn.as_ref() == Some(cn),
        };
        let by_fingerprint = |client: &&ApiClient| matches!(client.known_by, KnownBy::Fingerprint(_));
        let of = || clients.values().filter(known);
        // Of several names of one certificate the one that may least decides.
        of().find(by_fingerprint).or_else(|| of().min_by_key(|client| client.role))
    }
}

pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let (bytes, _) = contents(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(format!("{} holds no certificate in PEM (`-----BEGIN CERTIFICATE-----`)", path.display())),
        Err(error) => Err(format!("{} is not PEM: {error}", path.display())),
    }
}

pub(crate) fn key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let (bytes, mode) = contents(path)?;
    if mode & 0o777 & !0o640 != 0 {
        let path = path.display();
        return Err(format!("the secret key {path} is open to others (mode {mode:04o}): `chmod 600 {path}`"));
    }
    // What is wrong with it is not quoted: it might be the key.
    PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|_secret| format!("{} holds no secret key in PEM, or an encrypted one", path.display()))
}

/// With the file's mode. What is no file, such as a pipe nobody writes to, is not waited for.
pub(crate) fn contents(path: &Path) -> Result<(Vec<u8>, u32), String> {
    let fails = |error: std::io::Error| format!("{} cannot be read: {error}", path.display());
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(fails)?;
    let facts = file.metadata().map_err(fails)?;
    if !facts.is_file() {
        return Err(format!("{} is no file", path.display()));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(fails)?;
    if bytes.len() as u64 > LARGEST {
        return Err(format!("{} has more than {LARGEST} bytes", path.display()));
    }
    Ok((bytes, facts.mode() & 0o7777))
}

/// The common name in the contents of an X.501 name; `None` where there is none, several, or one that is no text.
fn common_name(mut name: &[u8]) -> Option<String> {
    let mut found = None;
    while !name.is_empty() {
        let (set, rest) = element(name, SET)?;
        name = rest;
        let mut attributes = set;
        while !attributes.is_empty() {
            let (attribute, rest) = element(attributes, SEQUENCE)?;
            attributes = rest;
            let (kind, value) = element(attribute, OBJECT_IDENTIFIER)?;
            if kind != COMMON_NAME {
                continue;
            }
            let (text, _) = element(value, UTF8_STRING).or_else(|| element(value, PRINTABLE_STRING))?;
            let text = std::str::from_utf8(text).ok()?.to_owned();
            if found.replace(text).is_some() {
                return None;
            }
        }
    }
    found
}

/// The contents of the DER element of this kind at the beginning, and what follows it.
pub(crate) fn element(bytes: &[u8], kind: u8) -> Option<(&[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => rest.split_first().map(|(&length, rest)| (usize::from(length), rest))?,
        0x82 => rest.split_first_chunk().map(|(length, rest)| (usize::from(u16::from_be_bytes(*length)), rest))?,
        _ => return None,
    };
    (tag == kind).then_some(())?;
    rest.split_at_checked(length)
}

const LARGEST: u64 = 1 << 20;
const SET: u8 = 0x31;
const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use config::model::ApiRole::{self, Operator, Reader};
    use proptest::prelude::*;

    use super::*;
    use crate::api::https::testing::{Authority, Files};
    use crate::crypto::signing::Ring;

    fn loaded(api: &Api) -> Result<Loaded, String> {
        load(api, &Ring, &Arc::default())
    }

    #[test]
    fn files_that_fit_are_taken_and_others_are_told_with_their_place() {
        let files = Files::new();
        let Files { api, .. } = &files;
        assert!(loaded(api).is_ok());

        for (mode, good) in
            [(0o600, true), (0o640, true), (0o400, true), (0o644, false), (0o660, false), (0o601, false)]
        {
            std::fs::set_permissions(&api.key, PermissionsExt::from_mode(mode)).unwrap();
            match loaded(api) {
                Ok(_) => assert!(good, "{mode:o}"),
                Err(told) => {
                    assert!(!good, "{mode:o}: {told}");
                    assert!(told.contains(&format!("mode {mode:04o}")) && told.contains("`chmod 600 /"), "{told}");
                }
            }
        }
        std::fs::set_permissions(&api.key, PermissionsExt::from_mode(0o600)).unwrap();

        let secret = std::fs::read_to_string(&api.key).unwrap();
        let other = Authority::new("another").server();
        let table: [(&Path, &str, &str); 6] = [
            (&api.certificate, "", "holds no certificate"),
            (&api.certificate, &other.0, "cannot be used together"),
            (&api.key, "", "holds no secret key"),
            (&api.key, &secret.replace("-----END", "-----EDN"), "holds no secret key"),
            (&api.client_ca, "", "holds no certificate"),
            (&api.client_ca, &secret, "holds no certificate"),
        ];
        for (path, text, told) in table {
            let right = std::fs::read(path).unwrap();
            std::fs::write(path, text).unwrap();
            let said = loaded(api).unwrap_err();
            assert!(said.contains(told) && said.contains(path.to_str().unwrap()), "{said}");
            let line = secret.lines().nth(1).unwrap();
            assert!(!said.contains(line) && !said.contains(&line[..8]), "the key is told: {said}");
            std::fs::write(path, right).unwrap();
        }
        let gone = Api { key: "/nonexistent".into(), ..api.clone() };
        assert!(loaded(&gone).unwrap_err().contains("/nonexistent cannot be read"));
        let folder = Api { key: "/".into(), ..api.clone() };
        assert!(loaded(&folder).unwrap_err().contains("/ is no file"));
        assert!(loaded(api).is_ok());
    }

    #[test]
    fn a_certificate_is_known_by_its_names_to_the_letter_or_by_its_fingerprint() {
        let authority = Authority::new("clients");
        let presented = |sans: &[&str], cn: &str| {
            let (pem, _) = authority.client(sans, cn);
            Presented::of(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap())
        };
        let grafana = presented(&["grafana.example", "graf.example", "*.example"], "grafana");
        assert_eq!(grafana.sans, ["grafana.example", "graf.example"]);
        assert_eq!(grafana.cn.as_deref(), Some("grafana"));
        let named = |who: &Presented, ways: &[(ApiRole, KnownBy)]| {
            let clients: BTreeMap<_, _> = ways
                .iter()
                .enumerate()
                .map(|(number, (role, known_by))| {
                    let name: ClientName = format!("c{number}").parse().unwrap();
                    (name.clone(), ApiClient { name, role: *role, known_by: known_by.clone() })
                })
                .collect();
            who.among(&clients).map(|client| (client.name.to_string(), client.role))
        };
        let (san, cn) = (|text: &str| KnownBy::San(text.to_owned()), |text: &str| KnownBy::Cn(text.to_owned()));
        let fingerprint = KnownBy::Fingerprint(grafana.fingerprint.clone());
        let is = |number: &str, role| Some((number.to_owned(), role));
        assert_eq!(named(&grafana, &[(Reader, san("grafana.example"))]), is("c0", Reader));
        // A name with a star stands for no other, nor for itself.
        assert_eq!(named(&grafana, &[(Operator, san("*.example"))]), None);
        assert_eq!(named(&grafana, &[(Operator, san("alice.example"))]), None);
        assert_eq!(named(&grafana, &[(Operator, san("grafana"))]), None);
        assert_eq!(named(&grafana, &[(Operator, cn("grafana.example"))]), None);
        assert_eq!(named(&grafana, &[(Operator, cn("grafana"))]), is("c0", Operator));
        assert_eq!(named(&grafana, &[(Operator, cn("grafana")), (Reader, san("graf.example"))]), is("c1", Reader));
        assert_eq!(named(&grafana, &[(Reader, cn("grafana")), (Operator, fingerprint)]), is("c1", Operator));
    }

    #[test]
    fn two_common_names_are_none() {
        let one = [0x31, 10, 0x30, 8, 0x06, 3, 0x55, 4, 3, 0x0c, 1, b'a'];
        assert_eq!(common_name(&one).as_deref(), Some("a"));
        assert_eq!(common_name(&one.repeat(2)), None);
        assert_eq!(common_name(&one[..11]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_name_panic(bytes: Vec<u8>) {
            drop(common_name(&bytes));
            drop(Presented::of(&CertificateDer::from(bytes)));
        }
    }
}
