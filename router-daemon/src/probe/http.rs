//! HTTP(S) GET over a connection that is already bound to its line. Only the status counts.

use std::sync::Arc;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use mwan::event::Failure;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tracing::debug;

/// The public certificate authorities.
pub(super) fn trust() -> Arc<ClientConfig> {
    let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

pub(super) async fn get(
    stream: TcpStream,
    tls: Option<Arc<ClientConfig>>,
    name: &str,
    path: &str,
    status: u16,
) -> Result<(), Failure> {
    match tls {
        None => exchange(stream, name, path, status).await,
        Some(config) => {
            let server = ServerName::try_from(name.to_owned()).map_err(|error| wrong(name, &error))?;
            let stream = TlsConnector::from(config).connect(server, stream).await;
            exchange(stream.map_err(|error| wrong(name, &error))?, name, path, status).await
        }
    }
}

async fn exchange<S>(stream: S, name: &str, path: &str, status: u16) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let request = Request::get(path)
        .header(header::HOST, name)
        .header(header::USER_AGENT, concat!("quadway/", env!("CARGO_PKG_VERSION")))
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| wrong(name, &error))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| wrong(name, &error))?;
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(sender.send_request(request));
    let response = tokio::select! {
        response = &mut answer => response,
        ended = &mut connection => match ended {
            Ok(()) => answer.await,
            Err(error) => Err(error),
        },
    };
    let got = response.map_err(|error| wrong(name, &error))?.status().as_u16();
    if got == status {
        Ok(())
    } else {
        debug!(%name, got, wanted = status, "unexpected status");
        Err(Failure::WrongAnswer)
    }
}

fn wrong(name: &str, error: &dyn std::error::Error) -> Failure {
    debug!(%name, %error, "no HTTP answer");
    Failure::WrongAnswer
}
