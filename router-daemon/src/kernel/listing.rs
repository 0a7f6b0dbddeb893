//! What stands in the table `inet quadway`, as the names in it and one digest. Read over raw netlink: `nft` takes
//! five seconds to list a table of 5,000 matrix entries, most of it to make text of what is hashed here as bytes.
//!
//! The digest holds hooks, policies, rules, the declarations of sets and the elements of anonymous sets, which are
//! part of their rule. It leaves out what changes by itself: handles, use counts, the elements of named sets and
//! maps, which are live data and compared elsewhere.

use std::io;

use mwan::script::Inventory;
use mwan::state::TABLE;
use sha2::{Digest, Sha256};

use super::elements::{NFGENMSG, dump, message};
use super::netlink::{Attributes, Socket};

#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) inventory: Inventory,
    pub(crate) digest: String,
}

impl Listing {
    /// Several questions: the caller sees to it that the table stood still meanwhile.
    pub(crate) fn read(socket: &mut Socket) -> io::Result<Self> {
        let mut inventory = Inventory::default();
        let mut digest = Sha256::new();

        for reply in socket.ask(message(NFT_MSG_GETTABLE, 0).text(NFTA_TABLE_NAME, TABLE))? {
            feed(&mut digest, vec![only(reply.attributes(NFGENMSG), &[NFTA_TABLE_NAME, NFTA_TABLE_FLAGS])]);
        }

        // The kernel does not filter chains by table.
        let mut chains = Vec::new();
        for reply in socket.dump(&message(NFT_MSG_GETCHAIN, 0))? {
            let chain = reply.attributes(NFGENMSG);
            if let (Some(TABLE), Some(name)) = (chain.text(NFTA_CHAIN_TABLE), chain.text(NFTA_CHAIN_NAME)) {
                inventory.chains.insert(name.to_owned());
                chains.push(only(chain, &[NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE]));
            }
        }
        feed(&mut digest, chains);

        let mut rules = Sha256::new();
        for reply in socket.dump(&message(NFT_MSG_GETRULE, 0).text(NFTA_RULE_TABLE, TABLE))? {
            let rule = only(reply.attributes(NFGENMSG), &[NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS]);
            rules.update(Sha256::digest(rule));
        }
        digest.update(rules.finalize());

        let mut sets = Vec::new();
        let mut anonymous = Vec::new();
        for reply in socket.dump(&message(NFT_MSG_GETSET, 0).text(NFTA_SET_TABLE, TABLE))? {
            let set = reply.attributes(NFGENMSG);
            let (Some(name), Some(flags)) = (set.text(NFTA_SET_NAME), set.be32(NFTA_SET_FLAGS).or(Some(0))) else {
                continue;
            };
            if flags & NFT_SET_ANONYMOUS != 0 {
                anonymous.push(name.to_owned());
            } else if flags & (NFT_SET_MAP | NFT_SET_OBJECT) != 0 {
                inventory.maps.insert(name.to_owned());
            } else {
                inventory.sets.insert(name.to_owned());
            }
            sets.push(only(set, &DECLARATION));
        }
        feed(&mut digest, sets);

        for set in anonymous {
            let mut elements = Vec::new();
            dump(socket, &set, |element| elements.push(element.0.to_vec()))?;
            feed(&mut digest, elements);
        }
        Ok(Self { inventory, digest: format!("{:x}", digest.finalize()) })
    }
}

/// These attributes, each with its kind and length before it.
fn only(attributes: Attributes<'_>, kinds: &[u16]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, payload) in attributes.each().filter(|(kind, _)| kinds.contains(kind)) {
        bytes.extend(kind.to_be_bytes());
        bytes.extend((payload.len() as u64).to_be_bytes());
        bytes.extend(payload);
    }
    bytes
}

/// Sorted: a hash table is told in whatever order it grew into.
fn feed(digest: &mut Sha256, mut parts: Vec<Vec<u8>>) {
    parts.sort_unstable();
    let mut inner = Sha256::new();
    for part in &parts {
        inner.update((part.len() as u64).to_be_bytes());
        inner.update(part);
    }
    digest.update(inner.finalize());
}

const NFT_MSG_GETTABLE: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;
/// A dormant table does nothing.
const NFTA_TABLE_FLAGS: u16 = 2;
const NFT_MSG_GETCHAIN: u16 = 4;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_GETSET: u16 = 10;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
/// Name, flags, types and lengths of key and data, timeout, type of object, and the statements of its elements.
const DECLARATION: [u16; 10] = [NFTA_SET_NAME, NFTA_SET_FLAGS, 4, 5, 6, 7, 11, 15, 17, 18];
const NFT_SET_ANONYMOUS: u32 = 0x1;
const NFT_SET_MAP: u32 = 0x8;
const NFT_SET_OBJECT: u32 = 0x40;
