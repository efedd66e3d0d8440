//! The program as it is installed: exit codes, signals, and being killed at the worst moment.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its report")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use berth_shared::cell::Workload;
use berth_shared::codec;
use berth_shared::credential::LoginTicket;
use berth_shared::door::{FromIngress, Route, RouteState, ToIngress};
use berth_shared::ids::{CellId, UserId};
use berth_shared::signing::SigningKey;
use berth_shared::time::UnixMs;
use rustix::process::{Pid, Signal, kill_process};

const PATIENCE: Duration = Duration::from_secs(20);

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth-ingress"));
    command.args(arguments).env_clear();
    command
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_wrong_config_is_code_64_and_names_the_key_before_anything_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ingress.toml");
    let state = folder.path().join("state");
    let wrong = format!("state_dir = {state:?}\nlisten = \"0.0.0.0:80\"\nlimitz = 3\n");
    std::fs::write(&file, wrong).unwrap();
    let config = file.to_str().unwrap();
    for subcommand in ["run", "check-config"] {
        let output = run(&[subcommand, "--config", config]);
        assert_eq!(output.status.code(), Some(64), "{}", stderr(&output));
        let text = stderr(&output);
        for part in ["ingress.toml:2", "0.0.0.0:80", "limitz", "loopback"] {
            assert!(text.contains(part), "{text}");
        }
    }
    assert!(!state.exists());
    assert_eq!(run(&["run", "--config", "nowhere.toml"]).status.code(), Some(66));
    assert_eq!(run(&["frobnicate"]).status.code(), Some(64));
}

#[test]
fn a_good_config_is_code_0_and_so_are_version_and_help() {
    assert_eq!(run(&["check-config"]).status.code(), Some(0));
    let version = run(&["--version"]);
    assert_eq!(version.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&version.stdout).contains(env!("CARGO_PKG_VERSION")));
    assert_eq!(run(&["--help"]).status.code(), Some(0));
}

struct Process {
    child: Child,
    port: String,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn start(folder: &Path) -> Process {
    let port_file = folder.join("port");
    let _none = std::fs::remove_file(&port_file);
    let set = |key: &str, value: &Path| format!("{key}={}", value.display());
    let child = command(&["run", "--set", "listen=127.0.0.1:0", "--set", "metrics_listen=127.0.0.1:0"])
        .args(["--set", &set("door_socket", &folder.join("door.sock"))])
        .args(["--set", &set("state_dir", &folder.join("state"))])
        .args(["--set", &set("port_file", &port_file)])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    loop {
        match std::fs::read_to_string(&port_file) {
            Ok(text) => return Process { child, port: text.trim().to_owned() },
            Err(_) => assert!(began.elapsed() < PATIENCE, "no port file"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Plays the agent for one connection: hello in, table out.
fn link(agent: &UnixListener, route: &Route, key: &SigningKey) -> UnixStream {
    let (mut stream, _) = agent.accept().unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut hello = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap()];
    stream.read_exact(&mut hello).unwrap();
    assert!(matches!(codec::decode(&hello, 64).unwrap(), FromIngress::Hello { .. }));
    let table = ToIngress::Table {
        domain: "localhost".into(),
        ticket_key: Some(key.public()),
        routes: vec![route.clone()],
    };
    let body = codec::encode(&table).unwrap();
    stream.write_all(&u32::try_from(body.len()).unwrap().to_be_bytes()).unwrap();
    stream.write_all(&body).unwrap();
    stream
}

/// The status of a redeemed link; asked again while no table has come.
fn redeem(process: &Process, ticket: &str) -> String {
    let began = Instant::now();
    loop {
        let mut stream = TcpStream::connect(&process.port).unwrap();
        let request = format!(
            "POST /.berth/login HTTP/1.1\r\nhost: demo.localhost\r\nconnection: close\r\n\
             content-length: {}\r\n\r\nt={ticket}",
            ticket.len() + 2
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        if !answer.contains("\"starting\"") {
            return answer.split(' ').nth(1).unwrap().to_owned();
        }
        assert!(began.elapsed() < PATIENCE, "no table");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(process: &Process, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(process.child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn a_link_that_let_somebody_in_stays_used_when_the_process_is_killed_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let agent = UnixListener::bind(folder.path().join("door.sock")).unwrap();
    let key = SigningKey::from_seed(&zeroize::Zeroizing::new([7; 32]));
    let user = UserId::from_random([1; 16]);
    let route = Route {
        slug: "demo".parse().unwrap(),
        cell: CellId::from_random([1; 16]),
        user,
        workload: Workload::Http,
        bearers: Vec::new(),
        sessions_valid_from: UnixMs(0),
        state: RouteState::Down,
    };
    let links: Vec<String> = (0..3)
        .map(|n| {
            LoginTicket { user, nonce: [n; 16], expires_at: UnixMs(u64::MAX / 2) }
                .sign(&key)
                .expose()
                .to_owned()
        })
        .collect();
    for used in 0..links.len() {
        let mut process = start(folder.path());
        let _link = link(&agent, &route, &key);
        for earlier in &links[..used] {
            assert_eq!(redeem(&process, earlier), "410");
        }
        assert_eq!(redeem(&process, &links[used]), "303");
        signal(&process, Signal::KILL);
        process.child.wait().unwrap();
    }

    let mut process = start(folder.path());
    let _link = link(&agent, &route, &key);
    assert_eq!(redeem(&process, &links[2]), "410");
    // A second process keeps its hands off the first one's folder.
    let set = format!("state_dir={}", folder.path().join("state").display());
    assert_eq!(run(&["run", "--set", &set, "--set", "listen=127.0.0.1:0"]).status.code(), Some(75));
    signal(&process, Signal::TERM);
    assert_eq!(process.child.wait().unwrap().code(), Some(0));
}

/// A front door on a socket that the test holds, passed as a service manager does (sd_listen_fds(3)).
fn on_socket(folder: &Path, socket: &TcpListener, name: &str, listen: &str) -> Command {
    let set = |key: &str, value: &Path| format!("{key}={}", value.display());
    // The shell's pid is the program's after `exec`.
    let script = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ LISTEN_FDNAMES=$0 exec \"$@\"";
    let mut command = Command::new("sh");
    command
        .args(["-c", script, name, env!("CARGO_BIN_EXE_berth-ingress"), "run"])
        .args(["--set", &format!("listen={listen}"), "--set", "metrics_listen=127.0.0.1:0"])
        .args(["--set", &set("door_socket", &folder.join("door.sock"))])
        .args(["--set", &set("state_dir", &folder.join("state"))])
        .stdin(Stdio::from(OwnedFd::from(socket.try_clone().unwrap())))
        .stderr(Stdio::piped());
    command
}

#[test]
fn a_passed_socket_outlives_the_process_and_nobody_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    // The configured address is taken, by the very socket: it is not asked for.
    let start = || on_socket(folder.path(), &socket, "http", &address.to_string()).spawn().unwrap();
    let ask = || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: demo.localhost\r\nconnection: close\r\n\r\n").unwrap();
        stream
    };
    let answered = |mut stream: TcpStream| {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
    };
    // Nobody runs yet: whoever comes waits, and the first process answers.
    let waiting = ask();
    let mut first = start();
    answered(waiting);
    kill_process(Pid::from_child(&first), Signal::TERM).unwrap();
    assert_eq!(first.wait().unwrap().code(), Some(0));
    let waiting = ask();
    let mut second = start();
    answered(waiting);
    second.kill().unwrap();
    second.wait().unwrap();
    // Killed as it was, it took nothing with it but its own connections.
    let waiting = ask();
    let mut third = start();
    answered(waiting);
    third.kill().unwrap();
    third.wait().unwrap();
}

#[test]
fn a_passed_socket_that_cannot_be_used_is_code_78() {
    let folder = tempfile::tempdir().unwrap();
    let loopback = TcpListener::bind("127.0.0.1:0").unwrap();
    let everywhere = TcpListener::bind("0.0.0.0:0").unwrap();
    for (socket, name, part) in [(&loopback, "quic", "`quic`"), (&everywhere, "http", "loopback")] {
        let output = on_socket(folder.path(), socket, name, "127.0.0.1:0").output().unwrap();
        assert_eq!(output.status.code(), Some(78), "{}", stderr(&output));
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    }
}
