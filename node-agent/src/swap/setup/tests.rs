use std::cell::RefCell;

use rustix::fs::makedev;
use tempfile::TempDir;

use super::*;

/// A machine in a folder. Its programs do to the folder what the real ones would do to the machine.
struct Lab {
    root: TempDir,
    called: RefCell<Vec<String>>,
    blkid: Ended,
}

fn good() -> Ended {
    Ended { code: Some(0), words: String::new() }
}

impl Lab {
    fn new() -> Self {
        let lab = Self {
            root: tempfile::tempdir().unwrap(),
            called: RefCell::default(),
            blkid: Ended { code: Some(2), words: String::new() },
        };
        lab.put("proc/swaps", "Filename Type Size Used Priority\n");
        lab.put("proc/meminfo", "MemTotal: 2048000 kB\nMemAvailable:    1024000 kB\n");
        lab.put("proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n");
        lab.put("proc/sys/vm/swappiness", "60\n");
        lab.put("etc/fstab", "LABEL=root / ext4 defaults 0 1\n");
        lab.put("var/x", "");
        lab.put("dev/mapper/control", "");
        // What stands for a device here is a file, so it lies on the device of this folder.
        let on = stat(lab.root.path()).unwrap().st_dev;
        lab.put(&format!("sys/dev/block/{}:{}/dm/uuid", major(on), minor(on)), "CRYPT-PLAIN-berthswap\n");
        lab
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn put(&self, path: &str, text: &str) {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), text).unwrap();
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap_or_default()
    }

    fn run(&self, name: &str, words: &[&str]) -> Ended {
        let call = [&[name], words].concat().join(" ");
        self.called.borrow_mut().push(call.clone());
        match (name, words) {
            ("blkid", _) => return self.blkid.clone(),
            ("systemctl", ["start", "systemd-cryptsetup@berthswap.service"]) => {
                self.put("dev/dm-0", "");
                let _there = std::os::unix::fs::symlink("../dm-0", self.at("dev/mapper/berthswap"));
            }
            ("swapon", _) => {
                let swaps = self.text("proc/swaps");
                self.put("proc/swaps", &format!("{swaps}/dev/dm-0 partition 131068 0 -2\n"));
            }
            ("swapoff", [path]) => {
                let swaps = self.text("proc/swaps");
                let left = swaps.lines().filter(|line| line.split(' ').next() != Some(path));
                self.put("proc/swaps", &left.map(|line| format!("{line}\n")).collect::<String>());
            }
            ("sysctl", _) => self.put("proc/sys/vm/swappiness", "10\n"),
            _ => {}
        }
        good()
    }

    async fn set_up(&self, wish: &Wish, dry_run: bool) -> (Result<(), SetupError>, Vec<String>) {
        let machine = Machine {
            root: self.root.path().canonicalize().unwrap(),
            run: async |name: &str, words: &[&str]| Ok(self.run(name, words)),
        };
        let mut said = vec![];
        let done = machine.set_up(wish, dry_run, |text| said.push(text.to_owned())).await;
        (done, said)
    }

    async fn device(&self, number: u64) -> Place {
        let machine = Machine {
            root: self.root.path().canonicalize().unwrap(),
            run: async |name: &str, words: &[&str]| Ok(self.run(name, words)),
        };
        machine.device(Path::new("/dev/sdb"), number, &[]).await.unwrap()
    }
}

fn file() -> Wish {
    Wish::File { path: "/var/swap.berth".into(), size: Bytes::mib(128) }
}

#[tokio::test]
async fn a_bare_machine_has_an_encrypted_swap_afterwards_and_a_second_run_does_nothing() {
    let lab = Lab::new();
    let (done, said) = lab.set_up(&file(), false).await;
    done.unwrap();
    assert_eq!(said.last().unwrap(), "127.9 MiB of encrypted swap are in use");
    assert_eq!(
        lab.called.take(),
        [
            "sysctl -q -p /etc/sysctl.d/50-berth.conf",
            "systemctl daemon-reload",
            "systemctl start systemd-cryptsetup@berthswap.service",
            "swapon /dev/mapper/berthswap",
        ]
    );
    let made = fs::metadata(lab.at("var/swap.berth")).unwrap();
    assert_eq!((made.len(), made.mode() & 0o7777), (Bytes::mib(128).0, 0o600));
    assert!(!lab.at("var/swap.berth.new").exists());
    assert_eq!(
        lab.text("etc/crypttab"),
        "berthswap /var/swap.berth /dev/urandom swap,plain,cipher=aes-xts-plain64,size=512\n"
    );
    assert!(lab.text("etc/fstab").ends_with("0 1\n/dev/mapper/berthswap none swap sw,nofail 0 0\n"));
    assert_eq!(lab.text("etc/sysctl.d/50-berth.conf"), "vm.swappiness = 10\n");
    let (done, said) = lab.set_up(&file(), false).await;
    done.unwrap();
    assert_eq!(said, ["an encrypted swap is in use: nothing is left to do"]);
    assert!(lab.called.take().is_empty());
}

#[tokio::test]
async fn a_dry_run_says_each_step_and_changes_nothing() {
    let lab = Lab::new();
    let (done, said) = lab.set_up(&file(), true).await;
    done.unwrap();
    assert!(said.len() > 5 && said.iter().all(|step| step.starts_with("would: ")), "{said:?}");
    assert!(lab.called.take().is_empty());
    assert!(!lab.at("var/swap.berth").exists() && !lab.at("etc/crypttab").exists());
}

#[tokio::test]
async fn swap_in_plain_text_goes_now_and_at_the_next_boot() {
    let lab = Lab::new();
    // A device of no crypt kind: its numbers are in no folder of sys.
    lab.put("proc/swaps", "Filename Type Size Used Priority\n/nowhere/swapfile file 1024 0 -2\n");
    lab.put("etc/fstab", "/nowhere/swapfile none swap sw 0 0\n");
    let (done, said) = lab.set_up(&file(), false).await;
    done.unwrap();
    assert!(said.contains(&"switches off /nowhere/swapfile, which is not encrypted".to_owned()), "{said:?}");
    assert!(!lab.text("proc/swaps").contains("swapfile"));
    assert!(lab.text("etc/fstab").starts_with("# not encrypted"), "{}", lab.text("etc/fstab"));
}

#[tokio::test]
async fn a_file_that_is_somebodys_stays_as_it_is() {
    let lab = Lab::new();
    lab.put("var/swap.berth", "letters from home");
    let (done, said) = lab.set_up(&file(), false).await;
    assert!(matches!(done, Err(SetupError::Refused(Refused::Holds { .. }))), "{done:?}");
    assert!(said.is_empty());
    assert_eq!(lab.text("var/swap.berth"), "letters from home");
    assert!(!lab.at("etc/crypttab").exists());
}

#[tokio::test]
async fn a_program_that_fails_ends_it_and_the_next_run_goes_on() {
    let lab = Lab::new();
    let fails = |name: &str| name == "systemctl";
    let machine = Machine {
        root: lab.root.path().canonicalize().unwrap(),
        run: async |name: &str, words: &[&str]| {
            let ended = Ended { code: Some(1), words: "no such\nunit".into() };
            Ok(if fails(name) { ended } else { lab.run(name, words) })
        },
    };
    let error = machine.set_up(&file(), false, |_| ()).await.unwrap_err();
    assert_eq!(error.to_string(), "systemctl daemon-reload failed: no such unit");
    let (done, said) = lab.set_up(&file(), false).await;
    done.unwrap();
    assert_eq!(said.len(), 3, "opened, taken into use, and told: {said:?}");
}

#[tokio::test]
async fn what_a_device_holds_and_who_holds_it_is_found() {
    let mut lab = Lab::new();
    lab.put("dev/sdb", "");
    lab.put("sys/dev/block/8:16/size", "2097152\n");
    let Place::Device { size, holds: None, held_by: None, lasting: None } = lab.device(makedev(8, 16)).await
    else {
        panic!("an empty device");
    };
    assert_eq!(size, Bytes::gib(1));
    lab.put("dev/disk/by-partuuid/x", "");
    fs::remove_file(lab.at("dev/disk/by-partuuid/x")).unwrap();
    std::os::unix::fs::symlink("../../sdb", lab.at("dev/disk/by-partuuid/1234-01")).unwrap();
    lab.blkid = Ended { code: Some(0), words: "DEVNAME=/dev/sdb\nTYPE=ext4\n".into() };
    let Place::Device { holds, lasting, .. } = lab.device(makedev(8, 16)).await else { panic!() };
    assert_eq!((holds.as_deref(), lasting), (Some("ext4"), Some("/dev/disk/by-partuuid/1234-01".into())));
    lab.blkid = Ended { code: Some(8), words: String::new() };
    let Place::Device { holds, .. } = lab.device(makedev(8, 16)).await else { panic!() };
    assert!(holds.is_some(), "what is not clear is something");
    lab.put("proc/self/mountinfo", "22 1 8:16 / /srv rw - ext4 /dev/sdb rw\n");
    let Place::Device { held_by, .. } = lab.device(makedev(8, 16)).await else { panic!() };
    assert_eq!(held_by.as_deref(), Some("mounted at /srv"));
    lab.put("proc/self/mountinfo", "");
    lab.put("sys/dev/block/8:16/holders/dm-7/dm/name", "vault\n");
    let Place::Device { held_by, .. } = lab.device(makedev(8, 16)).await else { panic!() };
    assert_eq!(held_by.as_deref(), Some("a part of dm-7"));
    lab.put("sys/dev/block/8:16/holders/dm-7/dm/name", "berthswap\n");
    let Place::Device { held_by, .. } = lab.device(makedev(8, 16)).await else { panic!() };
    assert_eq!(held_by, None, "its own device of an earlier run");
    lab.put("sys/dev/block/8:16/sdb1/partition", "1\n");
    let Place::Device { held_by, .. } = lab.device(makedev(8, 16)).await else { panic!() };
    assert_eq!(held_by.as_deref(), Some("it has partitions"));
}

#[test]
fn a_file_is_blank_only_if_both_ends_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let size = Bytes(3 * BLANK_BYTES);
    for (at, blank) in [(None, true), (Some(5), false), (Some(size.0 - 1), false)] {
        let mut bytes = vec![0_u8; usize::try_from(size.0).unwrap()];
        if let Some(at) = at {
            bytes[usize::try_from(at).unwrap()] = 1;
        }
        fs::write(&path, bytes).unwrap();
        assert_eq!(is_blank(&path, size).unwrap(), blank, "{at:?}");
    }
    fs::write(&path, "").unwrap();
    assert!(is_blank(&path, Bytes::ZERO).unwrap());
}
