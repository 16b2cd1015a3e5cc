//! Certificates into the containers and VMs of a hypervisor: placed, trusted, proven by a handshake.
#![forbid(unsafe_code)]

mod command;
mod delivery;
mod error;
mod guest;
mod handshake;
mod transport;

pub use delivery::{Delivered, Difference, Placed, Placement, ensure_pair};
pub use command::{Command, DEADLINE, OUTPUT_LIMIT, Output, printable};
pub use error::{Error, Result};
pub use guest::{GuestPath, Id, Mode, Owner};
pub use handshake::{Proof, Serves};
pub use transport::{File, Local, Memory, Observed, ObservedFile, Rootfs, Transport};
