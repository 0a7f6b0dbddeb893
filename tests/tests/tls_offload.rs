//! TLS ended on a router at work: who reaches the listener, what is behind it, and who is turned away.
#![expect(clippy::unwrap_used, reason = "test code; clippy knows only the test functions")]

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rcgen::{CertificateParams, KeyPair};
use tests::failover;
use tests::netns::{Netns, run};
use tests::watch::{status, wait};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

#[test]
fn the_vlans_of_from_reach_what_is_behind_and_others_are_denied_by_name() {
    if let Err(reason) = tests::can_run() {
        println!("SKIP: {reason:#}");
        return;
    }
    let lab = failover::lab(2, false).unwrap();
    let (office, guests) = (&lab.site().vlans[0], &lab.site().vlans[1]);
    let four = |nets: &[IpNet]| nets.iter().map(IpNet::addr).find(IpAddr::is_ipv4).unwrap();
    let address = SocketAddr::new(four(&office.gateways), PORT);
    let (inside, guest, isp) = (lab.host(office.id), lab.host(guests.id), lab.isp(1));
    // Among the guests, who may open nothing to the office nor to the listener: a server that greets and gives back.
    let behind = SocketAddr::new(guests.address(false).unwrap(), 18080);

    let folder = lab.site_file().parent().unwrap().to_owned();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["shop.example".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    write(&folder.join("shop.pem"), &certificate);
    write(&folder.join("shop.key"), &key.serialize_pem());
    let path = |name: &str| folder.join(name).display().to_string();
    let text = fs::read_to_string(lab.site_file()).unwrap();
    let offload = format!(
        "\n[[tls_offload]]\nname = \"shop\"\nlisten = \"{address}\"\nbackends = [\"{behind}\"]\n\
         [[tls_offload.certificate]]\nnames = \"shop.example\"\ncertificate = \"{}\"\nkey = \"{}\"\n",
        path("shop.pem"),
        path("shop.key"),
    );
    fs::write(lab.site_file(), text + &offload).unwrap();
    run(lab.routerctl().unwrap().arg("apply").arg(lab.site_file())).unwrap();
    let offloaded = || anyhow::Ok(status(&lab)?["tls_offload"][0].clone());
    wait("TLS is offloaded", || {
        let line = offloaded()?;
        Ok(line["listen"][0]["trouble"].is_null() && line["trouble"].is_null() && line["backends"][0]["up"] == true)
    })
    .unwrap();

    let mut stream = inside.enter(|| connect(address, &certificate).unwrap()).unwrap();
    let mut greeting = Vec::new();
    while !greeting.ends_with(b"\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        greeting.extend(byte);
    }
    let greeting = String::from_utf8(greeting).unwrap();
    let router = four(&guests.gateways).to_string();
    assert!(greeting.contains(guest.name()) && greeting.contains(&router), "{greeting}");
    let mut answer = [0; 5];
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");

    let reached = |from: &Netns, to: SocketAddr| {
        from.enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(2)).is_ok()).unwrap()
    };
    let own = four(&guests.gateways);
    let line = lab.site().wans[0].router4.addr();
    // An ISP that knows where the VLAN is.
    isp.ip(&format!("route replace {}/32 via {line}", address.ip())).unwrap();
    for (who, from, to) in [
        ("a guest", &guest, address.ip()),
        ("a guest", &guest, own),
        ("the office", &inside, own),
        ("the ISP", &isp, address.ip()),
        ("the ISP", &isp, line.into()),
        ("the Internet", &lab.internet(), line.into()),
    ] {
        assert!(!reached(from, SocketAddr::new(to, PORT)), "{who} reaches {to}");
    }
    let denied = || run(lab.routerctl().unwrap().arg("denied"));
    wait("the attempts are told by who made them", || {
        let told = denied()?;
        let of = |zone: &str| {
            told.lines().any(|line| line.contains(&format!(" {zone}/")) && line.contains(&format!("tcp/{PORT}: input")))
        };
        Ok(of(&guests.name) && of(&lab.site().wans[0].name))
    })
    .unwrap();
    let explain = |source: IpAddr| {
        let (source, to) = (source.to_string(), address.ip().to_string());
        let mut command = lab.routerctl().unwrap();
        let output = command.args(["explain", &source, &to, &format!("tcp/{PORT}")]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let told = explain(office.address(false).unwrap());
    assert!(told.contains("allowed: input of") && told.contains("service tls_offload/shop (line "), "{told}");
    let told = explain(guests.address(false).unwrap());
    assert!(told.contains("denied: input of") && told.contains("default deny"), "{told}");

    // An apply that changes something else cuts nobody off.
    let text = fs::read_to_string(lab.site_file()).unwrap();
    fs::write(lab.site_file(), text + "[tls_offload.limits]\nconnections = 77\n").unwrap();
    run(lab.routerctl().unwrap().arg("apply").arg(lab.site_file())).unwrap();
    wait("the apply is followed", || Ok(offloaded()?["connections_limit"] == 77)).unwrap();
    stream.write_all(b"again").unwrap();
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"again");
    let page = run(lab.routerctl().unwrap().arg("status")).unwrap();
    assert!(page.contains("tls_offload shop at") && !page.contains("OPEN TO EVERYBODY"), "{page}");
    assert_eq!(fs::read_to_string(lab.log("routerd")).unwrap().matches("panicked").count(), 0);
}

fn connect(address: SocketAddr, root: &str) -> anyhow::Result<StreamOwned<ClientConnection, TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(root.as_bytes())?)?;
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let mut connection = ClientConnection::new(Arc::new(config), ServerName::try_from("shop.example")?)?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(connection, stream))
}

fn write(path: &Path, text: &str) {
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

const PORT: u16 = 4443;
