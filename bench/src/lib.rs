//! Synthetic sites of a chosen size, for the benches, and what a measurement says about where it was made.

use std::fmt::Write as _;

/// A site of `vlans` segments (at most 250), `wans` lines and `rules` matrix entries, as the text an operator
/// would write.
pub fn site(vlans: usize, wans: usize, rules: usize) -> String {
    let mut text = String::from("[site]\nname = \"bench\"\n[router]\ndefault_policy = \"balanced\"\n");
    let mut members = Vec::new();
    for wan in 1..=wans {
        members.push(format!("\"wan{wan}\""));
        push(
            &mut text,
            format_args!(
                "[wan.wan{wan}]\ninterface = \"w{wan}\"\naddresses = [\"203.0.113.{wan}/24\"]\ngateway = \"203.0.113.254\"\n\
             probe = {{ targets = [\"icmp 192.0.2.1\", \"icmp 192.0.2.2\", \"icmp 192.0.2.3\"] }}\n"
            ),
        );
    }
    push(&mut text, format_args!("[policy.balanced]\nmembers = [{}]\n", members.join(", ")));
    for vlan in 1..=vlans {
        push(
            &mut text,
            format_args!(
                "[vlan.v{vlan}]\nid = {vlan}\naddresses = [\"10.1.{vlan}.1/24\"]\naccess = [\"p{vlan}\"]\n\
             internet = \"any\"\ninput = [\"dhcp\", \"dns\", \"ping\"]\n"
            ),
        );
    }
    for rule in 0..rules {
        let from = rule % vlans + 1;
        let to = (from + rule / vlans) % vlans + 1;
        if from == to {
            continue;
        }
        let host = rule % 250 + 2;
        let port = 1024 + rule % 50_000;
        push(
            &mut text,
            format_args!(
                "[[cell]]\nfrom = \"v{from}\"\nto = \"v{to}\"\nhosts = [\"10.1.{to}.{host}\"]\n\
             services = [\"tcp/{port}\", \"udp/{port}\"]\n"
            ),
        );
    }
    text
}

/// The machine, as far as it matters for a number: its cores, its kernel, and how busy it is with other things.
pub fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_ascii_whitespace().next().unwrap_or("unknown");
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, model)| model);
    let model = model.unwrap_or("processor unknown");
    format!("{cores} cores ({model}), Linux {}, load {load} before the measurement", kernel.trim())
}

fn push(text: &mut String, part: std::fmt::Arguments<'_>) {
    #[expect(clippy::expect_used, reason = "writing to a String cannot fail")]
    text.write_fmt(part).expect("a String takes any text");
}
