//! The story that `lab demo` tells, and the overview of `lab status`.
#![expect(clippy::print_stdout, reason = "this is what it is for")]

use anyhow::Result;

use crate::lab::Lab;

/// The site that is played unless another is asked for.
pub const SITE: &str = include_str!("../../config/examples/minimal.toml");

/// Prints what the lab consists of and how it is.
pub fn overview(lab: &Lab) {
    let router = if lab.runs("routerd") { "runs" } else { "does not run" };
    println!("\nrouter    {}-router, routerd {router}, log {}", lab.name(), lab.log("routerd").display());
    for wan in &lab.site().wans {
        let faults = lab.faults().get(&wan.number).map(|faults| {
            let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
            faults.join(", ")
        });
        let state = faults.filter(|faults| !faults.is_empty()).unwrap_or_else(|| "good".to_owned());
        println!(
            "line      {}-isp{:<3} {:<10} {} {}: {state}",
            lab.name(),
            wan.number,
            wan.name,
            wan.router4.addr(),
            wan.router6.addr()
        );
    }
    for vlan in &lab.site().vlans {
        let address = |v6| vlan.address(v6).map(|address| address.to_string()).unwrap_or_default();
        println!(
            "vlan {:<4} {}-{:<6} {:<14} {} {}",
            vlan.id,
            lab.name(),
            vlan.port(),
            vlan.name,
            address(false),
            address(true)
        );
    }
    println!("internet  {}-internet, 198.51.100.0/24 2001:db8:100::/64, every port answers", lab.name());
}

/// Plays the story.
pub fn play(lab: &mut Lab) -> Result<()> {
    overview(lab);
    Ok(())
}
