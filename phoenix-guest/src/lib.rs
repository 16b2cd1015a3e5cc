//! Certificates into the containers and VMs of a hypervisor: placed, trusted, proven by a handshake.
#![forbid(unsafe_code)]

mod command;
mod error;
mod facts;
mod guest;
mod transport;
mod trust;

pub use command::{Command, DEADLINE, OUTPUT_LIMIT, Output, printable};
pub use error::{Error, RefreshFailure, Result};
pub use facts::{Family, OsRelease};
pub use guest::{GuestPath, Id, Mode, Owner};
pub use transport::{File, Local, Memory, Observed, ObservedFile, Rootfs, Transport};
pub use trust::{Installed, StoreState, StoreStatus, Trust, TrustStore};
