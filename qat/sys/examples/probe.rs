//! Opens the installed library, or the two named, and tells what it answers; what the tests run in Debian's roots.
#![expect(unsafe_code, reason = "calls the library as it is")]
#![expect(clippy::print_stdout, reason = "its purpose")]

use std::path::Path;
use std::process::ExitCode;

use qat_sys::Library;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let opened = match &arguments[..] {
        [cpa, usdm] => Library::open_at(Path::new(cpa), Path::new(usdm)),
        _ => Library::open(),
    };
    let library = match opened {
        Ok(library) => library,
        Err(error) => {
            println!("library: none ({error})");
            return ExitCode::FAILURE;
        }
    };
    println!("library: {}", library.path().display());
    println!("version: {}", library.version().map_or("unknown".to_owned(), |version| version.to_string()));
    println!("abi: {:?}", library.abi());
    // SAFETY: takes nothing and may be called at any time.
    let available = library.cpa.icp_sal_userIsQatAvailable.as_ref().map(|call| unsafe { call() });
    println!("available: {available:?}");
    let mut instances = u16::MAX;
    let number = &mut instances;
    // SAFETY: writes one 16-bit number where it is told to.
    let status = library.cpa.cpaCyGetNumInstances.as_ref().map(|call| unsafe { call(number) });
    println!("cpaCyGetNumInstances: {status:?}, {instances} instances");
    ExitCode::SUCCESS
}
