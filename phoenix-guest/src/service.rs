//! The services whose way of taking up a new pair is known by name.

/// How a service checks its configuration and takes up new files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Activation {
    /// A command that refuses a pair the service could not use.
    pub(crate) check: Option<Vec<String>>,
    /// The command after which it serves the new pair.
    pub(crate) reload: Vec<String>,
}

/// Name, check and reload. A service is in here when its check was seen to catch a wrong pair.
const TABLE: [(&str, &[&str], &[&str]); 1] = [("nginx", &["nginx", "-t"], &["systemctl", "reload", "nginx"])];

/// The activation of a service, when it is a known one.
pub(crate) fn known(name: &str) -> Option<Activation> {
    let argv = |words: &[&str]| words.iter().copied().map(String::from).collect::<Vec<_>>();
    TABLE
        .iter()
        .find(|(service, ..)| *service == name)
        .map(|(_, check, reload)| Activation { check: (!check.is_empty()).then(|| argv(check)), reload: argv(reload) })
}

/// The names of the known services.
pub(crate) fn names() -> [&'static str; TABLE.len()] {
    TABLE.map(|(service, ..)| service)
}
