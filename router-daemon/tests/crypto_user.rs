//! The priority of a driver of the kernel's crypto is set and read back, on one of software. It needs the kernel's
//! `crypto_user`, which the guest run has where the machine's own kernel has not.
#![expect(clippy::unwrap_used, reason = "the helpers of a test fail it")]

use std::fs;
use std::io;

use router_daemon::crypto::qat_kernel::{Algorithm, KernelCrypto, QatKernel};
use router_daemon::kernel::crypto::set_priority;

#[test]
fn a_driver_gets_its_priority_and_the_kernel_tells_it() {
    let before = found();
    // One that nothing is built on, and that stands for itself.
    let chosen = before.all.iter().find(|one| one.users == 0 && !one.driver.contains('(')).unwrap();
    let wanted = chosen.priority + 7;
    match set_priority(&chosen.driver, wanted) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported && std::env::var_os("QUADWAY_GUEST").is_none() => {
            println!("SKIP: {error}; `make guest` runs it on a kernel that has it");
            return;
        }
        result => result.unwrap(),
    }
    assert_eq!(priority(&chosen.driver), Some(wanted));
    set_priority(&chosen.driver, chosen.priority).unwrap();
    assert_eq!(priority(&chosen.driver), Some(chosen.priority));
    println!("{}: {} -> {wanted} -> {}", chosen.driver, chosen.priority, chosen.priority);
    let unknown = set_priority("qat_of_nobody", 1).unwrap_err();
    assert_eq!(unknown.kind(), io::ErrorKind::NotFound, "{unknown}");
}

/// The parser takes what this kernel says.
#[test]
fn every_entry_of_this_kernel_is_read() {
    let text = fs::read_to_string("/proc/crypto").unwrap();
    assert_eq!(found().all.len(), text.lines().filter(|line| line.starts_with("name ")).count());
}

fn priority(driver: &str) -> Option<u32> {
    found().all.into_iter().find(|one: &Algorithm| one.driver == driver).map(|one| one.priority)
}

fn found() -> KernelCrypto {
    QatKernel::default().look().unwrap()
}
