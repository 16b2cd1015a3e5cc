//! Python bindings of phoenix-pki and phoenix-guest: conversions only, no decision is taken here.
#![forbid(unsafe_code)]

/// The native half of the Python package `phoenix_pki`.
#[pyo3::pymodule(gil_used = false)]
mod phoenix_pki_native {
    use pyo3::prelude::*;

    /// The version of the library that is bound.
    #[pyfunction]
    fn version() -> &'static str {
        env!("CARGO_PKG_VERSION")
    }
}
