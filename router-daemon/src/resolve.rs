//! One DNS question over a socket that is already bound to its line.

use std::net::SocketAddr;

use config::units::Family;
use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use mwan::event::Failure;
use tokio::net::UdpSocket;
use tracing::debug;

/// Asks `server` for the address of `name`. Any answer of a server that did its work counts, that there is no such
/// name too; `SERVFAIL`, `REFUSED` and the like do not.
pub(crate) async fn query(socket: &UdpSocket, server: SocketAddr, name: &str, family: Family) -> Result<(), Failure> {
    let kind = match family {
        Family::V4 => RecordType::A,
        Family::V6 => RecordType::AAAA,
    };
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).map_err(|error| cannot(&error))?;
    // The answer's name is absolute, and a relative one is not equal to it.
    name.set_fqdn(true);
    question.add_query(Query::query(name, kind));
    let bytes = question.to_vec().map_err(|error| cannot(&error))?;
    socket.connect(server).await.map_err(|error| cannot(&error))?;
    socket.send(&bytes).await.map_err(|error| cannot(&error))?;
    let mut buffer = [0; 1500];
    loop {
        let length = match socket.recv(&mut buffer).await {
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => return Err(Failure::Refused),
            Err(error) => {
                debug!(%server, %error, "no DNS answer");
                return Err(Failure::Unreachable);
            }
        };
        let Ok(answer) = Message::from_vec(&buffer[..length]) else { return Err(Failure::WrongAnswer) };
        // Somebody else's answer, or one to an older question of the same port: keep waiting for ours.
        if answer.metadata.id != question.metadata.id
            || answer.metadata.message_type != MessageType::Response
            || answer.queries != question.queries
        {
            continue;
        }
        let code = answer.metadata.response_code;
        if matches!(code, ResponseCode::NoError | ResponseCode::NXDomain) {
            return Ok(());
        }
        debug!(%server, %code, "the DNS server did not resolve");
        return Err(Failure::WrongAnswer);
    }
}

fn cannot(error: &dyn std::error::Error) -> Failure {
    debug!(%error, "cannot ask DNS");
    Failure::CannotSend
}
