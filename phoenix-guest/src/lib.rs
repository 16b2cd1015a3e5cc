//! Certificates into the containers and VMs of a hypervisor: placed, trusted, proven by a handshake.
#![forbid(unsafe_code)]

mod command;
mod error;
mod guest;
pub mod inventory;
mod service;
mod transport;

pub use command::{Command, DEADLINE, OUTPUT_LIMIT, Output, printable};
pub use error::{Error, Result};
pub use guest::{GuestPath, Id, Mode, Owner};
pub use transport::{File, Local, Memory, Observed, ObservedFile, Rootfs, Transport};
