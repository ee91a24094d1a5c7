//! Why a node does not run.

use crate::driver::identity::BootError;
use std::{io, net::SocketAddr};

/// A node that could not start, or had to end. Each says what to do about it where that is known.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The options ask for something that cannot be: exit code 78.
    #[error("{0}")]
    Configuration(String),
    /// A port of the node is in use: exit code 1.
    #[error("{0}")]
    PortTaken(String),
    /// The machine or the data directory does not allow it, or a core has failed: exit code 1.
    #[error("{0}")]
    Failed(String),
}

impl StartError {
    /// Whether other options would help: exit code 78, else 1.
    pub fn is_configuration(&self) -> bool {
        matches!(self, StartError::Configuration(_))
    }

    pub(super) fn from_bind(address: SocketAddr, error: &io::Error) -> StartError {
        match error.kind() {
            io::ErrorKind::AddrInUse => StartError::PortTaken(format!(
                "port {} of {} is taken; `ss -lntp` shows by whom. Give another --listen address or other ports",
                address.port(),
                address.ip()
            )),
            io::ErrorKind::AddrNotAvailable => StartError::Failed(format!(
                "{} is not an address of this machine; see `ip addr` and give another --listen",
                address.ip()
            )),
            io::ErrorKind::PermissionDenied => StartError::Failed(format!(
                "port {} needs privileges that this user does not have; give a port above 1023",
                address.port()
            )),
            _ => StartError::Failed(format!("cannot listen on {address}: {error}")),
        }
    }
}

impl From<BootError> for StartError {
    fn from(error: BootError) -> StartError {
        StartError::Failed(error.to_string())
    }
}
