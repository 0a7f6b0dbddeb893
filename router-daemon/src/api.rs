//! The one protocol that routerctl and scripts speak with routerd.

pub mod protocol;
