//! `lab`: builds the lab, breaks its lines, shows it. Needs root; changes nothing outside its own namespaces and
//! `/run/quadway-NAME`.
#![expect(clippy::print_stdout, reason = "a program for a terminal")]

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use tests::lab::{Lab, READY, Spec};
use tests::link::{self, Fault};
use tests::{demo, world};

/// A whole site in network namespaces, with Internet lines that can be broken.
#[derive(Parser)]
#[command(version)]
struct Cli {
    /// The lab's name, the first part of the names of its namespaces.
    #[arg(long, global = true, env = "QUADWAY_LAB", default_value = "lab")]
    name: String,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Build the lab and start routerd in it; replaces the lab of the same name
    Up(Up),
    /// Remove the lab
    Down,
    /// What is there, and what is broken
    Status,
    /// Break a line: carrier, blackhole, loss=PERCENT, delay=MS (round trip), delay=MS/JITTER, dns, http
    Fail {
        #[arg(value_parser = isp)]
        isp: u8,
        fault: Fault,
    },
    /// Make a line good again
    Heal {
        #[arg(value_parser = isp)]
        isp: u8,
    },
    /// Run a command at a place: router, internet, isp2, v30, or the name of a VLAN or host
    Exec {
        host: String,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Run routerctl against the lab's routerd
    #[command(disable_help_flag = true)]
    Ctl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Play a story of two minutes
    Demo(Up),
    /// Answer on every port of the current namespace
    #[command(hide = true)]
    World { server: String },
    /// Hold a link and delay what passes
    #[command(hide = true)]
    Emulate { interface: String, peer: String, delay: u64, jitter: u64 },
}

#[derive(Args)]
struct Up {
    /// The site file, as for routerd; its ports and lines are replaced by the lab's
    #[arg(long)]
    config: Option<PathBuf>,
    /// How many Internet lines, 1 to 16
    #[arg(long, default_value_t = 4)]
    wans: u8,
    /// All lines have the same subnet and the same gateway
    #[arg(long)]
    same_gateway: bool,
    /// Build everything but do not start routerd
    #[arg(long)]
    no_router: bool,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let name = cli.name.as_str();
    match cli.what {
        What::Up(options) => {
            let start = Instant::now();
            let lab = up(name, &options)?;
            println!("{} is up after {:.1} s", lab.name(), start.elapsed().as_secs_f64());
            demo::overview(&lab);
            Ok(())
        }
        What::Down => Lab::down(name),
        What::Status => {
            let lab = Lab::open(name)?;
            demo::overview(&lab);
            Ok(())
        }
        What::Fail { isp, fault } => Lab::open(name)?.fail(isp, fault),
        What::Heal { isp } => Lab::open(name)?.heal(isp),
        What::Exec { host, command } => {
            let place = Lab::open(name)?.place(&host)?;
            let (program, arguments) = command.split_first().context("no command")?;
            // The place's own /sys comes with `ip netns exec`.
            let error = Command::new("ip").args(["netns", "exec", place.name()]).arg(program).args(arguments).exec();
            Err(error).with_context(|| format!("cannot run {program}"))
        }
        What::Ctl { arguments } => {
            let error = Lab::open(name)?.routerctl()?.args(arguments).exec();
            Err(error).context("cannot run routerctl")
        }
        What::Demo(options) => {
            let mut lab = up(name, &options)?;
            demo::play(&mut lab)
        }
        What::World { server } => world::serve(&server, || println!("{READY}")),
        What::Emulate { interface, peer, delay, jitter } => {
            let peer = hardware_address(&peer).with_context(|| format!("{peer:?} is no hardware address"))?;
            let (delay, jitter) = (Duration::from_micros(delay), Duration::from_micros(jitter));
            link::emulate(&interface, peer, delay, jitter, || println!("{READY}"))
        }
    }
}

fn up(name: &str, options: &Up) -> Result<Lab> {
    let site = match &options.config {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
        None => demo::SITE.to_owned(),
    };
    let spec = Spec { name: name.to_owned(), site, wans: options.wans, same_gateway: options.same_gateway };
    let mut lab = Lab::up(&spec)?;
    if !options.no_router {
        lab.start_router()?;
    }
    Ok(lab)
}

fn isp(text: &str) -> Result<u8, String> {
    text.strip_prefix("isp")
        .or_else(|| text.strip_prefix("wan"))
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| "lines are called isp1, isp2 …".to_owned())
}

fn hardware_address(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
    bytes?.try_into().ok()
}
