//! Garage, a process of its own with an empty folder, on free ports. `scripts/setup --garage` installs it.
//!
//! Shared by the tests and by the bench of snapshots.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use berth_shared::secret::Secret;
use berth_snapshot::store::StoreCredential;

/// The one bucket.
pub(crate) const BUCKET: &str = "berth";

/// What it calls its region; clients have to sign for it.
pub(crate) const REGION: &str = "garage";

/// Ended when dropped.
pub(crate) struct Garage {
    child: Child,
    program: PathBuf,
    config: PathBuf,
    /// Where its S3 API is, as `IP:PORT`.
    pub(crate) address: std::net::SocketAddr,
}

impl Garage {
    /// Starts it with its data in `folder`, which is made, and waits until it answers.
    pub(crate) fn start(folder: &Path) -> Self {
        fs::create_dir(folder).unwrap();
        // It takes no port 0. What the system has just given out is given out again last.
        let ports: Vec<TcpListener> = (0..2).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let [rpc, api] = [0, 1].map(|at: usize| ports[at].local_addr().unwrap());
        drop(ports);
        let config = folder.join("garage.toml");
        let text = format!(
            "metadata_dir = \"{0}/meta\"\ndata_dir = \"{0}/data\"\ndb_engine = \"sqlite\"\nreplication_factor = 1\n\
             rpc_bind_addr = \"{rpc}\"\nrpc_public_addr = \"{rpc}\"\nrpc_secret = \"{1}\"\n\
             [s3_api]\ns3_region = \"{REGION}\"\napi_bind_addr = \"{api}\"\nroot_domain = \".s3.garage\"\n",
            folder.display(),
            "ab".repeat(32)
        );
        fs::write(&config, text).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let program = program();
        let child = Command::new(&program)
            .args(["-c", config.to_str().unwrap(), "server"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut garage = Self { child, program, config, address: api };
        let node = garage.answers();
        garage.does(&["layout", "assign", "-z", "here", "-c", "5G", &node]);
        garage.does(&["layout", "apply", "--version", "1"]);
        garage.does(&["bucket", "create", BUCKET]);
        garage
    }

    /// Its id, once it answers.
    fn answers(&mut self) -> String {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let asked = self.command(&["status"]).output().unwrap();
            if asked.status.success() {
                let id = self.does(&["node", "id", "-q"]);
                return id.split('@').next().unwrap().trim().to_owned();
            }
            let ended = self.child.try_wait().unwrap();
            let log = || fs::read_to_string(self.config.with_file_name("log")).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < until, "garage does not answer: {}", log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(&self.config).args(arguments);
        command
    }

    fn does(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
        said
    }

    /// A new credential with these rights in the bucket.
    pub(crate) fn credential(&self, name: &str, rights: &[&str]) -> StoreCredential {
        let made = self.does(&["key", "create", name]);
        let line = |head: &str| {
            let line = made
                .lines()
                .find_map(|line| line.trim().strip_prefix(head))
                .unwrap_or_else(|| panic!("{made}"));
            line.trim().to_owned()
        };
        let id = line("Key ID:");
        self.does(&[&["bucket", "allow"], rights, &[BUCKET, "--key", &id]].concat());
        StoreCredential {
            access_key_id: id,
            secret_access_key: Secret::new(line("Secret key:")),
            session_token: None,
        }
    }
}

impl Drop for Garage {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// Where `scripts/setup --garage` puts it.
fn program() -> PathBuf {
    let cache = std::env::var_os("BERTH_CACHE").map(PathBuf::from);
    let home = || Path::new(&std::env::var_os("HOME").unwrap()).join(".cache/berth");
    let program = cache.unwrap_or_else(home).join("garage/bin/garage");
    assert!(program.exists(), "{} is missing: scripts/setup --garage", program.display());
    program
}
