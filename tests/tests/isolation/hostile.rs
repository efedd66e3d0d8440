//! A cell's folder is hostile (invariant 9): whatever lies where Berth looks, nothing outside is read or written,
//! nobody waits, and the operator learns what is wrong and can mend it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use berth_tests::lab::shell::say;
use berth_tests::world::{Member, Options, Rest, World};
use futures_util::future::join_all;
use serde_json::json;

const LONG: Duration = Duration::from_secs(600);

/// A wake of a cell that has nothing to do with it: as long as a call is held.
const WOKEN_WITHIN: Duration = Duration::from_secs(30);

const CANARY: &str = "not a cell's\n";

/// What lies outside: a file and a folder of the node, and how they were.
struct Outside {
    file: PathBuf,
    folder: PathBuf,
    was: [Was; 2],
}

#[derive(Debug, PartialEq, Eq)]
struct Was {
    owner: (u32, u32),
    mode: u32,
    links: u64,
    written: (i64, i64),
    changed: (i64, i64),
}

impl Was {
    fn of(path: &Path) -> Self {
        let meta = fs::symlink_metadata(path).unwrap();
        Self {
            owner: (meta.uid(), meta.gid()),
            mode: meta.mode(),
            links: meta.nlink(),
            written: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

impl Outside {
    fn make(dir: &Path) -> Self {
        let (file, folder) = (dir.join("canary"), dir.join("canaries"));
        fs::write(&file, CANARY).unwrap();
        fs::create_dir(&folder).unwrap();
        let was = [Was::of(&file), Was::of(&folder)];
        Self { file, folder, was }
    }

    fn is_untouched(&self) {
        assert_eq!(fs::read_to_string(&self.file).unwrap(), CANARY);
        assert_eq!(fs::read_dir(&self.folder).unwrap().count(), 0);
        assert_eq!([Was::of(&self.file), Was::of(&self.folder)], self.was);
    }
}

/// A trap: the user's name, what is planted where, and whether Berth heals it by itself.
struct Trap {
    slug: &'static str,
    path: &'static str,
    plant: String,
    heals: bool,
}

fn traps(outside: &Outside) -> Vec<Trap> {
    let trap = |slug, path, plant: &str, heals| Trap { slug, path, plant: plant.to_owned(), heals };
    let (file, folder) = (outside.file.display(), outside.folder.display());
    vec![
        trap("link", "openclaw.json", &format!("kind=symlink&target={file}"), false),
        trap("pipe", "openclaw.json", "kind=fifo", false),
        trap("socket", "openclaw.json", "kind=socket", false),
        trap("huge", "openclaw.json", "kind=huge&mb=4", false),
        trap("sparse", "openclaw.json", "kind=sparse&bytes=8796093018112", false),
        trap("twin", "openclaw.json", "kind=hardlink&target=twin.json", false),
        trap("way", "cache", &format!("kind=symlink&target={folder}"), false),
    ]
}

/// Plants it, puts the cell to sleep, and tries to wake it: gives the exit code and what was said.
async fn spring(world: &World, trap: &Trap, member: &Member) -> (i32, String) {
    if trap.plant.contains("hardlink") {
        member.front.get("/plant?kind=file&path=twin.json&target={}").await.ok(200);
    }
    let plant = format!("/plant?path={}&replace=1&{}", trap.path, trap.plant);
    let planted = member.front.get(&plant).await;
    assert_eq!(planted.status, 200, "{}: {}", trap.slug, planted.text());
    world.api.post(&format!("/v1/cells/{}/sleep", trap.slug), json!({})).await.ok(200);
    let woken = world.api.cli(&["cell", "wake", trap.slug]).await;
    (woken.code, woken.err)
}

#[tokio::test]
async fn nothing_that_a_cell_plants_in_its_folder_makes_the_agent_act_outside_or_wait() {
    let world =
        World::start(Options { alone: true, agent: vec!["starts_max=4".to_owned()], ..Options::default() })
            .await;
    let outside = Outside::make(world.dir());
    let traps = traps(&outside);
    let calm = world.create_running("calm", Rest::Stop, Duration::from_secs(1)).await;
    let members = join_all(traps.iter().map(|trap| world.create_running(trap.slug, Rest::Stop, LONG))).await;
    world.container_is(&calm.cell, "exited").await;

    // While all traps are sprung at once, somebody else's cell is woken as if nothing were.
    let springing = join_all(traps.iter().zip(&members).map(|(trap, member)| spring(&world, trap, member)));
    let waking = async {
        let mut longest = Duration::ZERO;
        for _ in 0..3 {
            let begun = Instant::now();
            calm.front.get("/whoami").await.ok(200);
            longest = longest.max(begun.elapsed());
            world.container_is(&calm.cell, "exited").await;
        }
        longest
    };
    let (sprung, longest) = tokio::join!(springing, waking);
    say(&format!("  another cell was woken within {longest:?}"));
    assert!(longest <= WOKEN_WITHIN, "{longest:?}");
    outside.is_untouched();
    for (trap, (code, said)) in traps.iter().zip(&sprung) {
        say(&format!(
            "  {}: exit code {code}: {}",
            trap.slug,
            said.lines().nth(1).unwrap_or_default().trim()
        ));
        if trap.heals {
            assert_eq!(*code, 0, "{}: {said}", trap.slug);
        } else {
            assert_eq!(*code, 1, "{}: {said}", trap.slug);
            assert!(said.contains("hostile_folder"), "{}: {said}", trap.slug);
            assert!(said.contains(trap.path), "{}: the file is not named: {said}", trap.slug);
        }
    }

    // What the error advises helps: the named file removed, and restarted.
    for ((trap, member), _) in traps.iter().zip(&members).zip(&sprung).filter(|(_, (code, _))| *code != 0) {
        let named = world.dir().join("agent/cells").join(&member.cell).join("data").join(trap.path);
        fs::remove_file(&named).unwrap();
        let restarted = world.api.cli(&["cell", "restart", trap.slug]).await;
        assert_eq!(restarted.code, 0, "{}: {restarted:?}", trap.slug);
        member.front.get("/whoami").await.ok(200);
    }
    outside.is_untouched();
    world.end(&[]).await;
}
