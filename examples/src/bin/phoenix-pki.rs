//! The operator's command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use phoenix_guest::cli::{Terminal, run};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

fn main() -> ExitCode {
    // Keys pass through this process: no core dump, no debugger of the same user. Where the kernel refuses, go on.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    ExitCode::from(run(std::env::args_os(), &mut Terminal::process()))
}
