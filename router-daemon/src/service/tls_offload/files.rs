//! The files of a `[[tls_offload]]`, read, judged and made into what rustls works with. Keys go from their file to whoever
//! signs and nowhere else: no message quotes a byte of them. Not for the thread of the event loop.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use config::model::{Material, TlsCertificate, TlsOffload, TlsVersion};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion, version};

use super::names::Names;
use crate::api::certificate::{self, contents, element};
use crate::crypto::signing::{Engine, Signatures};

/// What the files hold, ready for connections.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) tls: Arc<ServerConfig>,
    pub(super) names: Arc<Names<Arc<CertifiedKey>>>,
    /// How to speak with backends, where that is not in the clear.
    pub(super) backend: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    /// Who is let in, as a digest: a ticket of others is worth nothing, and nor is a connection.
    pub(super) trust: String,
    pub(super) certificates: Vec<Shown>,
}

/// A certificate, for status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) names: BTreeSet<String>,
    /// Seconds since 1970.
    pub(super) expires: Option<u64>,
}

/// Where files are, besides where the site file says.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    /// Where systemd put the unit's credentials.
    pub(super) credentials: Option<OsString>,
}

impl Places {
    fn path(&self, material: &Material) -> Result<PathBuf, String> {
        match (material, &self.credentials) {
            (Material::File(path), _) => Ok(path.clone()),
            (Material::Credential(name), Some(folder)) => Ok(Path::new(folder).join(name)),
            (Material::Credential(name), None) => Err(format!(
                "there is no credential `{name}`: the unit has no `LoadCredential={name}:/path`, or routerd runs without it"
            )),
        }
    }
}

/// Tells files from what they were, without reading them. A file that is not there is told from one that is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stamps(Vec<Option<Stamp>>);

/// Device, inode, length and when it was changed, with its nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);

impl Stamps {
    pub(super) fn of(offload: &TlsOffload, places: &Places) -> Self {
        let mut paths = Vec::new();
        for TlsCertificate { certificate, key, ocsp, .. } in &offload.certificates {
            paths.extend([certificate, key].map(|material| places.path(material).ok()));
            paths.push(ocsp.clone());
        }
        paths.push(offload.clients.as_ref().map(|clients| clients.ca.clone()));
        paths.push(offload.backend_tls.as_ref().and_then(|tls| tls.ca.clone()));
        let stamp = |path: PathBuf| {
            let facts = std::fs::metadata(path).ok()?;
            Some((facts.dev(), facts.ino(), facts.len(), facts.ctime(), facts.ctime_nsec()))
        };
        Self(paths.into_iter().map(|path| path.and_then(stamp)).collect())
    }
}

/// Reads all of it. `tickets` resume sessions, where no certificate of the client has to be seen each time.
pub(super) fn load(
    offload: &TlsOffload,
    places: &Places,
    engine: &dyn Engine,
    signatures: &Arc<Signatures>,
    tickets: &Arc<dyn ProducesTickets>,
) -> Result<Loaded, String> {
    let provider = Arc::new(ring::default_provider());
    let (mut named, mut shown) = (Vec::new(), Vec::new());
    for written in &offload.certificates {
        let (key, expires) = certified(written, places, engine, signatures)?;
        named.push((&written.names, Arc::new(key)));
        shown.push(Shown { names: written.names.clone(), expires });
    }
    let names = Arc::new(Names::new(named));
    let versions: Vec<&'static SupportedProtocolVersion> = offload.versions.iter().map(|one| supported(*one)).collect();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions)
        .map_err(|error| format!("TLS cannot be set up: {error}"))?;
    let mut trust = Vec::new();
    let builder = match &offload.clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            trust.push(u8::from(clients.required));
            let roots = certificate::roots(&clients.ca, &mut trust)?;
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
            let verifier = if clients.required { verifier } else { verifier.allow_unauthenticated() };
            let verifier =
                verifier.build().map_err(|error| format!("{} holds no authority: {error}", clients.ca.display()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut tls = builder.with_cert_resolver(Arc::clone(&names) as _);
    tls.alpn_protocols = offload.alpn.iter().map(|word| word.clone().into_bytes()).collect();
    // Tickets hold all there is of a session: nothing of one is kept here.
    tls.session_storage = Arc::new(NoServerSessionStorage {});
    if offload.clients.is_none() {
        tls.ticketer = Arc::clone(tickets);
        tls.send_tls13_tickets = 2;
    } else {
        // A certificate that expired meanwhile would still count.
        tls.send_tls13_tickets = 0;
    }
    let backend = offload.backend_tls.as_ref().map(|wanted| to_backend(wanted, &provider)).transpose()?;
    Ok(Loaded { tls: Arc::new(tls), names, backend, trust: ebpf::digest(&trust), certificates: shown })
}

fn certified(
    written: &TlsCertificate,
    places: &Places,
    engine: &dyn Engine,
    signatures: &Arc<Signatures>,
) -> Result<(CertifiedKey, Option<u64>), String> {
    let (certificate, key) = (places.path(&written.certificate)?, places.path(&written.key)?);
    let mut certified = certificate::certified(&certificate, &key, engine, signatures)?;
    let expires = certified.cert.first().and_then(expiry);
    if let Some(path) = &written.ocsp {
        let (response, _) = contents(path)?;
        // RFC 6960, 4.2.1: an OCSPResponse is a SEQUENCE that begins with its status, and 0 is success.
        let status = element(&response, SEQUENCE).and_then(|(inner, _)| element(inner, ENUMERATED));
        if !matches!(status, Some(([0], _))) {
            return Err(format!("{} is no OCSP response that says anything, in DER", path.display()));
        }
        certified.ocsp = Some(response);
    }
    Ok((certified, expires))
}

fn to_backend(
    wanted: &config::model::BackendTls,
    provider: &Arc<CryptoProvider>,
) -> Result<(Arc<ClientConfig>, ServerName<'static>), String> {
    let mut public = RootCertStore::empty();
    let roots = if let Some(path) = &wanted.ca {
        certificate::roots(path, &mut Vec::new())?
    } else {
        public.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        Arc::new(public)
    };
    let config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be set up: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(wanted.name.clone()).map_err(|error| format!("`{}`: {error}", wanted.name))?;
    Ok((Arc::new(config), name))
}

fn supported(version: TlsVersion) -> &'static SupportedProtocolVersion {
    match version {
        TlsVersion::V12 => &version::TLS12,
        TlsVersion::V13 => &version::TLS13,
    }
}

/// The end of a certificate's time (RFC 5280, 4.1.2.5), in seconds since 1970.
fn expiry(certificate: &CertificateDer<'_>) -> Option<u64> {
    let (outer, _) = element(certificate, SEQUENCE)?;
    let (mut rest, _) = element(outer, SEQUENCE)?;
    if let Some((_version, after)) = element(rest, CONTEXT_0) {
        rest = after;
    }
    for kind in [INTEGER, SEQUENCE, SEQUENCE] {
        (_, rest) = element(rest, kind)?;
    }
    let (validity, _) = element(rest, SEQUENCE)?;
    let (_from, until) = time(validity)?;
    time(until).map(|(seconds, _)| seconds)
}

/// `YYMMDDHHMMSSZ`, or with the whole year.
fn time(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (short, (text, rest)) = match element(bytes, UTC_TIME) {
        Some(found) => (true, found),
        None => (false, element(bytes, GENERALIZED_TIME)?),
    };
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, text) = text.split_at_checked(if short { 2 } else { 4 })?;
    let year = year.parse::<u64>().ok()?;
    let year = match (short, year) {
        (false, year) => year,
        (true, year @ ..50) => 2000 + year,
        (true, year) => 1900 + year,
    };
    let part = |index: usize| text.get(index * 2..index * 2 + 2)?.parse::<u64>().ok();
    let (month, day, hour, minute, second) = (part(0)?, part(1)?, part(2)?, part(3)?, part(4)?);
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days since 1970-03-01 of the civil calendar, whose years begin in March.
    let (shifted, months) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * shifted + shifted / 4 - shifted / 100 + shifted / 400 + (153 * months + 2) / 5 + day - 1;
    let seconds = (days.checked_sub(BEFORE_1970)?) * 86_400 + hour * 3_600 + minute * 60 + second;
    Some((seconds, rest))
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// From the first of March of the year 0.
const BEFORE_1970: u64 = 719_468;
const SEQUENCE: u8 = 0x30;
const ENUMERATED: u8 = 0x0a;
const INTEGER: u8 = 0x02;
const CONTEXT_0: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_of_certificates_are_read() {
        for (kind, text, wanted) in [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "000229120000Z", Some(951_825_600)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000)),
            (GENERALIZED_TIME, "21000301000000Z", Some(4_107_542_400)),
            (UTC_TIME, "500101000000Z", None),
            (UTC_TIME, "701301000000Z", None),
            (UTC_TIME, "7001010000Z", None),
            (UTC_TIME, "700101000000", None),
        ] {
            let mut bytes = vec![kind, u8::try_from(text.len()).unwrap()];
            bytes.extend(text.bytes());
            assert_eq!(time(&bytes).map(|(seconds, _)| seconds), wanted, "{text}");
        }
    }

    #[test]
    fn the_expiry_is_the_certificates() {
        let mut params = rcgen::CertificateParams::new(vec!["shop.example".to_owned()]).unwrap();
        for (year, wanted) in [(2030, 1_893_456_000), (2100, 4_102_444_800_u64)] {
            params.not_after = rcgen::date_time_ymd(year, 1, 1);
            let key = rcgen::KeyPair::generate().unwrap();
            let made = params.self_signed(&key).unwrap();
            assert_eq!(expiry(made.der()), Some(wanted));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            expiry(&CertificateDer::from(bytes.clone()));
            time(&bytes);
        }
    }
}
