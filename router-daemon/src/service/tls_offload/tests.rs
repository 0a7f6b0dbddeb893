//! The service as a client and a backend see it, over loopback.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use config::model::{
    BackendBalance, BackendTls, ClientCertificates, Material, Rate, TlsBackend, TlsCertificate, TlsLimits, TlsVersion,
};
use config::units::Weight;
use qat_sim::{Fault, Simulator};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{
    AlertDescription, ClientConfig, ClientConnection, RootCertStore, ServerConfig, SignatureAlgorithm, SignatureScheme,
    SupportedProtocolVersion,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::crypto::signing::{Ring, Signed, Signs};
use crate::fixture;

#[tokio::test]
async fn each_name_has_its_certificate_and_bytes_pass_both_ways() {
    let site = Site::new(|site, offload| {
        offload.certificates =
            vec![site.certificate("shop", &["shop.example"], 2100), site.certificate("wild", &["*.lab.example"], 2100)];
        offload.alpn = vec!["h2".to_owned(), "http/1.1".to_owned()];
    })
    .await;
    let shown = |stream: &TlsStream<TcpStream>| stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let mut shop = site.connect("shop.example").await.unwrap();
    let wild = site.connect("mail.lab.example").await.unwrap();
    assert_eq!(shown(&shop), site.on_disk("shop"));
    assert_eq!(shown(&wild), site.on_disk("wild"));
    let bytes: Vec<u8> = (0..300_000_u32).flat_map(u32::to_be_bytes).collect();
    assert!(echo(&mut shop, &bytes).await.unwrap() == bytes);

    assert!(site.connect("elsewhere.test").await.is_err());
    assert!(site.connect("deep.mail.lab.example").await.is_err());
    let agreed = |wanted: &[&[u8]], config: &mut ClientConfig| {
        config.alpn_protocols = wanted.iter().map(|word| word.to_vec()).collect();
    };
    let stream = site.connect_as("shop.example", |config| agreed(&[b"http/1.1", b"h2"], config)).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    assert!(site.connect_as("shop.example", |config| agreed(&[b"smtp"], config)).await.is_err());
    drop((shop, wild, stream));

    let line = site.until("counts", |line| line.connections == 0 && line.refused.len() == 2).await;
    assert_eq!((line.refused["unknown-name"], line.refused["alpn"]), (2, 1));
    assert_eq!((line.received_bytes, line.sent_bytes), (1_200_000, 1_200_000));
    assert_eq!(line.signatures.iter().map(|count| count.count).sum::<u64>(), 3, "{:?}", line.signatures);
    assert_eq!((line.trouble, line.kernel_tls.as_str()), (None, "not used"));
}

#[tokio::test]
async fn versions_are_those_of_the_file_and_a_second_visit_needs_no_signature() {
    let site = Site::new(|_, _| {}).await;
    let config = Arc::new(site.client(&[&TLS13], None));
    let older = Arc::new(site.client(&[&TLS12], None));
    for config in [&config, &config, &older, &older] {
        // What resumes a session comes after the handshake.
        let mut stream = site.connect_with("shop.example", config).await.unwrap();
        assert_eq!(echo(&mut stream, b"hello").await.unwrap(), b"hello");
    }
    let line = site.line();
    let counts: Vec<_> =
        line.handshakes.iter().map(|count| (count.version.as_str(), count.kind.as_str(), count.count)).collect();
    assert_eq!(counts, [("1.2", "full", 1), ("1.2", "resumed", 1), ("1.3", "full", 1), ("1.3", "resumed", 1)]);
    assert_eq!(line.signatures.iter().map(|count| count.count).sum::<u64>(), 2);

    // Another file that says the same is no reason to forget it.
    site.write("shop", &["shop.example"], 2100);
    site.change(|offload| offload.limits.idle_timeout = Duration::from_secs(77)).await;
    let mut stream = site.connect_with("shop.example", &config).await.unwrap();
    echo(&mut stream, b"hello").await.unwrap();
    assert!(site.line().handshakes.iter().any(|count| (&*count.kind, count.count) == ("resumed", 2)));

    site.change(|offload| offload.versions = [TlsVersion::V13].into()).await;
    assert!(site.connect_with("shop.example", &older).await.is_err());
    assert_eq!(site.until("counted", |line| !line.refused.is_empty()).await.refused["incompatible"], 1);
}

#[tokio::test]
async fn a_backend_hears_who_the_client_is_and_shows_who_it_is() {
    let site = Site::new(|site, offload| {
        let (certificate, key) = site.authority.signed(&["inner.example"], "inner", true, 2100);
        let chain = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let tls = ServerConfig::builder().with_no_client_auth().with_single_cert(vec![chain], key).unwrap();
        let backend = Backing::start(Some(Arc::new(tls)));
        offload.backends = vec![TlsBackend { address: backend.address, weight: weight(1) }];
        offload.backend_tls = Some(BackendTls { ca: Some(site.path("ca.pem")), name: "inner.example".to_owned() });
        offload.proxy_protocol = true;
        site.backing.lock().unwrap().push(backend);
    })
    .await;
    let mut stream = site.connect("shop.example").await.unwrap();
    let own = stream.get_ref().0.local_addr().unwrap();
    assert_eq!(echo(&mut stream, b"hello").await.unwrap(), b"hello");
    let header = site.backing.lock().unwrap().last().unwrap().headers.lock().unwrap()[0].clone();
    assert_eq!(header[..14], *b"\r\n\r\n\0\r\nQUIT\n\x21\x11");
    assert_eq!(header[16..24], [127, 0, 0, 1, 127, 0, 0, 1]);
    assert_eq!(header[24..26], own.port().to_be_bytes());
    assert_eq!(header[26..28], site.address.port().to_be_bytes());
    let text = String::from_utf8_lossy(&header).into_owned();
    assert!(text.contains("shop.example") && text.contains("TLSv1.3"), "{text}");

    // One that cannot show who it is gets nothing of the client.
    site.change(|offload| offload.backend_tls.as_mut().unwrap().name = "other.example".to_owned()).await;
    let mut stream = site.connect("shop.example").await.unwrap();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0, "with a close_notify");
    let line = site.until("counted", |line| line.refused.contains_key("no-backend")).await;
    assert!(line.backends[0].trouble.as_ref().unwrap().contains("certificate"), "{:?}", line.backends);
}

#[tokio::test]
async fn without_a_good_certificate_of_its_own_a_client_is_refused() {
    let site = Site::new(|site, offload| {
        offload.clients = Some(ClientCertificates { ca: site.path("ca.pem"), required: true });
        offload.proxy_protocol = true;
        let backend = Backing::start_with_header();
        offload.backends = vec![TlsBackend { address: backend.address, weight: weight(1) }];
        site.backing.lock().unwrap().push(backend);
    })
    .await;
    let good = site.authority.signed(&[], "alice", false, 2100);
    let strangers = Authority::new();
    for (who, identity) in [
        ("nobody", None),
        ("a stranger", Some(strangers.signed(&[], "alice", false, 2100))),
        ("one of the past", Some(site.authority.signed(&[], "alice", false, 2001))),
        ("a server", Some(site.authority.signed(&[], "alice", true, 2100))),
    ] {
        let config = Arc::new(site.client(&[&TLS13, &TLS12], identity));
        let answered = async { echo(&mut site.connect_with("shop.example", &config).await?, b"x").await };
        assert!(answered.await.is_err(), "{who}");
    }
    let line = site.until("counts", |line| line.refused.values().sum::<u64>() == 4).await;
    assert_eq!(line.refused["client-certificate"], 4, "{:?}", line.refused);

    let config = Arc::new(site.client(&[&TLS13], Some(good)));
    for _ in 0..2 {
        let mut stream = site.connect_with("shop.example", &config).await.unwrap();
        assert_eq!(echo(&mut stream, b"hello").await.unwrap(), b"hello");
    }
    // Each time it is shown again.
    let line = site.line();
    assert!(line.handshakes.iter().all(|count| count.kind == "full"), "{:?}", line.handshakes);
    let header = site.backing.lock().unwrap().last().unwrap().headers.lock().unwrap()[0].clone();
    assert!(String::from_utf8_lossy(&header).ends_with("alice"));

    site.change(|offload| offload.clients.as_mut().unwrap().required = false).await;
    let mut stream = site.connect("shop.example").await.unwrap();
    assert_eq!(echo(&mut stream, b"hello").await.unwrap(), b"hello");
}

#[tokio::test]
async fn a_reload_loses_no_connection_and_a_file_that_is_wrong_changes_nothing() {
    let site = Site::new(|_, _| {}).await;
    let before = site.on_disk("shop");
    let shown = |stream: &TlsStream<TcpStream>| stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let mut first = site.connect("shop.example").await.unwrap();
    echo(&mut first, b"before").await.unwrap();

    // Renewed.
    site.write("shop", &["shop.example"], 2090);
    let renewed = site.on_disk("shop");
    let mut second = None;
    for _ in 0..200 {
        let stream = site.connect("shop.example").await.unwrap();
        if shown(&stream) == renewed {
            second = Some(stream);
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut second = second.expect("the renewed certificate is shown");
    assert_ne!(before, renewed);

    // Half of a renewal: the key does not belong to the certificate.
    fs::write(site.path("shop.pem"), site.authority.signed(&["shop.example"], "shop", true, 2080).0).unwrap();
    let line = site.until("told", |line| line.trouble.is_some()).await;
    assert!(line.trouble.unwrap().contains("cannot be used together"));
    assert_eq!(shown(&site.connect("shop.example").await.unwrap()), renewed);
    site.write("shop", &["shop.example"], 2085);
    site.until("as the files are", |line| line.trouble.is_none()).await;

    // Another config: the same socket, and whoever is there stays.
    site.change(|offload| offload.alpn = vec!["h2".to_owned()]).await;
    site.change(|offload| offload.limits.drain = Duration::ZERO).await;
    for stream in [&mut first, &mut second] {
        assert_eq!(echo(stream, b"after").await.unwrap(), b"after");
    }
    assert_eq!(site.line().refused, BTreeMap::new());

    // Whom nobody knows any more is let go after its time, which began with other terms.
    site.change(|offload| offload.limits.drain = Duration::from_millis(100)).await;
    let mut last = site.connect("shop.example").await.unwrap();
    echo(&mut last, b"last").await.unwrap();
    site.config.send_replace(Some(Arc::new(fixture::config())));
    assert_eq!(last.read(&mut [0; 8]).await.unwrap_or(0), 0);
    assert!(TcpStream::connect(site.address).await.is_err());
    assert_eq!(site.offloads.lines(), []);
}

#[tokio::test]
async fn another_authority_of_clients_ends_who_the_old_one_let_in() {
    let site = Site::new(|site, offload| {
        offload.clients = Some(ClientCertificates { ca: site.path("ca.pem"), required: true });
        offload.limits.drain = Duration::from_millis(100);
    })
    .await;
    let config = Arc::new(site.client(&[&TLS13], Some(site.authority.signed(&[], "alice", false, 2100))));
    let mut stream = site.connect_with("shop.example", &config).await.unwrap();
    echo(&mut stream, b"hello").await.unwrap();
    let other = Authority::new();
    fs::write(site.path("others.pem"), other.0.pem()).unwrap();
    site.change(|offload| offload.clients.as_mut().unwrap().ca = site.path("others.pem")).await;
    let ended = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 8])).await.unwrap();
    assert_eq!(ended.unwrap_or(0), 0);
}

#[tokio::test]
async fn who_sends_nothing_or_half_of_a_handshake_is_ended_in_time() {
    let site = Site::new(|_, offload| offload.limits.handshake_timeout = Duration::from_millis(300)).await;
    let mut silent = TcpStream::connect(site.address).await.unwrap();
    let mut half = TcpStream::connect(site.address).await.unwrap();
    half.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await.unwrap();
    let mut slow = TcpStream::connect(site.address).await.unwrap();
    let began = Instant::now();
    let drip = async {
        for byte in b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".iter().cycle() {
            if slow.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let ended = async |stream: &mut TcpStream| stream.read(&mut [0; 8]).await.unwrap_or(0) == 0;
    let (one, other, ()) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(ended(&mut silent), ended(&mut half), drip) })
            .await
            .unwrap();
    assert!(one && other && began.elapsed() >= Duration::from_millis(300));
    let line = site.until("counted", |line| line.refused.values().sum::<u64>() == 3 && line.connections == 0).await;
    assert!(line.refused.contains_key("timeout"), "{:?}", line.refused);
    // What is no TLS at all is not waited for.
    let mut plain = TcpStream::connect(site.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut alert = Vec::new();
    plain.read_to_end(&mut alert).await.ok();
    assert!(
        site.until("counted", |line| line.refused.contains_key("malformed") && line.connections == 0).await.connections
            == 0
    );
}

#[tokio::test]
async fn ten_times_the_rate_of_handshakes_is_held_to_the_rate() {
    let site = Site::new(|_, offload| offload.limits.handshakes = Rate { per_second: 20, burst: 20 }).await;
    let mut there = site.connect("shop.example").await.unwrap();
    let began = Instant::now();
    let (mut good, mut bad) = (0_u32, 0_u32);
    for _ in 0..400 {
        match site.connect("shop.example").await {
            Ok(_) => good += 1,
            Err(_) => bad += 1,
        }
    }
    let most = 20.0 + 20.0 * began.elapsed().as_secs_f64() + 1.0;
    assert!(f64::from(good) <= most, "{good} of at most {most}");
    assert!(good >= 19 && bad > 0, "{good} and {bad}");
    let line = site.line();
    assert_eq!(line.refused["handshake-rate"], u64::from(bad));
    assert_eq!(line.accepted, u64::from(good) + 1);
    assert_eq!(echo(&mut there, b"unharmed").await.unwrap(), b"unharmed");
}

#[tokio::test]
async fn many_signatures_are_in_flight_and_hold_up_no_bytes() {
    let site = Site::with_engine(|_| Arc::new(Slow), |_, _| {}).await;
    let mut there = site.connect("shop.example").await.unwrap();
    let connects = futures_util::future::join_all((0..16).map(|_| site.connect("shop.example")));
    let echoes = async {
        let mut count = 0;
        while Slow::most() < LEAST_HANDSHAKES || Slow::now() > 0 {
            assert_eq!(echo(&mut there, b"unharmed").await.unwrap(), b"unharmed");
            count += usize::from(Slow::now() > 0);
        }
        count
    };
    let (connected, echoed) = tokio::time::timeout(PATIENCE, async { tokio::join!(connects, echoes) }).await.unwrap();
    assert!(connected.iter().all(Result::is_ok));
    assert!(echoed > 3, "{echoed} while signatures were made");
    let line = site.line();
    assert_eq!(line.signatures.iter().map(|count| (&*count.engine, count.count)).collect::<Vec<_>>(), [("slow", 17)]);
}

#[tokio::test]
async fn the_service_can_be_let_go_of_where_nothing_may_wait() {
    let service = Service::new(Offloads::default(), Places::default(), Arc::new(Slow)).unwrap();
    drop(service);
}

#[tokio::test]
async fn beyond_the_limit_the_newcomer_is_refused() {
    let site = Site::new(|_, offload| offload.limits.connections = 3).await;
    let mut there = Vec::new();
    for _ in 0..3 {
        there.push(site.connect("shop.example").await.unwrap());
    }
    assert!(site.connect("shop.example").await.is_err());
    for stream in &mut there {
        assert_eq!(echo(stream, b"unharmed").await.unwrap(), b"unharmed");
    }
    assert_eq!(site.line().refused["connections"], 1);
    there.pop();
    site.until("room", |line| line.connections == 2).await;
    assert!(site.connect("shop.example").await.is_ok());
}

#[tokio::test]
async fn who_moves_nothing_for_its_time_is_ended() {
    let site = Site::new(|_, offload| offload.limits.idle_timeout = Duration::from_secs(1)).await;
    let mut stream = site.connect("shop.example").await.unwrap();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(echo(&mut stream, b"tick").await.unwrap(), b"tick");
    }
    // With a close_notify: without one this is an error.
    let ended = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 8])).await.unwrap();
    assert_eq!(ended.unwrap(), 0);
}

#[tokio::test]
async fn each_side_hears_that_the_other_is_done_after_all_that_was_said_before() {
    let site = Site::new(|_, _| {}).await;
    for version in [&TLS12, &TLS13] {
        let config = Arc::new(site.client(&[version], None));
        let stream = site.connect_with("shop.example", &config).await.unwrap();
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (bytes, mut back) = (vec![7; 300_000], Vec::new());
        let said = async {
            writer.write_all(&bytes).await?;
            writer.shutdown().await
        };
        // The backend ends when it hears that the client is done. An end without a close_notify is an error to rustls.
        let both = async { tokio::try_join!(said, reader.read_to_end(&mut back)) };
        tokio::time::timeout(PATIENCE, both).await.unwrap().unwrap();
        assert!(back == bytes, "{} of {}", back.len(), bytes.len());
    }
}

#[tokio::test]
async fn an_alert_arrives_however_much_its_reader_has_sent_that_nobody_wants() {
    let site = Site::new(|_, _| {}).await;
    // To close while something is unread would be to reset the connection, and with it the alert.
    let config = Arc::new(site.client(&[&TLS13], None));
    let mut hello = Vec::new();
    let mut client = ClientConnection::new(config, ServerName::try_from("elsewhere.test").unwrap()).unwrap();
    client.write_tls(&mut hello).unwrap();
    hello.resize(hello.len() + 100_000, 0x16);
    let mut stream = TcpStream::connect(site.address).await.unwrap();
    stream.write_all(&hello).await.unwrap();
    let mut told = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut told)).await.unwrap().unwrap();
    assert_eq!(told, [21, 3, 3, 0, 2, 2, 112], "unrecognized_name");

    let mut stream = site.connect("shop.example").await.unwrap();
    let forged = [&[23, 3, 3, 0, 64][..], &[0; 64]].concat().repeat(1_500);
    stream.get_mut().0.write_all(&forged).await.unwrap();
    let error = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 8])).await.unwrap().unwrap_err();
    let told = error.get_ref().and_then(|inner| inner.downcast_ref::<tokio_rustls::rustls::Error>());
    let wanted = tokio_rustls::rustls::Error::AlertReceived(AlertDescription::BadRecordMac);
    assert_eq!(told, Some(&wanted), "{error}");
}

#[tokio::test]
async fn a_backend_that_is_gone_gets_nobody_until_it_is_back() {
    let other = Mutex::new(None);
    let site = Site::new(|_, offload| {
        let backend = Backing::start(None);
        offload.backends.push(TlsBackend { address: backend.address, weight: weight(1) });
        *other.lock().unwrap() = Some(backend);
        offload.balance = BackendBalance::RoundRobin;
        offload.health = BackendHealth { interval: Duration::from_millis(100), rise: 2, fall: 2, ..offload.health };
    })
    .await;
    for _ in 0..4 {
        let mut stream = site.connect("shop.example").await.unwrap();
        echo(&mut stream, b"hello").await.unwrap();
    }
    assert_eq!(site.line().backends.iter().map(|backend| backend.served).collect::<Vec<_>>(), [2, 2]);
    let gone = other.lock().unwrap().take().unwrap();
    let address = gone.address;
    drop(gone);
    // Before a check has noticed, a client is served by the other one.
    for _ in 0..4 {
        let mut stream = site.connect("shop.example").await.unwrap();
        assert_eq!(echo(&mut stream, b"hello").await.unwrap(), b"hello");
    }
    let at = |line: &OffloadLine| line.backends.iter().find(|one| one.address == address.to_string()).cloned().unwrap();
    let down = site.until("down", |line| !at(line).up).await;
    assert!(at(&down).trouble.unwrap().contains("refused"));
    site.backing.lock().unwrap().clear();
    site.until("all down", |line| line.backends.iter().all(|backend| !backend.up)).await;
    assert!(site.connect("shop.example").await.is_err());
    assert!(site.line().refused["no-backend"] >= 1);
    let _back = Backing::start_at(address, None, false);
    site.until("back", |line| at(line).up).await;
    let mut stream = site.connect("shop.example").await.unwrap();
    assert_eq!(echo(&mut stream, b"hello").await.unwrap(), b"hello");
}

#[tokio::test]
async fn keys_may_be_credentials_and_what_is_in_the_way_is_told_and_tried_again() {
    let site = Site::new(|site, offload| {
        offload.certificates[0].key = Material::Credential("shop.key".to_owned());
        fs::rename(site.path("shop.key"), site.path("away.key")).unwrap();
    })
    .await;
    let line = site.until("told", |line| line.trouble.is_some()).await;
    assert!(line.trouble.unwrap().contains("shop.key cannot be read"));
    // Whoever connects is not left waiting.
    assert!(site.connect("shop.example").await.is_err());
    fs::rename(site.path("away.key"), site.path("shop.key")).unwrap();
    site.until("found", |line| line.trouble.is_none()).await;
    assert!(site.connect("shop.example").await.is_ok());
    fs::set_permissions(site.path("shop.key"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let line = site.until("told", |line| line.trouble.is_some()).await;
    assert!(line.trouble.unwrap().contains("`chmod 600 /"));
    // What was loaded before is good.
    assert!(site.connect("shop.example").await.is_ok());
}

#[tokio::test]
async fn an_expired_certificate_is_told_and_a_client_refuses_it() {
    let site = Site::new(|site, offload| {
        offload.certificates = vec![site.certificate("old", &["shop.example"], 2001)];
    })
    .await;
    assert!(site.connect("shop.example").await.is_err());
    let line = site.until("counted", |line| !line.refused.is_empty()).await;
    assert_eq!(line.refused.keys().collect::<Vec<_>>(), ["alert"]);
    assert_eq!((line.certificates[0].expired, line.certificates[0].expires), (true, Some(978_307_200)));
}

#[tokio::test(flavor = "multi_thread")]
async fn openssl_and_curl_are_served() {
    let site = Site::new(|site, offload| {
        // RFC 6960: successful, and nothing more. What it says is between the authority and the client.
        fs::write(site.path("shop.ocsp"), [0x30, 3, 0x0a, 1, 0]).unwrap();
        offload.certificates[0].ocsp = Some(site.path("shop.ocsp"));
        let backend = Backing::http();
        offload.backends = vec![TlsBackend { address: backend.address, weight: weight(1) }];
        site.backing.lock().unwrap().push(backend);
    })
    .await;
    let (to, ca) = (site.address.to_string(), site.path("ca.pem"));
    let openssl = |more: &[&str]| {
        let mut child = Command::new("openssl")
            .args(["s_client", "-connect", &to, "-servername", "shop.example", "-verify_return_error", "-CAfile"])
            .arg(&ca)
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("openssl is not installed: `make packages` does it");
        child.stdin.take().unwrap().write_all(b"Q\n").unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    for (version, word) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let (good, told) = openssl(&[version, "-status"]);
        assert!(good && told.contains(word) && told.contains("Verify return code: 0 (ok)"), "{told}");
        assert!(told.contains("OCSP response:") && !told.contains("no response sent"), "{told}");
    }
    for refused in [
        &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"][..],
        &["-tls1_2", "-cipher", "AES128-SHA"],
        &["-tls1_2", "-fallback_scsv"],
    ] {
        let (good, told) = openssl(refused);
        assert!(!good, "{told}");
    }
    let curl = Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20", "--cacert"])
        .arg(&ca)
        .args(["--resolve", &format!("shop.example:{}:127.0.0.1", site.address.port())])
        .arg(format!("https://shop.example:{}/", site.address.port()))
        .output()
        .expect("curl is not installed: `make packages` does it");
    assert_eq!((String::from_utf8_lossy(&curl.stdout).as_ref(), curl.status.success()), ("behind\n", true), "{curl:?}");
}

#[test]
fn connections_leave_descriptors_for_everything_else() {
    for (descriptors, wanted) in [(1_024, 256), (2_048, 512), (20_000, 9_488), (1 << 20, 523_776), (0, 0)] {
        assert_eq!(connections(descriptors), wanted, "of {descriptors}");
    }
    assert_eq!(connections(u64::MAX), Semaphore::MAX_PERMITS);
}

#[tokio::test]
async fn without_an_offload_there_is_no_engine_once_the_last_connection_is_over() {
    let site = Site::new(|_, _| {}).await;
    let mut stream = site.connect("shop.example").await.unwrap();
    assert_eq!(echo(&mut stream, b"hello").await.unwrap(), b"hello");
    let status = site.crypto.status().unwrap();
    assert_eq!(status.missing.as_deref(), Some("library: not asked for by the configuration"));
    assert_eq!(status.done(), (0, 0, 1));

    let before = site.config.send_replace(Some(Arc::new(fixture::config())));
    eventually("the listener is gone", async || TcpStream::connect(site.address).await.is_err()).await;
    // It is drained, and would be for half a minute.
    tokio::time::sleep(LOOK_AGAIN + Duration::from_millis(500)).await;
    assert!(echo(&mut stream, b"hello").await.is_ok() && site.crypto.status().is_some());
    drop(stream);
    eventually("the engine has ended", async || site.crypto.status().is_none()).await;

    site.config.send_replace(before);
    eventually("it is there again", async || site.connect("shop.example").await.is_ok()).await;
}

/// The whole way: rustls, the threads of handshakes, the engine, and a device of the simulator that does what devices do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_handshake_fails_whatever_the_device_does() {
    let site = Site::with_engine(simulated, |site, offload| {
        // The threads of handshakes give way to everything else that a busy machine does.
        offload.limits.handshake_timeout = PATIENCE;
        site.write_with("rsa", &["rsa.example"], 2100, &rsa());
        offload.certificates.push(TlsCertificate {
            names: ["rsa.example".to_owned()].into(),
            certificate: Material::File(site.path("rsa.pem")),
            key: Material::File(site.path("rsa.key")),
            ocsp: None,
        });
    })
    .await;
    let simulator = simulator();
    let client = |version: &'static SupportedProtocolVersion| {
        let mut config = site.client(&[version], None);
        config.resumption = Resumption::disabled();
        Arc::new(config)
    };
    let (modern, older) = (client(&TLS13), client(&TLS12));
    let mut made = 0;
    for (what, faults, reasons) in [
        ("nothing", &[][..], &[][..]),
        ("latency", &[(Fault::Latency, 2_000), (Fault::Jitter, 3_000)], &[]),
        ("retry", &[(Fault::Retry, 1000)], &["busy"]),
        ("drop", &[(Fault::Drop, 300)], &["deadline"]),
        ("corrupt", &[(Fault::Corrupt, 300)], &["wrong-answer"]),
        ("fail", &[(Fault::Fail, 300)], &["failed"]),
        ("hang", &[(Fault::Hang, 7)], &["deadline"]),
        ("reset", &[], &[]),
        ("all of it", &[(Fault::Retry, 200), (Fault::Drop, 50), (Fault::Corrupt, 50), (Fault::Fail, 50)], &[]),
    ] {
        simulator.behave();
        // What the faults before it have made of the instances is over.
        for _ in 0..200 {
            let before = from_the_device(&site);
            site.connect_with("rsa.example", &modern).await.unwrap();
            made += 1;
            if from_the_device(&site) > before {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for (fault, value) in faults {
            simulator.set(*fault, *value);
        }
        let each = (0..48).map(|number| {
            let name = ["rsa.example", "shop.example"][number % 2];
            let config = if number % 4 < 2 { &modern } else { &older };
            if what == "reset" && number % 8 == 0 {
                simulator.reset(u32::try_from(number / 8 % 3).unwrap());
            }
            async {
                let began = Instant::now();
                let mut stream =
                    site.connect_with(name, config).await.unwrap_or_else(|error| panic!("{what}: {error}"));
                let shaken = began.elapsed();
                let echoed = echo(&mut stream, b"hello").await;
                let echoed = echoed.unwrap_or_else(|error| panic!("{what}: echo: {error}: {:?}", site.line()));
                assert_eq!(echoed, b"hello", "{what}");
                shaken
            }
        });
        let shaken = futures_util::future::join_all(each).await;
        println!("{what}: the slowest of 48 handshakes at once took {:?}", shaken.iter().max().unwrap());
        made += 48;
        let line = site.line();
        for reason in reasons {
            assert!(line.signatures.iter().any(|count| count.fallback == *reason), "{what}: {:?}", line.signatures);
        }
        assert_eq!(line.refused, BTreeMap::new(), "{what}");
    }
    simulator.behave();
    let line = site.line();
    assert_eq!(line.signatures.iter().map(|count| count.count).sum::<u64>(), made, "{:?}", line.signatures);
    assert!(from_the_device(&site) >= 48, "{:?}", line.signatures);
    assert_eq!(simulator.violations(), []);
}

fn from_the_device(site: &Site) -> u64 {
    let line = site.line();
    line.signatures.iter().filter(|count| count.engine == "qat").map(|count| count.count).sum()
}

fn simulator() -> &'static Simulator {
    static SIMULATOR: OnceLock<Simulator> = OnceLock::new();
    SIMULATOR.get_or_init(Simulator::fresh)
}

/// An engine that gives everything to the simulator, and whose pauses are short.
fn simulated(crypto: &Crypto) -> Arc<dyn Engine> {
    let simulator = simulator();
    simulator.behave();
    let options = qat::Options {
        installed: Some(qat::Installed::At(simulator.path().to_owned())),
        route: qat::Route::Device,
        least_deadline: Duration::from_millis(20),
        patience: qat::Patience {
            strikes: 5,
            within: Duration::from_secs(1),
            pause: Duration::from_millis(5),
            longest: Duration::from_millis(40),
            restart: Duration::from_millis(500),
        },
        test_deadline: Duration::from_millis(500),
        stuck: Duration::from_millis(200),
        between_resets: Duration::from_millis(200),
        retest: Duration::from_millis(50),
        tick: Duration::from_millis(2),
        multibuffer: None,
        ..qat::Options::default()
    };
    Arc::new(Offload::new(crypto.engine(options)))
}

fn rsa() -> KeyPair {
    let made = Command::new("openssl")
        .args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"])
        .output()
        .expect("openssl is not installed: `make packages` does it");
    KeyPair::from_pem(std::str::from_utf8(&made.stdout).unwrap()).unwrap()
}

/// Signs as a device does that takes its time.
#[derive(Debug)]
struct Slow;

static IN_FLIGHT: AtomicUsize = AtomicUsize::new(0);
static MOST_IN_FLIGHT: AtomicUsize = AtomicUsize::new(0);

impl Slow {
    fn now() -> usize {
        IN_FLIGHT.load(Ordering::SeqCst)
    }

    fn most() -> usize {
        MOST_IN_FLIGHT.load(Ordering::SeqCst)
    }
}

impl Engine for Slow {
    fn take(&self, key: &PrivateKeyDer<'static>) -> Result<Arc<dyn Signs>, String> {
        Ok(Arc::new(SlowKey(Ring.take(key)?)))
    }
}

#[derive(Debug)]
struct SlowKey(Arc<dyn Signs>);

impl Signs for SlowKey {
    fn schemes(&self) -> &[SignatureScheme] {
        self.0.schemes()
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.0.algorithm()
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        self.0.public_key()
    }

    fn sign(&self, scheme: SignatureScheme, message: &[u8]) -> Result<Signed, tokio_rustls::rustls::Error> {
        MOST_IN_FLIGHT.fetch_max(IN_FLIGHT.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        thread::sleep(Duration::from_millis(200));
        IN_FLIGHT.fetch_sub(1, Ordering::SeqCst);
        Ok(Signed { engine: "slow", fallback: None, ..self.0.sign(scheme, message)? })
    }
}

/// What is there: files, a backend that gives back what it gets, and the service.
struct Site {
    authority: Authority,
    folder: TempDir,
    address: SocketAddr,
    config: watch::Sender<Option<Arc<Config>>>,
    offloads: Offloads,
    crypto: Crypto,
    backing: Mutex<Vec<Backing>>,
}

impl Site {
    async fn new(adapt: impl FnOnce(&Self, &mut TlsOffload)) -> Self {
        let engine = |crypto: &Crypto| -> Arc<dyn Engine> {
            let options = qat::Options { installed: None, ..qat::Options::default() };
            Arc::new(Offload::new(crypto.engine(options)))
        };
        Self::with_engine(engine, adapt).await
    }

    async fn with_engine(engine: fn(&Crypto) -> Arc<dyn Engine>, adapt: impl FnOnce(&Self, &mut TlsOffload)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (config, receiver) = watch::channel(None);
        let backing = Backing::start(None);
        let backend = TlsBackend { address: backing.address, weight: weight(1) };
        let site = Self {
            authority: Authority::new(),
            folder,
            address,
            config,
            offloads: Offloads::default(),
            crypto: Crypto::default(),
            backing: Mutex::new(vec![backing]),
        };
        fs::write(site.path("ca.pem"), site.authority.0.pem()).unwrap();
        let mut offload = TlsOffload {
            name: "shop".parse().unwrap(),
            listen: vec![address],
            from: ["office".parse().unwrap()].into(),
            open_to_wan: std::collections::BTreeSet::new(),
            certificates: vec![site.certificate("shop", &["shop.example"], 2100)],
            versions: [TlsVersion::V12, TlsVersion::V13].into(),
            alpn: Vec::new(),
            clients: None,
            backends: vec![backend],
            balance: BackendBalance::LeastConnections,
            proxy_protocol: false,
            backend_tls: None,
            health: BackendHealth::default(),
            limits: TlsLimits { handshakes: Rate { per_second: 1000, burst: 1000 }, ..TlsLimits::default() },
            line: Line(1),
        };
        adapt(&site, &mut offload);
        let places = Places { credentials: Some(site.folder.path().into()) };
        let crypto = site.crypto.clone();
        start_with(receiver, site.offloads.clone(), places, move || engine(&crypto)).unwrap();
        site.put(offload);
        site.until("listening", |line| line.listen.iter().all(|listen| listen.trouble.is_none())).await;
        site
    }

    fn put(&self, offload: TlsOffload) {
        let tls_offload = BTreeMap::from([(offload.name.clone(), offload)]);
        self.config.send_replace(Some(Arc::new(Config { tls_offload, ..fixture::config() })));
    }

    /// Until the service has followed.
    async fn change(&self, change: impl FnOnce(&mut TlsOffload)) {
        let before = self.config.borrow().clone().unwrap();
        let mut offload = before.tls_offload.values().next().unwrap().clone();
        change(&mut offload);
        // A limit that shows that the change has been seen.
        let most = self.line().connections_limit + 1;
        offload.limits.connections = most;
        self.put(offload);
        self.until("the change is in force", |line| line.connections_limit == most).await;
    }

    fn line(&self) -> OffloadLine {
        self.offloads.lines().into_iter().next().unwrap_or_default()
    }

    async fn until(&self, what: &str, is: impl Fn(&OffloadLine) -> bool) -> OffloadLine {
        let began = Instant::now();
        loop {
            match self.offloads.lines().into_iter().next() {
                Some(line) if !line.listen.is_empty() && is(&line) => return line,
                line => assert!(began.elapsed() < PATIENCE, "{what}: {line:?}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, names: &[&str], until: i32) {
        self.write_with(name, names, until, &KeyPair::generate().unwrap());
    }

    fn write_with(&self, name: &str, names: &[&str], until: i32, key: &KeyPair) {
        let (certificate, key) = self.authority.signed_with(names, name, true, until, key);
        let put = |path: PathBuf, text: &str| {
            let whole = path.with_extension("part");
            let mut file =
                fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&whole).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            fs::rename(whole, path).unwrap();
        };
        put(self.path(&format!("{name}.key")), &key);
        put(self.path(&format!("{name}.pem")), &certificate);
    }

    fn certificate(&self, name: &str, names: &[&str], until: i32) -> TlsCertificate {
        self.write(name, names, until);
        TlsCertificate {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            certificate: Material::File(self.path(&format!("{name}.pem"))),
            key: Material::File(self.path(&format!("{name}.key"))),
            ocsp: None,
        }
    }

    fn on_disk(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path(&format!("{name}.pem"))).unwrap()
    }

    fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        identity: Option<(String, String)>,
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.0.pem().as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_protocol_versions(versions).with_root_certificates(roots);
        match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        }
    }

    async fn connect(&self, name: &str) -> io::Result<TlsStream<TcpStream>> {
        self.connect_as(name, |_| {}).await
    }

    async fn connect_as(&self, name: &str, adapt: impl FnOnce(&mut ClientConfig)) -> io::Result<TlsStream<TcpStream>> {
        let mut config = self.client(&[&TLS13, &TLS12], None);
        adapt(&mut config);
        self.connect_with(name, &Arc::new(config)).await
    }

    async fn connect_with(&self, name: &str, config: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        tokio::time::timeout(PATIENCE, TlsConnector::from(Arc::clone(config)).connect(name, stream)).await.unwrap()
    }
}

async fn eventually(what: &str, is: impl AsyncFn() -> bool) {
    let began = Instant::now();
    while !is().await {
        assert!(began.elapsed() < PATIENCE, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What comes back for this.
async fn echo(stream: &mut TlsStream<TcpStream>, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut back = vec![0; bytes.len()];
    let (mut reader, mut writer) = tokio::io::split(stream);
    let both = async {
        tokio::try_join!(
            async {
                writer.write_all(bytes).await?;
                writer.flush().await
            },
            async { reader.read_exact(&mut back).await }
        )
    };
    tokio::time::timeout(PATIENCE, both).await.unwrap()?;
    Ok(back)
}

/// A backend, until it is dropped: it gives back what it gets.
struct Backing {
    address: SocketAddr,
    /// What the PROXY protocol said, for each connection.
    headers: Arc<Mutex<Vec<Vec<u8>>>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Backing {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Backing {
    fn start(tls: Option<Arc<ServerConfig>>) -> Self {
        let header = tls.is_some();
        Self::start_at(([127, 0, 0, 1], 0).into(), tls, header)
    }

    fn start_with_header() -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into(), None, true)
    }

    fn start_at(address: SocketAddr, tls: Option<Arc<ServerConfig>>, header: bool) -> Self {
        Self::run(address, move |mut stream, headers| {
            let tls = tls.clone();
            async move {
                if header {
                    let mut fixed = [0; 16];
                    stream.read_exact(&mut fixed).await?;
                    let mut rest = vec![0; usize::from(u16::from_be_bytes([fixed[14], fixed[15]]))];
                    stream.read_exact(&mut rest).await?;
                    headers.lock().unwrap().push([&fixed[..], &rest].concat());
                }
                match tls {
                    None => {
                        let (mut reader, mut writer) = stream.split();
                        tokio::io::copy(&mut reader, &mut writer).await.map(drop)
                    }
                    Some(tls) => {
                        let (mut reader, mut writer) = tokio::io::split(TlsAcceptor::from(tls).accept(stream).await?);
                        tokio::io::copy(&mut reader, &mut writer).await.map(drop)
                    }
                }
            }
        })
    }

    fn http() -> Self {
        Self::run(([127, 0, 0, 1], 0).into(), |mut stream, _| async move {
            let mut asked = Vec::new();
            while !asked.ends_with(b"\r\n\r\n") {
                asked.push(stream.read_u8().await?);
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\nbehind\n").await
        })
    }

    fn run<F: Future<Output = io::Result<()>> + Send + 'static>(
        address: SocketAddr,
        serve: impl Fn(TcpStream, Arc<Mutex<Vec<Vec<u8>>>>) -> F + Send + 'static,
    ) -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let _inside = runtime.enter();
        let listener = bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let headers = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&headers);
        runtime.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, Arc::clone(&told)));
            }
        });
        Self { address, headers, runtime: Some(runtime) }
    }
}

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// A certificate and its key, in PEM.
    fn signed(&self, names: &[&str], cn: &str, server: bool, until: i32) -> (String, String) {
        self.signed_with(names, cn, server, until, &KeyPair::generate().unwrap())
    }

    fn signed_with(&self, names: &[&str], cn: &str, server: bool, until: i32, key: &KeyPair) -> (String, String) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, cn);
        let usage = if server { ExtendedKeyUsagePurpose::ServerAuth } else { ExtendedKeyUsagePurpose::ClientAuth };
        params.extended_key_usages = vec![usage];
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        (params.signed_by(key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

fn weight(weight: u8) -> Weight {
    Weight(weight.try_into().unwrap())
}

const PATIENCE: Duration = Duration::from_secs(20);
