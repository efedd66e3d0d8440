//! Programs of the system that a daemon runs: each in the same surroundings, whatever the daemon was started with.

use tokio::process::Command;

/// Where the system keeps its own programs.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// A program by its name, with readable words and the system's own folders of programs, and nothing else of the daemon's
/// environment. It is killed when its [`tokio::process::Child`] is dropped.
pub fn command(name: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(name);
    command.env_clear().env("LC_ALL", "C").env("PATH", PATH).kill_on_drop(true);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_of_the_daemons_environment_goes_on_to_a_program() {
        assert!(std::env::vars().count() > 2, "there is something to leave out");
        let output = command("env").output().await.unwrap();
        let mut lines: Vec<String> =
            String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
        lines.sort_unstable();
        assert_eq!(lines, ["LC_ALL=C".to_owned(), format!("PATH={PATH}")]);
    }
}
