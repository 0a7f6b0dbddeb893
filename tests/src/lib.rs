//! The lab: a whole site in network namespaces, with Internet lines that can be broken the way lines break.
//!
//! It is what `make lab` shows and what the whole-system tests run on. [`lab::Lab`] builds and breaks it,
//! [`world`] answers in it, [`traffic`] measures through it.

pub mod demo;
pub mod lab;
pub mod link;
pub mod netns;
pub mod root;
pub mod site;
pub mod traffic;
pub mod world;
