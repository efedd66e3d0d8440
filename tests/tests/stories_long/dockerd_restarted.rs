//! dockerd itself is ended and started again, as an update of Docker's package does. Every other test on this machine
//! that uses Docker would fail meanwhile: nothing else may run beside this.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use berth_tests::world::wait::eventually;
use berth_tests::world::{BOUND, Options, Rest, World};
use bollard::query_parameters::{InspectContainerOptions, KillContainerOptions};
use rustix::process::{Pid, Signal, kill_process};

use crate::{SOON, whoami};

const PID_FILE: &str = "/var/run/docker.pid";

/// What the agent may say while Docker does not answer.
const EXPECTED_ERRORS: &[&str] = &["the container engine does not answer"];

/// Ends dockerd and waits until it is gone.
async fn end_dockerd() {
    if Path::new("/run/systemd/system").is_dir() {
        let status =
            Command::new("systemctl").args(["stop", "docker.service", "docker.socket"]).status().unwrap();
        assert!(status.success(), "systemctl stop docker ended with {status}");
        return;
    }
    let pid: i32 =
        fs::read_to_string(PID_FILE).expect("dockerd was started by scripts/setup").trim().parse().unwrap();
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    assert_eq!(name.trim(), "dockerd", "{PID_FILE} is of something else");
    kill_process(Pid::from_raw(pid).expect("a pid is not 0"), Signal::TERM).unwrap();
    eventually("dockerd ends", BOUND, async || (!Path::new(&format!("/proc/{pid}")).exists()).then_some(()))
        .await;
}

/// Starts it again, also when the story fails in between.
struct DockerComesBack;

impl Drop for DockerComesBack {
    fn drop(&mut self) {
        let setup = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/setup");
        let status = Command::new(setup).status().expect("scripts/setup runs");
        assert!(status.success() || std::thread::panicking(), "scripts/setup ended with {status}");
    }
}

async fn started_at(world: &World, cell: &str) -> String {
    let id = world.engine.containers_of(cell).await.first().expect("the cell has a container").id.clone();
    let found = world.engine.docker().inspect_container(&id, None::<InspectContainerOptions>).await.unwrap();
    found.state.and_then(|state| state.started_at).map(|at| at.to_string()).unwrap_or_default()
}

#[tokio::test]
async fn cells_outlive_a_restart_of_dockerd_and_the_agent_hears_its_events_again() {
    let world = World::start(Options { alone: true, ..Options::default() }).await;
    let anna = world.create_running("anna", Rest::AlwaysOn, SOON).await;
    let bob = world.create_running("bob", Rest::Freeze, SOON).await;
    let carol = world.create_running("carol", Rest::Stop, SOON).await;
    let (running, frozen) = (whoami(&anna.front).await, whoami(&bob.front).await);
    world.container_is(&bob.cell, "paused").await;
    world.container_is(&carol.cell, "exited").await;
    let before = [started_at(&world, &anna.cell).await, started_at(&world, &bob.cell).await];

    let begun = Instant::now();
    let back = DockerComesBack;
    end_dockerd().await;
    assert_eq!(whoami(&anna.front).await["bootId"], running["bootId"], "a running cell needs no dockerd");
    let refused = carol.front.get("/whoami").await;
    assert!(matches!(refused.status, 502..=504), "{}: {}", refused.status, refused.text());
    drop(back);
    eprintln!("    dockerd was away for {} ms", begun.elapsed().as_millis());

    world.container_is(&anna.cell, "running").await;
    world.container_is(&bob.cell, "paused").await;
    assert_eq!(started_at(&world, &anna.cell).await, before[0]);
    assert_eq!(started_at(&world, &bob.cell).await, before[1]);
    assert_eq!(whoami(&anna.front).await["bootId"], running["bootId"]);
    assert_eq!(whoami(&bob.front).await["bootId"], frozen["bootId"], "thawed by a request, the same process");
    world.container_is(&bob.cell, "paused").await;
    eventually("a stopped cell wakes again", BOUND, async || {
        (carol.front.get("/whoami").await.status == 200).then_some(())
    })
    .await;

    // The agent hears of a death at once: long before it would look unasked, once a minute.
    let container = world.engine.containers_of(&anna.cell).await[0].id.clone();
    let docker = world.engine.record();
    world.engine.docker().kill_container(&container, None::<KillContainerOptions>).await.unwrap();
    let died = Instant::now();
    eventually("the cell that was killed runs again", BOUND / 3, async || {
        (docker.count(&anna.cell, "start").await == 1).then_some(())
    })
    .await;
    eprintln!("    a death was heard of and mended after {} ms", died.elapsed().as_millis());
    assert_ne!(whoami(&anna.front).await["bootId"], running["bootId"]);
    assert_eq!(world.engine.containers().await.len(), 3);
    world.end(EXPECTED_ERRORS).await;
}
