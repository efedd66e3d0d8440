//! What the environment sets once, for the life of the process.

use std::path::PathBuf;

/// The port an OpenClaw gateway listens on by default.
const PORT_DEFAULT: u16 = 18_789;
/// Where an OpenClaw gateway keeps its state inside the container.
const STATE_DIR_DEFAULT: &str = "/home/node/.openclaw";

/// Environment variables, read once at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// `PORT`: the port on 0.0.0.0; 0 lets the kernel choose, the first line of the log says which.
    pub(crate) port: u16,
    /// `CELL_STATE_DIR`: the folder that survives a restart.
    pub(crate) state_dir: PathBuf,
    /// `CELL_MODE`: behaviour from the first moment on; see [`crate::mode`].
    pub(crate) mode_env: Option<String>,
    /// `CELL_LOG=1`: one line per request on stdout.
    pub(crate) log_requests: bool,
    /// `PLATFORM_LLM_KEY`: printed by the mode `log_secret`, for tests of redaction.
    pub(crate) secret: Option<String>,
    /// `BERTH_WAKE_TOKEN`: shown to the host that the schedule is told.
    pub(crate) wake_token: Option<String>,
}

/// The environment says something that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("PORT {value:?} is not a port number")]
    Port {
        value: String,
        #[source]
        source: std::num::ParseIntError,
    },
}

impl Settings {
    /// Reads the variables through `lookup`, so that tests never touch the real environment.
    pub(crate) fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Settings, SettingsError> {
        let port = match lookup("PORT") {
            Some(value) => value.parse().map_err(|source| SettingsError::Port { value, source })?,
            None => PORT_DEFAULT,
        };
        Ok(Settings {
            port,
            state_dir: lookup("CELL_STATE_DIR").unwrap_or_else(|| STATE_DIR_DEFAULT.to_owned()).into(),
            mode_env: lookup("CELL_MODE").filter(|value| !value.trim().is_empty()),
            log_requests: lookup("CELL_LOG").as_deref() == Some("1"),
            secret: lookup("PLATFORM_LLM_KEY"),
            wake_token: lookup("BERTH_WAKE_TOKEN"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_environment_gives_the_upstream_defaults() {
        let settings = Settings::from_lookup(|_| None).unwrap();
        assert_eq!(settings.port, PORT_DEFAULT);
        assert_eq!(settings.state_dir, PathBuf::from(STATE_DIR_DEFAULT));
        assert!(!settings.log_requests);
    }

    #[test]
    fn a_port_that_is_no_number_is_refused_by_name() {
        let error = Settings::from_lookup(|name| (name == "PORT").then(|| "eighty".to_owned())).unwrap_err();
        assert!(error.to_string().contains("eighty"));
    }
}
