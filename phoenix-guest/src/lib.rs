#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod audit;
#[cfg(feature = "cli")]
pub mod cli;
mod command;
mod converge;
mod delivery;
mod error;
mod facts;
mod guest;
mod handshake;
pub mod inventory;
mod report;
mod service;
mod transport;
mod trust;

pub use audit::{Audited, audit};
pub use command::{Command, DEADLINE, OUTPUT_LIMIT, Output, printable};
pub use converge::{Event, Options, Reached, converge, reach};
pub use delivery::{Delivered, Difference, Placement, ensure_pair};
pub use error::{Error, RefreshFailure, Result};
pub use facts::{Family, OsRelease};
pub use guest::{GuestPath, Id, Mode, Owner, Placed};
pub use handshake::{Proof, Serves};
pub use report::{CertificateReport, DeliveryReport, GuestReport, Report, State, TrustReport};
pub use transport::{ContainerState, File, Local, Memory, Observed, ObservedFile, Pct, Rootfs, Transport};
pub use trust::{Installed, StoreState, StoreStatus, Trust, TrustStore};
