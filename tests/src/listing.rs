//! What a lab's router has in the kernel, to be compared to the byte.
#![expect(clippy::unwrap_used, reason = "only tests call this")]

use std::collections::BTreeMap;

use crate::lab::Lab;
use crate::netns::run;
use crate::root::Root;

/// What the kernel holds, sorted where it lists things in the order they came to be. Counters and handles are left
/// out, and the sets that packets fill.
pub fn listing(lab: &Lab) -> BTreeMap<String, String> {
    let router = lab.router();
    let table = run(Root::find().unwrap().command(&router, "nft").args(["-s", "list", "table", "inet", "quadway"]));
    let mut listing = BTreeMap::from([("nft".to_owned(), comparable(&table.unwrap()))]);
    let commands: [&[&str]; 5] = [
        &["rule"],
        &["-6", "rule"],
        &["route", "show", "table", "all"],
        &["-6", "route", "show", "table", "all"],
        &["-o", "address"],
    ];
    for arguments in commands {
        let text = run(router.command("ip").args(arguments)).unwrap();
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        listing.insert(arguments.join(" "), lines.join("\n"));
    }
    listing
}

/// The chains, sets and maps of a table, each as it stands, in alphabetical order.
fn comparable(table: &str) -> String {
    let (mut kept, mut dynamic, mut inside) = (Vec::new(), false, false);
    for line in table.lines() {
        if line.starts_with("\tset ") || line.starts_with("\tmap ") {
            dynamic = false;
        }
        dynamic |= line.trim_start().starts_with("flags dynamic");
        inside |= dynamic && line.trim_start().starts_with("elements = {");
        if !inside {
            kept.push(line);
        }
        inside &= !line.ends_with('}');
    }
    let kept = kept.join("\n");
    let body = kept.trim_start_matches("table inet quadway {\n").trim_end_matches("\n}");
    let mut blocks: Vec<_> = body.split("\n\n").collect();
    blocks.sort_unstable();
    blocks.join("\n\n")
}

/// Panics with the lines that differ.
pub fn assert_same(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>, what: &str) {
    for (listed, before) in before {
        let after = &after[listed];
        let gone: Vec<_> = before.lines().filter(|line| !after.lines().any(|other| other == *line)).collect();
        let came: Vec<_> = after.lines().filter(|line| !before.lines().any(|other| other == *line)).collect();
        assert_eq!(before, after, "{what}: {listed}: gone {gone:#?}, came {came:#?}");
    }
}
