//! Secrets that the service manager loads (`LoadCredential=`, systemd.exec(5)): files in a folder that only this service
//! sees, whose path is known only while it runs. A config names one as `$CREDENTIALS_DIRECTORY/NAME`.

use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use crate::env::Env;

/// The variable that holds the folder.
const VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// How a path in a config begins that means a credential.
const PREFIX: &str = "$CREDENTIALS_DIRECTORY";

/// Whether a path is of the form `$CREDENTIALS_DIRECTORY/NAME`.
pub fn is_credential(path: &Path) -> bool {
    name(path).is_some()
}

/// Where the secret at this path of a config lies. A path of another form, and any path where there is no such folder (as
/// when a config is only checked, by hand), stays as it is.
pub fn resolve(path: &Path, env: &Env) -> PathBuf {
    let folder = env.get_os(VARIABLE).map(Path::new).filter(|folder| folder.is_absolute());
    match (name(path), folder) {
        (Some(name), Some(folder)) => folder.join(name),
        _ => path.to_owned(),
    }
}

fn name(path: &Path) -> Option<&OsStr> {
    let mut parts = path.components();
    match (parts.next(), parts.next(), parts.next()) {
        (Some(Component::Normal(first)), Some(Component::Normal(name)), None) if first == PREFIX => {
            Some(name)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_lies_in_the_folder_of_the_service_manager() {
        let env: Env = [(VARIABLE, "/run/credentials/berth.service")].into_iter().collect();
        let credential = Path::new("$CREDENTIALS_DIRECTORY/cells_KEY");
        assert!(is_credential(credential));
        assert_eq!(resolve(credential, &env), Path::new("/run/credentials/berth.service/cells_KEY"));
        assert_eq!(resolve(Path::new("/etc/berth/key"), &env), Path::new("/etc/berth/key"));
    }

    #[test]
    fn a_name_never_leads_out_of_the_folder() {
        let env: Env = [(VARIABLE, "/run/credentials/x")].into_iter().collect();
        for odd in [
            "$CREDENTIALS_DIRECTORY",
            "$CREDENTIALS_DIRECTORY/../x",
            "$CREDENTIALS_DIRECTORY/a/b",
            "$OTHER/a",
        ] {
            assert!(!is_credential(Path::new(odd)), "{odd}");
            assert_eq!(resolve(Path::new(odd), &env), Path::new(odd));
        }
    }

    #[test]
    fn without_a_folder_the_path_stays_and_names_what_is_missing() {
        let path = Path::new("$CREDENTIALS_DIRECTORY/cells_KEY");
        assert_eq!(resolve(path, &Env::default()), path);
        let relative: Env = [(VARIABLE, "run")].into_iter().collect();
        assert_eq!(resolve(path, &relative), path);
    }
}
