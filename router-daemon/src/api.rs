//! The one protocol that routerctl and scripts speak with routerd: JSON lines over a unix socket, or HTTPS.

pub(crate) mod certificate;
pub mod client;
pub mod https;
pub mod journal;
pub mod line;
pub mod protocol;
pub mod schema;
pub mod server;
mod trace;
