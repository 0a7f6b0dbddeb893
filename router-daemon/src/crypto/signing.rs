//! Signatures of handshakes: rustls' `SigningKey` and `Signer` over anything that [`Signs`]. rustls waits in `sign`, so
//! this is only called on threads of handshakes (`crate::handshake`). Who signed, and why it was not whom one would have liked, is counted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, SubjectPublicKeyInfoDer};
use tokio_rustls::rustls::sign::{Signer, SigningKey};
use tokio_rustls::rustls::{Error, SignatureAlgorithm, SignatureScheme};

use super::InUse;

/// Something that signs with one key.
pub(crate) trait Signs: std::fmt::Debug + Send + Sync {
    /// Those the key is good for, best first.
    fn schemes(&self) -> &[SignatureScheme];
    fn algorithm(&self) -> SignatureAlgorithm;
    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>>;
    /// Takes as long as it takes.
    fn sign(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Signed, Error>;
}

/// A signature and where it comes from.
#[derive(Debug)]
pub(crate) struct Signed {
    pub(crate) signature: Vec<u8>,
    /// A word for metrics.
    pub(crate) engine: &'static str,
    /// Why the engine that should have signed did not.
    pub(crate) fallback: Option<&'static str>,
}

/// Whoever takes keys and signs with them.
pub(crate) trait Engine: std::fmt::Debug + Send + Sync {
    /// No message says anything of the key.
    fn take(&self, key: &PrivateKeyDer<'static>) -> Result<Arc<dyn Signs>, String>;
}

/// How many signatures were made, by whom and why not by another.
#[derive(Debug, Default)]
pub(crate) struct Signatures(Mutex<BTreeMap<(&'static str, &'static str), u64>>);

impl Signatures {
    fn count(&self, engine: &'static str, fallback: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry((engine, fallback)).or_default() += 1;
    }

    /// By engine and by reason of the fallback, which is empty where there was none.
    pub(crate) fn counts(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A key as rustls wants it.
#[derive(Debug)]
pub(crate) struct Key {
    signs: Arc<dyn Signs>,
    signatures: Arc<Signatures>,
}

impl Key {
    pub(crate) fn new(signs: Arc<dyn Signs>, signatures: Arc<Signatures>) -> Self {
        Self { signs, signatures }
    }
}

impl SigningKey for Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let scheme = *self.signs.schemes().iter().find(|scheme| offered.contains(scheme))?;
        Some(Box::new(One { signs: Arc::clone(&self.signs), signatures: Arc::clone(&self.signatures), scheme }))
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        self.signs.public_key()
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.signs.algorithm()
    }
}

/// One signature to be.
#[derive(Debug)]
struct One {
    signs: Arc<dyn Signs>,
    signatures: Arc<Signatures>,
    scheme: SignatureScheme,
}

impl Signer for One {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        let Signed { signature, engine, fallback } = self.signs.sign(self.scheme, message)?;
        self.signatures.count(engine, fallback.unwrap_or_default());
        Ok(signature)
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

/// The engine of the crate `qat`: a device where there is one and it is worth it, OpenSSL on the CPU else. Kinds of keys
/// that it does not know (Ed25519, P-521) are left to rustls' own provider.
#[derive(Debug)]
pub(crate) struct Offload(Arc<InUse>);

impl Offload {
    pub(crate) fn new(engine: Arc<InUse>) -> Self {
        Self(engine)
    }
}

impl Engine for Offload {
    fn take(&self, secret: &PrivateKeyDer<'static>) -> Result<Arc<dyn Signs>, String> {
        let key = match qat::PrivateKey::from_der(secret.secret_der()) {
            Ok(key) => key,
            Err(qat::KeyError::Type(_)) => return Ring.take(secret),
            // None of these quotes the key.
            Err(error) => return Err(error.to_string()),
        };
        let (schemes, algorithm) = match &key {
            qat::PrivateKey::Rsa(_) => (RSA.to_vec(), SignatureAlgorithm::RSA),
            qat::PrivateKey::Ec(key) => {
                let scheme = match key.curve() {
                    qat::Curve::P256 => SignatureScheme::ECDSA_NISTP256_SHA256,
                    qat::Curve::P384 => SignatureScheme::ECDSA_NISTP384_SHA384,
                };
                (vec![scheme], SignatureAlgorithm::ECDSA)
            }
        };
        let public = key.public_der().map_err(|error| error.to_string())?;
        Ok(Arc::new(OffloadKey { engine: Arc::clone(&self.0), key, public, schemes, algorithm }))
    }
}

#[derive(Debug)]
struct OffloadKey {
    engine: Arc<InUse>,
    key: qat::PrivateKey,
    /// A SubjectPublicKeyInfo.
    public: Vec<u8>,
    schemes: Vec<SignatureScheme>,
    algorithm: SignatureAlgorithm,
}

impl Signs for OffloadKey {
    fn schemes(&self) -> &[SignatureScheme] {
        &self.schemes
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(self.public.as_slice().into())
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "rustls may learn of more schemes")]
    fn sign(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Signed, Error> {
        use qat::{Hash, Scheme};
        let scheme = match scheme {
            SignatureScheme::RSA_PKCS1_SHA256 => Scheme::RsaPkcs1(Hash::Sha256),
            SignatureScheme::RSA_PKCS1_SHA384 => Scheme::RsaPkcs1(Hash::Sha384),
            SignatureScheme::RSA_PKCS1_SHA512 => Scheme::RsaPkcs1(Hash::Sha512),
            SignatureScheme::RSA_PSS_SHA256 => Scheme::RsaPss(Hash::Sha256),
            SignatureScheme::RSA_PSS_SHA384 => Scheme::RsaPss(Hash::Sha384),
            SignatureScheme::RSA_PSS_SHA512 => Scheme::RsaPss(Hash::Sha512),
            SignatureScheme::ECDSA_NISTP256_SHA256 => Scheme::Ecdsa(Hash::Sha256),
            SignatureScheme::ECDSA_NISTP384_SHA384 => Scheme::Ecdsa(Hash::Sha384),
            other => return Err(Error::General(format!("{other:?} is no scheme of this key"))),
        };
        let qat::Signed { signature, by, fallback } =
            self.engine.sign_and_tell(&self.key, scheme, message).map_err(|error| Error::General(error.to_string()))?;
        Ok(Signed { signature, engine: by, fallback: fallback.map(qat::Reason::word) })
    }
}

/// rustls' own provider, on the CPU.
#[derive(Debug, Default)]
pub(crate) struct Ring;

impl Engine for Ring {
    fn take(&self, key: &PrivateKeyDer<'static>) -> Result<Arc<dyn Signs>, String> {
        // What is wrong with it is not quoted: it might be the key.
        let key = ring::sign::any_supported_type(key)
            .map_err(|_secret| "the key is of a kind that is not supported: RSA, P-256, P-384, Ed25519".to_owned())?;
        let schemes = CURVES.into_iter().chain(RSA).filter(|scheme| key.choose_scheme(&[*scheme]).is_some()).collect();
        Ok(Arc::new(RingKey { key, schemes }))
    }
}

#[derive(Debug)]
struct RingKey {
    key: Arc<dyn SigningKey>,
    schemes: Vec<SignatureScheme>,
}

impl Signs for RingKey {
    fn schemes(&self) -> &[SignatureScheme] {
        &self.schemes
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.key.algorithm()
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        self.key.public_key()
    }

    fn sign(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Signed, Error> {
        let signer =
            self.key.choose_scheme(&[scheme]).ok_or_else(|| Error::General("not a scheme of the key".into()))?;
        Ok(Signed { signature: signer.sign(message)?, engine: "cpu", fallback: Some("key-type") })
    }
}

const RSA: [SignatureScheme; 6] = [
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
    SignatureScheme::RSA_PKCS1_SHA256,
    SignatureScheme::RSA_PKCS1_SHA384,
    SignatureScheme::RSA_PKCS1_SHA512,
];
const CURVES: [SignatureScheme; 3] =
    [SignatureScheme::ED25519, SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ECDSA_NISTP384_SHA384];

#[cfg(test)]
mod tests {
    use tokio_rustls::rustls::crypto::WebPkiSupportedAlgorithms;
    use tokio_rustls::rustls::pki_types::pem::PemObject;

    use super::*;
    use crate::crypto::Crypto;

    /// Every kind of key and scheme, against the verifiers of rustls, which are another library's.
    #[test]
    fn every_signature_is_good_and_counted_with_its_reason() {
        let engine = Crypto::default().engine(qat::Options { installed: None, ..qat::Options::default() });
        let engine = Offload::new(engine);
        let verifiers: WebPkiSupportedAlgorithms = ring::default_provider().signature_verification_algorithms;
        for (kind, args, schemes, reason) in [
            ("RSA", &["-pkeyopt", "rsa_keygen_bits:2048"][..], 6, "no-device"),
            ("EC", &["-pkeyopt", "ec_paramgen_curve:P-256"], 1, "no-device"),
            ("EC", &["-pkeyopt", "ec_paramgen_curve:P-384"], 1, "no-device"),
            ("ED25519", &[], 1, "key-type"),
        ] {
            let made = std::process::Command::new("openssl").args(["genpkey", "-algorithm", kind]).args(args).output();
            let pem = made.expect("openssl is not installed: `make packages` does it").stdout;
            let secret = PrivateKeyDer::from_pem_slice(&pem).unwrap();
            let signatures = Arc::new(Signatures::default());
            let key = Key::new(engine.take(&secret).unwrap(), Arc::clone(&signatures));
            let all = key.signs.schemes().to_vec();
            assert_eq!(all.len(), schemes, "{kind}");
            let spki = key.public_key().unwrap();
            // The bits of a SubjectPublicKeyInfo, as a verifier wants them.
            let public = crate::api::certificate::element(&spki, 0x30).unwrap().0;
            let (_algorithm, rest) = crate::api::certificate::element(public, 0x30).unwrap();
            let bits = &crate::api::certificate::element(rest, 0x03).unwrap().0[1..];
            for scheme in all {
                let signer = key.choose_scheme(&[scheme]).unwrap();
                let signature = signer.sign(b"a handshake").unwrap();
                let (_, verifiers) = verifiers.mapping.iter().find(|(known, _)| *known == scheme).unwrap();
                let good = |message: &[u8]| {
                    verifiers.iter().any(|verifier| verifier.verify_signature(bits, message, &signature).is_ok())
                };
                assert!(good(b"a handshake") && !good(b"another"), "{kind} {scheme:?}");
            }
            assert_eq!(signatures.counts(), BTreeMap::from([(("cpu", reason), u64::try_from(schemes).unwrap())]));
            assert!(key.choose_scheme(&[SignatureScheme::ECDSA_NISTP521_SHA512]).is_none());
        }
    }
}
