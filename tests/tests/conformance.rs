//! Clients that are not ours, good and bad, at a `[[tls_offload]]` of a router at work. What each of the conversations of
//! `tests/conformance/converse.py` has to end with stands in `tests/conformance/verdicts.txt`.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "test code; clippy knows only the test functions")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use tests::failover;
use tests::lab::Temporary;
use tests::netns::{Netns, run};
use tests::tls::{Authority, KeyKind, Wanted, first, offload, web};
use tests::watch::{status, wait};

#[test]
fn every_conversation_ends_as_the_table_says() {
    let Some(site) = Site::up() else { return };
    let converse = here("converse.py");
    let output = site
        .inside
        .command(python())
        .arg(converse)
        .arg(site.address.to_string())
        .arg(&site.folder)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", output.status);
    let told: BTreeMap<String, String> = serde_json::from_slice(&output.stdout).unwrap();
    let table = fs::read_to_string(here("verdicts.txt")).unwrap();
    let wanted: BTreeMap<_, _> = table
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once(" => ").expect("a line of verdicts.txt has a => in it"))
        .collect();
    let mut wrong = String::new();
    for name in told.keys().map(String::as_str).chain(wanted.keys().copied()).collect::<BTreeSet<_>>() {
        let (is, ought) = (told.get(name).map(String::as_str), wanted.get(name).copied());
        if is != ought {
            let (is, ought) = (is.unwrap_or("is not had"), ought.unwrap_or("not in the table"));
            writeln!(wrong, "{name} => {is}\n    and not: {ought}").unwrap();
        }
    }
    println!("{} conversations", told.len());
    assert!(wrong.is_empty(), "of {} conversations, these ended otherwise:\n{wrong}", told.len());
    site.is_well();
}

#[test]
fn openssl_takes_every_suite_that_is_offered_and_no_other() {
    let Some(site) = Site::up() else { return };
    for (version, suites) in [("-tls1_2", &SUITES12[..]), ("-tls1_3", &SUITES13)] {
        for (name, suite) in suites {
            let option = if version == "-tls1_2" { "-cipher" } else { "-ciphersuites" };
            for address in [site.address, site.address6] {
                let to = SocketAddr::new(address, SHOP);
                let (told, echoed) = site.s_client(to, &[version, option, suite, "-servername", name]);
                assert!(echoed && told.contains("Verify return code: 0 (ok)"), "{suite} at {to}: {told}");
                assert!(told.contains(suite), "{suite}: {told}");
            }
        }
    }
    let to = SocketAddr::new(site.address, SHOP);
    for refused in [
        &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"][..],
        &["-tls1", "-cipher", "ALL:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "AES128-SHA"],
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA256"],
        &["-tls1_3", "-ciphersuites", "TLS_AES_128_CCM_SHA256"],
        &["-servername", "elsewhere.test"],
    ] {
        let (told, echoed) = site.s_client(to, refused);
        assert!(!echoed, "{told}");
    }
    // Each key exchange of ours, and a client that has to ask again with another.
    for groups in ["X25519", "P-256", "P-384", "P-521:P-384"] {
        let (told, echoed) = site.s_client(to, &["-groups", groups, "-servername", NAME]);
        assert!(echoed, "{groups}: {told}");
    }
    let member = |name: &str| [".pem", ".key"].map(|end| site.folder.join(name.to_owned() + end).display().to_string());
    let members = SocketAddr::new(site.address, MEMBERS);
    for (who, welcome) in [("alice", true), ("alice-rsa", true), ("alice-p384", true), ("stranger", false)] {
        let [certificate, key] = member(who);
        let (told, echoed) = site.s_client(members, &["-cert", &certificate, "-key", &key, "-servername", NAME]);
        assert_eq!(echoed, welcome, "{who}: {told}");
    }
    site.is_well();
}

#[test]
fn curl_speaks_http_1_and_2_over_both_families() {
    let Some(site) = Site::up() else { return };
    for address in [site.address, site.address6] {
        for (option, wanted) in [("--http1.1", "http/1.1"), ("--http2", "h2")] {
            for version in [&["--tlsv1.2", "--tls-max", "1.2"][..], &["--tlsv1.3"]] {
                let at = SocketAddr::new(address, WEB);
                let mut curl = site.inside.command("curl");
                curl.args(["--silent", "--show-error", "--max-time", "20", option, "--cacert"])
                    .arg(site.folder.join("ca.pem"))
                    .args(["--connect-to", &format!("{NAME}:{WEB}:{}:{WEB}", at_host(at))])
                    .args(version)
                    .args(["--write-out", "%{http_version} %{ssl_verify_result}"])
                    .arg(format!("https://{NAME}:{WEB}/"));
                let told = run(&mut curl).unwrap();
                assert!(told.contains(&format!("asked by {wanted}<")), "{at} {option}: {told}");
                assert!(told.ends_with(if wanted == "h2" { "2 0" } else { "1.1 0" }), "{at} {option}: {told}");
            }
        }
    }
    site.is_well();
}

#[test]
fn sslscan_finds_nothing_weak() {
    let Some(site) = Site::up() else { return };
    for (name, kind) in [(NAME, "ECDSA"), (RSA_NAME, "RSA")] {
        let mut sslscan = site.inside.command("sslscan");
        sslscan.args(["--xml=-", "--no-colour", &format!("--sni-name={name}")]);
        let xml = run(sslscan.arg(SocketAddr::new(site.address, SHOP).to_string())).unwrap();
        let elements = elements(&xml);
        let of = |tag: &str| {
            elements.iter().filter(|element| element.0 == tag).map(|element| &element.1).collect::<Vec<_>>()
        };
        let protocols: BTreeMap<_, _> = of("protocol")
            .iter()
            .map(|protocol| (format!("{} {}", protocol["type"], protocol["version"]), protocol["enabled"].as_str()))
            .collect();
        let expected =
            [("ssl 2", "0"), ("ssl 3", "0"), ("tls 1.0", "0"), ("tls 1.1", "0"), ("tls 1.2", "1"), ("tls 1.3", "1")];
        assert_eq!(protocols, expected.map(|(name, enabled)| (name.to_owned(), enabled)).into(), "{xml}");
        let ciphers: BTreeSet<_> = of("cipher").iter().map(|cipher| cipher["cipher"].clone()).collect();
        let suites =
            SUITES12.iter().filter(|(of, _)| *of == name).chain(&SUITES13).map(|(_, suite)| (*suite).to_owned());
        assert_eq!(ciphers, suites.collect(), "{kind}: {xml}");
        assert!(of("cipher").iter().all(|cipher| cipher["bits"].parse::<u32>().unwrap() >= 128), "{xml}");
        let groups: BTreeSet<_> = of("group").iter().map(|group| group["name"].to_lowercase()).collect();
        let ours = ["secp256r1 (nist p-256)", "secp384r1 (nist p-384)", "x25519"];
        assert_eq!(groups, ours.map(str::to_owned).into(), "{xml}");
        // Elements that it leaves out where it could not try; what they must not say, if they are there.
        for (tag, attribute, bad) in
            [("fallback", "supported", "0"), ("renegotiation", "supported", "1"), ("compression", "supported", "1")]
        {
            assert!(of(tag).iter().all(|element| element[attribute] != bad), "{tag}: {xml}");
        }
        let heartbleed: BTreeSet<_> = of("heartbleed").iter().map(|element| element["vulnerable"].as_str()).collect();
        assert_eq!(heartbleed, ["0"].into(), "{xml}");
    }
    site.is_well();
}

#[test]
fn a_browser_shows_the_page() {
    let Some(site) = Site::up() else { return };
    let home = site.folder.join("home");
    let certificates = home.join(".pki/nssdb");
    fs::create_dir_all(&certificates).unwrap();
    let store = format!("sql:{}", certificates.display());
    run(Command::new("certutil").args(["-N", "--empty-password", "-d", &store])).unwrap();
    run(Command::new("certutil")
        .args(["-A", "-t", "C,,", "-n", "lab", "-d", &store, "-i"])
        .arg(site.folder.join("ca.pem")))
    .unwrap();
    let browse = |name: &str, more: &[&str]| {
        let mut chromium = site.inside.command("timeout");
        chromium
            .env("HOME", &home)
            .args([
                "60",
                "chromium",
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
            ])
            .arg(format!("--user-data-dir={}", home.join("profile").display()))
            .arg(format!("--host-resolver-rules=MAP * {}", site.address))
            .args(more)
            .arg("--dump-dom")
            .arg(format!("https://{name}:{WEB}/"));
        let output = chromium.stdin(Stdio::null()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let told = browse(NAME, &[]);
    assert!(told.contains("asked by h2"), "{told}");
    let told = browse(NAME, &["--disable-http2"]);
    assert!(told.contains("asked by http/1.1"), "{told}");
    let told = browse(NAME, &["--ssl-version-max=tls1.2"]);
    assert!(told.contains("asked by h2"), "{told}");
    // What our certificate is not for is not shown.
    let told = browse("elsewhere.test", &[]);
    assert!(!told.contains("asked by"), "{told}");
    site.is_well();
}

/// A lab whose router ends TLS in each of the ways that clients can find.
struct Site {
    lab: Temporary,
    /// A host of the VLAN the listeners are for.
    inside: Netns,
    address: IpAddr,
    address6: IpAddr,
    folder: PathBuf,
}

impl Site {
    /// `None` where labs cannot be.
    fn up() -> Option<Self> {
        if let Err(reason) = tests::can_run() {
            println!("SKIP: {reason:#}");
            return None;
        }
        let lab = failover::lab(2, false).unwrap();
        let (office, guests) = (&lab.site().vlans[0], &lab.site().vlans[1]);
        let folder = lab.site_file().parent().unwrap().to_owned();
        let (servers, signs) = (Authority::new("servers").unwrap(), Authority::new("clients").unwrap());
        fs::write(folder.join("ca.pem"), servers.pem()).unwrap();
        fs::write(folder.join("clients.pem"), signs.pem()).unwrap();
        let server = |names, key| Wanted { names, cn: "router", server: true, until: 2090, key };
        servers.signs(&server(&[NAME], KeyKind::P256)).unwrap().put(&folder, "shop").unwrap();
        servers.signs(&server(&[RSA_NAME], KeyKind::Rsa2048)).unwrap().put(&folder, "rsa").unwrap();
        // One that calls itself as ours does, and one that does not.
        let (strangers, foreigners) = (Authority::new("clients").unwrap(), Authority::new("abroad").unwrap());
        for (name, by, server, until, key) in [
            ("alice", &signs, false, 2090, KeyKind::P256),
            ("alice-rsa", &signs, false, 2090, KeyKind::Rsa2048),
            ("alice-p384", &signs, false, 2090, KeyKind::P384),
            ("stranger", &strangers, false, 2090, KeyKind::P256),
            ("foreigner", &foreigners, false, 2090, KeyKind::P256),
            ("expired", &signs, false, 2020, KeyKind::P256),
            ("server", &signs, true, 2090, KeyKind::P256),
        ] {
            by.signs(&Wanted { names: &[], cn: name, server, until, key }).unwrap().put(&folder, name).unwrap();
        }
        let (address, address6) = (first(&office.gateways, false).unwrap(), first(&office.gateways, true).unwrap());
        let inside = lab.host(office.id);
        let behind = lab.host(guests.id);
        let own = guests.address(false).unwrap();
        web(&behind, SocketAddr::new(own, WEB_BEHIND)).unwrap();
        // Every port greets and echoes there that has no server of its own.
        let mut text = String::new();
        for (name, port, more) in [
            ("shop", SHOP, "alpn = [\"h2\", \"http/1.1\"]".to_owned()),
            ("members", MEMBERS, format!("client_ca = \"{}\"", folder.join("clients.pem").display())),
            (
                "guests",
                GUESTS,
                format!("client_ca = \"{}\"\nclient_certificate = \"optional\"", folder.join("clients.pem").display()),
            ),
            ("modern", MODERN, "versions = [\"1.3\"]".to_owned()),
            ("older", OLDER, "versions = [\"1.2\"]".to_owned()),
            ("web", WEB, "alpn = [\"h2\", \"http/1.1\"]".to_owned()),
        ] {
            let backend = SocketAddr::new(own, if port == WEB { WEB_BEHIND } else { ECHO_BEHIND });
            let (at, at6) = (SocketAddr::new(address, port), SocketAddr::new(address6, port));
            writeln!(
                text,
                "\n[[tls_offload]]\nname = \"{name}\"\nlisten = [\"{at}\", \"{at6}\"]\nbackends = [\"{backend}\"]\n{more}\n\
                 [tls_offload.limits]\nhandshakes_per_source = 10000\nhandshake_burst = 10000"
            )
            .unwrap();
            for (name, file) in [(NAME, "shop"), (RSA_NAME, "rsa")] {
                let path = |end: &str| folder.join(format!("{file}.{end}")).display().to_string();
                writeln!(
                    text,
                    "[[tls_offload.certificate]]\nnames = \"{name}\"\ncertificate = \"{}\"\nkey = \"{}\"",
                    path("pem"),
                    path("key")
                )
                .unwrap();
            }
        }
        offload(&lab, &text).unwrap();
        Some(Self { lab, inside, address, address6, folder })
    }

    /// What `openssl s_client` says until what it sent has come back, or until it ends; and whether it came back.
    fn s_client(&self, to: SocketAddr, options: &[&str]) -> (String, bool) {
        let mut command = self.inside.command("timeout");
        command.args(["20", "openssl", "s_client", "-connect", &to.to_string(), "-verify_return_error", "-CAfile"]);
        command.arg(self.folder.join("ca.pem")).args(options);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let errors = child.stderr.take().unwrap();
        let said = thread::spawn(move || std::io::read_to_string(errors).unwrap_or_default());
        input.write_all(b"is this heard?\n").unwrap();
        let (mut told, mut echoed) = (Vec::new(), false);
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = output.read(&mut piece) {
            told.extend_from_slice(&piece[..length]);
            if told.windows(14).any(|text| text == b"is this heard?") {
                echoed = true;
                // It says farewell.
                drop(input.write_all(b"Q\n"));
            }
        }
        child.wait().unwrap();
        (String::from_utf8_lossy(&told).into_owned() + &said.join().unwrap(), echoed)
    }

    /// Nothing of what was done has left a trace.
    fn is_well(&self) {
        let connections = || -> anyhow::Result<u64> {
            let status = status(&self.lab)?;
            let lines = status["tls_offload"].as_array().into_iter().flatten();
            Ok(lines.filter_map(|line| line["connections"].as_u64()).sum())
        };
        wait("every connection has ended", || Ok(connections()? == 0)).unwrap();
        assert_eq!(fs::read_to_string(self.lab.log("routerd")).unwrap().matches("panicked").count(), 0);
    }
}

/// Of XML as sslscan writes it: the tags and their attributes.
fn elements(xml: &str) -> Vec<(&str, BTreeMap<&str, String>)> {
    let tags = xml.split('<').skip(1).filter_map(|rest| rest.split_once('>')).map(|(tag, _)| tag);
    tags.filter(|tag| !tag.starts_with(['/', '?', '!']))
        .map(|tag| {
            let (name, rest) = tag.split_once(' ').unwrap_or((tag, ""));
            let mut words = rest.split('"');
            let mut attributes = BTreeMap::new();
            while let (Some(key), Some(value)) = (words.next(), words.next()) {
                attributes.insert(key.trim().trim_end_matches('='), value.to_owned());
            }
            (name, attributes)
        })
        .collect()
}

/// As curl wants an address of either family.
fn at_host(at: SocketAddr) -> String {
    match at.ip() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance").join(name)
}

/// The one with what `converse.py` needs.
fn python() -> PathBuf {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/conformance/bin/python");
    assert!(python.exists(), "there is no {}: `make conformance` fetches it", python.display());
    python
}

const NAME: &str = "shop.example";
const RSA_NAME: &str = "rsa.example";
/// As `converse.py` has them.
const SHOP: u16 = 4443;
const MEMBERS: u16 = 4444;
const GUESTS: u16 = 4445;
const MODERN: u16 = 4446;
const OLDER: u16 = 4447;
const WEB: u16 = 4448;
const ECHO_BEHIND: u16 = 18080;
const WEB_BEHIND: u16 = tests::world::FREE;
/// By whose certificate they are for.
const SUITES12: [(&str, &str); 6] = [
    (NAME, "ECDHE-ECDSA-AES256-GCM-SHA384"),
    (NAME, "ECDHE-ECDSA-AES128-GCM-SHA256"),
    (NAME, "ECDHE-ECDSA-CHACHA20-POLY1305"),
    (RSA_NAME, "ECDHE-RSA-AES256-GCM-SHA384"),
    (RSA_NAME, "ECDHE-RSA-AES128-GCM-SHA256"),
    (RSA_NAME, "ECDHE-RSA-CHACHA20-POLY1305"),
];
const SUITES13: [(&str, &str); 3] =
    [(NAME, "TLS_AES_256_GCM_SHA384"), (NAME, "TLS_AES_128_GCM_SHA256"), (NAME, "TLS_CHACHA20_POLY1305_SHA256")];
