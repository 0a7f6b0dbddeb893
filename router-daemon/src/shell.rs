//! What the programs say of themselves: the arguments of `routerd`, an example for each subcommand of `routerctl`, and
//! what is generated from both (completions, man pages). `bin/` calls this; nothing here asks a running router.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory, Parser, ValueEnum};
use clap_mangen::Man;

/// Routes this machine's networks as its site file says.
///
/// Stopping it leaves links, routes, rules and the ruleset in place; starting it adopts what it finds. SIGHUP reads
/// the site file again. Without a good site file everything is denied and the API says why.
///
/// The last word counts: what `routerctl apply` put in force survives a restart and a reboot, until the site file is
/// edited; the start after that takes the file. `routerctl status` tells where the two differ. What waits for its
/// confirmation (`apply --confirm`) goes on waiting over a restart, and is taken back where its time is up. One that is
/// measured (`apply --guard`) is taken back.
#[derive(Debug, Parser)]
#[command(name = "routerd", version, after_help = EXIT_CODES)]
pub struct RouterdArguments {
    /// The site file. What was applied since it was last edited goes before it.
    #[arg(long, default_value = "/etc/quadway/site.toml")]
    pub config: PathBuf,
    /// What survives a reboot: the last applied configuration, one that waits for its confirmation, the history, the
    /// journal, the key that signs bundles.
    #[arg(long, default_value = "/var/lib/quadway")]
    pub state: PathBuf,
    /// What survives a restart: the socket of the API, the lock.
    #[arg(long, default_value = "/run/quadway")]
    pub run: PathBuf,
    /// Where the fast path's programs and maps are pinned: on a BPF file system, which is mounted where there is none.
    #[arg(long, default_value = "/sys/fs/bpf/quadway")]
    pub bpf_dir: PathBuf,
    /// Which router of `[pair]` this one is; left out: the name of this box.
    #[arg(long)]
    pub node: Option<String>,
}

/// The shells completions are made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// The command with the examples that belong to its subcommands.
pub fn with_examples(command: Command) -> Command {
    let name = command.get_name().to_owned();
    examples_below(command, &name)
}

fn examples_below(command: Command, path: &str) -> Command {
    let names: Vec<String> = command.get_subcommands().map(|below| below.get_name().to_owned()).collect();
    names.iter().fold(command, |command, name| {
        let path = format!("{path} {name}");
        let example = EXAMPLES.iter().find(|(of, _)| *of == path).map(|(_, example)| *example);
        command.mut_subcommand(name, |below| {
            let below = examples_below(below, &path);
            match example {
                Some(example) => below.after_help(example),
                None => below,
            }
        })
    })
}

/// The text a shell reads to complete this command's words.
pub fn completions(mut command: Command, shell: Shell) -> Vec<u8> {
    let shell = match shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let name = command.get_name().to_owned();
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut text);
    text
}

/// Writes a man page for `routerctl`, each of its subcommands, and `routerd`.
pub fn man_pages(routerctl: Command, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(routerctl, folder)?;
    let mut page = Vec::new();
    Man::new(RouterdArguments::command()).section("8").render(&mut page)?;
    fs::write(folder.join("routerd.8"), page)
}

/// What to do next, by the code of a refusal. Those that are not here say it themselves.
pub fn remedy(code: &str) -> Option<&'static str> {
    Some(match code {
        "busy" => "ask again in a few seconds",
        "kernel" => "`routerctl status` tells what is in force, `journalctl -u routerd` what the kernel said",
        "timeout" | "unavailable" => "`systemctl status routerd` tells how it is; ask again",
        "nothing-pending" => "`routerctl history` tells what took effect and how it ended",
        "unknown-number" => "`routerctl history` tells the numbers there are",
        "window" => "write it like `--confirm 2m`, or `--guard=2m`",
        "internal" | "malformed" | "version" => "`routerctl version` shows both versions: bring them to the same one",
        "not-configured" => "`routerctl check` the site file, then `routerctl apply` it",
        "unclear" => "give an address, or the name of a host of the site file",
        "unknown-wan" => "`routerctl status` lists the lines",
        "bundle" => {
            "save it again, or copy it again from where it was saved: `sha256sum` tells whether it arrived whole"
        }
        "no-journal" => "`journalctl -u routerd` tells why; routerd must be able to write its --state folder",
        _ => return None,
    })
}

/// By the words that lead there. `router-daemon/tests/shell.rs` misses one that is forgotten.
const EXAMPLES: &[(&str, &str)] = &[
    ("routerctl check", "Example:\n  routerctl check /etc/quadway/site.toml"),
    ("routerctl plan", "Example:\n  routerctl plan site.toml --verbose"),
    (
        "routerctl apply",
        "Examples:\n  routerctl plan site.toml && routerctl apply site.toml\n  routerctl apply site.toml --confirm 2m -m 'guests get DNS'\n  routerctl apply site.toml --guard=5m",
    ),
    ("routerctl api", "Example:\n  routerctl api > api.schema.json"),
    ("routerctl confirm", "Example:\n  routerctl apply site.toml --confirm 2m && routerctl confirm"),
    ("routerctl rollback", "Example:\n  routerctl history && routerctl rollback 41"),
    ("routerctl history", "Example:\n  routerctl history"),
    ("routerctl config", "Examples:\n  routerctl config > site.toml\n  routerctl config 41"),
    (
        "routerctl save",
        "Examples:\n  routerctl save\n  routerctl save - | ssh backup 'cat > router.tar'\n  \
         routerctl --json save /backup/router.tar | jq -r .fingerprint",
    ),
    (
        "routerctl restore",
        "Examples:\n  routerctl restore router.tar --confirm 2m && routerctl confirm\n  \
         routerctl restore router.tar --trust FINGERPRINT -m 'the old box died'",
    ),
    ("routerctl events", "Example:\n  routerctl events"),
    ("routerctl diff", "Examples:\n  routerctl diff 41\n  routerctl diff 41 43"),
    ("routerctl status", "Example:\n  routerctl status\n  routerctl --json status | jq .wans"),
    (
        "routerctl explain",
        "Examples:\n  routerctl explain 10.10.50.10 10.10.20.10 tcp/8006\n  routerctl explain printer 1.1.1.1 ping\n  \
         routerctl explain wan2",
    ),
    ("routerctl denied", "Example:\n  routerctl denied --follow"),
    (
        "routerctl audit",
        "Examples:\n  routerctl audit 'office->guests' --for 10m\n  routerctl audit 'office->guests' --stop",
    ),
    (
        "routerctl trace",
        "Examples:\n  routerctl trace desk printer tcp/631\n  routerctl trace 10.10.50.7 1.1.1.1 ping --for 30s --count 20\n  \
         routerctl trace desk 1.1.1.1 tcp/443 --through-rules",
    ),
    ("routerctl pair", "Example:\n  routerctl pair handover && systemctl restart routerd"),
    ("routerctl pair handover", "Example:\n  routerctl pair handover --for 10m"),
    ("routerctl pair return", "Example:\n  routerctl pair return"),
    ("routerctl wan", "Example:\n  routerctl wan drain wan2"),
    ("routerctl wan drain", "Example:\n  routerctl wan drain wan2 && routerctl status"),
    ("routerctl wan undrain", "Example:\n  routerctl wan undrain wan2"),
    ("routerctl wan fail-test", "Example:\n  routerctl wan fail-test wan2 --for 30s"),
    ("routerctl journal", "Example:\n  routerctl journal --follow"),
    (
        "routerctl replay",
        "Examples:\n  routerctl replay /var/lib/quadway/journal/FILE\n  \
         routerctl replay incident.journal --config other.toml",
    ),
    ("routerctl simulate", "Example:\n  routerctl simulate --journal incident.journal --set probe.interval=200ms"),
    ("routerctl qat", "Examples:\n  routerctl qat status\n  routerctl qat selftest"),
    ("routerctl qat status", "Examples:\n  routerctl qat status\n  routerctl --json qat status | jq .steps"),
    ("routerctl qat selftest", "Example:\n  routerctl qat selftest ~/report --for 1m"),
    ("routerctl qat bench", "Example:\n  routerctl qat bench --for 1s"),
    ("routerctl flush", "Example:\n  systemctl stop routerd && routerctl flush"),
    ("routerctl version", "Example:\n  routerctl version"),
    (
        "routerctl completions",
        "Examples:\n  routerctl completions bash > /usr/share/bash-completion/completions/routerctl\n  \
         routerctl completions zsh > ~/.zfunc/_routerctl\n  \
         routerctl completions fish > ~/.config/fish/completions/routerctl.fish",
    ),
    ("routerctl man", "Example:\n  routerctl man /usr/local/share/man/man1"),
    (
        "routerctl import",
        "Example:\n  routerctl import mwan3 network mwan3 firewall -o site.toml && routerctl check site.toml",
    ),
    (
        "routerctl import mwan3",
        "Examples:\n  scp -r root@192.168.1.1:/etc/config . && routerctl import mwan3 config/{network,mwan3,firewall,dhcp}\n  \
         routerctl import mwan3 --network net.bak --mwan3 mwan.bak --firewall fw.bak -o site.toml",
    ),
];

const EXIT_CODES: &str = "\
Exit codes:
  0  stopped by SIGTERM or SIGINT
  1  a part that cannot be done without failed; the log says which
  2  wrong arguments
  3  another routerd runs here
  4  the machine is not fit: privileges are missing, nft is missing or too old, or a routing rule of somebody
     else takes packets with our marks

Environment:
  QUADWAY_NFT  the nft program, at least 1.1.3 (default: `nft` on PATH)
  QUADWAY_FAST_PATH_OBJECT
               a file with the fast path's programs to load instead of those in this binary
  RUST_LOG     what is logged, such as `info` or `router_daemon=debug` (default: info)";
