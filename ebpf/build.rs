//! Builds the eBPF object, which the crate embeds. Debian's `rustc-web` and a `rustup` nightly both do; a packager
//! may bring a ready object.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

fn main() -> Result<()> {
    let out = PathBuf::from(env::var("OUT_DIR")?).join("quadway.o");
    for variable in [OBJECT, COMPILER] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed=programs");
    if let Some(object) = env::var_os(OBJECT) {
        println!("cargo::rerun-if-changed={}", object.display());
        fs::copy(&object, &out).with_context(|| format!("{OBJECT}={}", object.display()))?;
        return Ok(());
    }
    let compiler = find_compiler()?;
    build(&compiler, "quadway", &out)?;
    if env::var_os("CARGO_FEATURE_GENERATOR").is_some() {
        build(&compiler, "generator", &out.with_file_name("generator.o"))?;
    }
    Ok(())
}

/// A `rustc` that can build for [`TARGET`].
struct Compiler {
    rustc: PathBuf,
    /// It has the source of `core` instead of a built one.
    build_core: bool,
}

fn find_compiler() -> Result<Compiler> {
    if let Some(named) = env::var_os(COMPILER) {
        let named = PathBuf::from(named);
        return fit(&named).with_context(|| format!("{COMPILER}={} cannot build for {TARGET}", named.display()));
    }
    let by_rustup = ["nightly", "stable"].into_iter().filter_map(|toolchain| {
        let found = Command::new("rustup").args(["which", "rustc", "--toolchain", toolchain]).output().ok()?;
        found.status.success().then(|| PathBuf::from(String::from_utf8_lossy(&found.stdout).trim()))
    });
    let mut candidates = by_rustup.chain([PathBuf::from("/usr/bin/rustc")]);
    candidates.find_map(|rustc| fit(&rustc)).context(
        "no compiler for eBPF. On Debian: `make bpf`, which installs the packages rustc-web and \
         libstd-rust-web-dev-bpf. Elsewhere: `rustup toolchain install nightly --component rust-src`. Both need \
         bpf-linker, built for an LLVM that is not older than the compiler's.",
    )
}

fn fit(rustc: &Path) -> Option<Compiler> {
    let sysroot = Command::new(rustc).args(["--print", "sysroot"]).output().ok().filter(|out| out.status.success())?;
    let library = PathBuf::from(String::from_utf8_lossy(&sysroot.stdout).trim()).join("lib/rustlib");
    let built = library.join(TARGET).is_dir();
    let source = library.join("src/rust/library/core").is_dir();
    (built || source).then(|| Compiler { rustc: rustc.to_owned(), build_core: !built })
}

fn build(compiler: &Compiler, program: &str, out: &Path) -> Result<()> {
    let programs = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("programs");
    let target = PathBuf::from(env::var("OUT_DIR")?).join("target");
    let home = env::var("CARGO_HOME").or_else(|_| env::var("HOME").map(|home| format!("{home}/.cargo")))?;
    // The same bytes from whatever folder.
    let flags = [
        format!("--remap-path-prefix={}=programs", programs.display()),
        format!("--remap-path-prefix={home}=cargo"),
        format!("--cfg=bpf_target_arch=\"{}\"", env::var("CARGO_CFG_TARGET_ARCH")?),
        "-Clinker=bpf-linker".to_owned(),
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // 32-bit registers and unaligned loads: a quarter fewer instructions on the fast path.
        "-Ctarget-cpu=v3".to_owned(),
        "-Clink-arg=--cpu-features=+allows-misaligned-mem-access".to_owned(),
    ];
    let mut cargo = Command::new(env::var("CARGO")?);
    cargo.current_dir(&programs).args(["build", "--release", "--locked", "--bin", program, "--target", TARGET]);
    if compiler.build_core {
        cargo.arg("-Zbuild-std=core");
    }
    // The outer cargo's flags, wrappers and toolchain are for another target.
    for (name, _) in env::vars().filter(|(name, _)| name.starts_with("CARGO_") && name != "CARGO_HOME") {
        cargo.env_remove(name);
    }
    for name in ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTUP_TOOLCHAIN"] {
        cargo.env_remove(name);
    }
    let status = cargo
        .env("RUSTC", &compiler.rustc)
        .env("RUSTC_BOOTSTRAP", "aya_ebpf")
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the eBPF programs do not build with {}", compiler.rustc.display());
    let object = target.join(TARGET).join("release").join(program);
    if !object.is_file() {
        bail!("{} was not built", object.display());
    }
    fs::copy(&object, out)?;
    Ok(())
}

const TARGET: &str = "bpfel-unknown-none";
/// A ready object, for packagers.
const OBJECT: &str = "QUADWAY_EBPF_OBJECT";
/// A `rustc` to build it with.
const COMPILER: &str = "QUADWAY_EBPF_RUSTC";
