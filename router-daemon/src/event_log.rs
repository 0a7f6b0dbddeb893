//! What the firewall refused, told to a person.
pub mod packet;
