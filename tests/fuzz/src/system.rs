//! What the machine says: kernel, Docker, `nft`; and the bodies of the HTTP API.
//!
//! | choice | what is tried |
//! |---|---|
//! | 0, 1 | a superblock, as it is and with its magic number |
//! | 2 | a line of mountinfo |
//! | 3 | the control groups of a process: whose processes would be killed |
//! | 4 | memory pressure, the boot id, what a control group counts |
//! | 5 | packet rules |
//! | 6 | what Docker says of one container |
//! | 7 | what Docker lists |
//! | 8 | the output of a container, in any pieces |
//! | 9 | bodies of the HTTP API |
//! | 10 | the lists of swaps, and what was written to them |
//! | 11 | the report of quotas: how much a cell holds |
//! | 12 | what a process's files in /proc say; pages as they are noted |

use std::ffi::OsStr;
use std::fmt::Debug;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use berth_node_agent::fuzz as agent;
use berth_node_agent::runtime::{ContainerKey, LOG_LINE_BYTES_MAX};
use berth_node_agent_core::cell::Seen;
use berth_shared::api::{CreateToken, CreateUser, Logs, ProblemBody, SleepRequest, User};
use berth_shared::units::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::input::{Input, seed};
use crate::made;

const SUPERBLOCK_BYTES: usize = 1024;
const PORT: u16 = 18789;
const CREATES: [u64; 2] = [3, 7];

/// The target.
pub fn run(input: &[u8]) {
    let mut input = Input::new(input);
    match input.choice(13) {
        0 => superblock(input.array()),
        1 => superblock(with_magic(input.array())),
        2 => mount_line(input.rest()),
        3 => freezer(input),
        4 => input.text().into_iter().for_each(small_files),
        5 => packet_rules(input.rest()),
        6 => container(input.rest()),
        7 => list(input.rest()),
        8 => output(input),
        9 => bodies(input.rest()),
        10 => swaps(input),
        11 => quotas(input),
        _ => process(input),
    }
}

fn with_magic(mut bytes: [u8; SUPERBLOCK_BYTES]) -> [u8; SUPERBLOCK_BYTES] {
    bytes.iter_mut().skip(0x38).zip([0x53, 0xEF]).for_each(|(to, from)| *to = from);
    bytes
}

fn superblock(bytes: [u8; SUPERBLOCK_BYTES]) {
    if let Some((size, used)) = agent::superblock(&bytes) {
        assert!(used <= size);
        assert_eq!(bytes.get(0x38..0x3A), Some(&[0x53, 0xEF][..]));
    }
    assert_eq!(agent::superblock(&bytes[1..]), None, "too short to be one");
}

/// Any line; and a line about any path, as the kernel writes it.
fn mount_line(line: &[u8]) {
    if let Some((device, point, source)) = agent::mount_line(line) {
        assert!(device.len() + point.as_os_str().len() <= line.len());
        assert!(source.len() <= line.len() * 3, "a byte that is no text shows as three");
    }
    let written = [b"36 35 7:3 / ", seq_path(line).as_slice(), b" rw shared:1 - ext4 /dev/loop3 rw"].concat();
    let (device, point, source) = agent::mount_line(&written).expect("a line as the kernel writes it");
    assert_eq!(point.as_path(), Path::new(OsStr::from_bytes(line)));
    assert_eq!((device.as_str(), source.as_str()), ("7:3", "/dev/loop3"));
}

/// The container's id, and below it /proc/PID/cgroup.
fn freezer(mut input: Input<'_>) {
    let (Ok(id), Some(groups)) = (std::str::from_utf8(input.line()), input.text()) else { return };
    let Some(folder) = agent::freezer_folder(groups, id) else { return };
    assert!(folder.starts_with("/sys/fs/cgroup"), "{}", folder.display());
    assert!(folder.components().all(|part| !matches!(part, Component::ParentDir)), "{}", folder.display());
    let names_it = |part: Component<'_>| {
        let name = part.as_os_str().to_string_lossy();
        let name = name.strip_suffix(".scope").unwrap_or(&name);
        name == id || name.strip_prefix("docker-") == Some(id)
    };
    assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "`{id}` names no container");
    assert!(folder.components().any(names_it), "{} is not of {id}", folder.display());
}

fn small_files(text: &str) {
    if let Some(pressure) = agent::pressure(text) {
        assert!(text.contains("avg10=") && text.contains("some "));
        let shown = format!("some avg10={}.{:02} avg60=0.00\n", pressure / 100, pressure % 100);
        assert_eq!(agent::pressure(&shown), Some(pressure));
    }
    if let (Some(used), _) = agent::cpu_time(text) {
        assert_eq!(agent::cpu_time(&format!("usage_usec {used}\n")).0, Some(used));
    }
    if let (_, Some(used)) = agent::cpu_time(text) {
        assert!(used <= u64::MAX / 1000, "nanoseconds taken for microseconds");
    }
    if let Some(held) = agent::memory_stat(text, "anon") {
        assert_eq!(agent::memory_stat(&format!("anon_thp 7\nanon {}\nfile 1\n", held.0), "anon"), Some(held));
    }
    if let Some(boot) = agent::boot_id(text) {
        let digits = data_encoding::HEXLOWER.encode(boot.bytes());
        assert_eq!(agent::boot_id(&digits), Some(boot));
    }
}

fn packet_rules(output: &[u8]) {
    if let Some((rules, chains, packets)) = agent::nft_listing(output) {
        let value: Value = serde_json::from_slice(output).expect("only JSON is read");
        // Whoever reads it takes a list of its fields for the object, too.
        let items = value.pointer("/nftables").or_else(|| value.pointer("/0"));
        let items = items.and_then(Value::as_array).expect("a list");
        assert!(rules.max(chains) <= items.len());
        assert!(packets.is_none() || items.iter().any(|item| item.get("counter").is_some()));
    }
}

fn key() -> ContainerKey {
    ContainerKey { node: made::node(), cell: made::cell(), slug: made::slug(), creates: CREATES.to_vec() }
}

fn container(inspected: &[u8]) {
    let Some(seen) = agent::seen(inspected, "fingerprint", PORT) else { return };
    // Texts that nobody reads are passed over by the one, and looked into by the other.
    let Ok(value) = serde_json::from_slice::<Value>(inspected) else { return };
    let status = value.pointer("/State/Status").and_then(Value::as_str);
    let (expected, address, fits) = match seen {
        Seen::Running { address, fits } => (vec!["running"], Some(address), fits),
        Seen::Paused { address, fits } => (vec!["paused"], Some(address), fits),
        Seen::Exited { fits, .. } => (vec!["exited", "created"], None, fits),
        _ => return,
    };
    assert!(status.is_some_and(|status| expected.contains(&status)), "{seen:?} of {status:?}");
    assert!(address.is_none_or(|address| address.port() == PORT));
    let plan = value.pointer("/Config/Labels/berth.plan").and_then(Value::as_str);
    assert_eq!(fits, plan == Some("fingerprint"));
}

fn list(summary: &[u8]) {
    let Some(op) = agent::listed(summary, &key()) else { return };
    assert!(CREATES.contains(&op), "a create that was never journaled");
    let Ok(value) = serde_json::from_slice::<Value>(summary) else { return };
    let label =
        |name: &str| value.pointer("/Labels").and_then(|labels| labels.get(name)).and_then(Value::as_str);
    assert_eq!(label("berth.node"), Some(made::node().to_string().as_str()));
    assert_eq!(label("berth.role"), Some("cell"));
}

/// Bounds, the length of the pieces, and what was printed.
fn output(mut input: Input<'_>) {
    let (lines_max, bytes_max, piece) =
        (usize::from(input.byte()), usize::from(input.short()), usize::from(input.byte()).max(1));
    let printed = input.rest();
    let tail = agent::log_tail(printed.chunks(piece), lines_max, bytes_max);
    assert!(tail.len() <= lines_max);
    assert!(tail.iter().map(String::len).sum::<usize>() <= bytes_max);
    assert!(tail.iter().all(|line| line.len() <= LOG_LINE_BYTES_MAX * 3 && !line.contains('\n')));
    assert_eq!(tail, agent::log_tail(std::iter::once(printed), lines_max, bytes_max), "pieces do not matter");
}

/// Any list; and one with a swap at any path, as the kernel writes it. Size and use in KiB, and the path.
fn swaps(mut input: Input<'_>) {
    let (size, used) = (u64::from(input.short()), u64::from(input.short()));
    let Some(text) = input.text() else { return };
    let found = agent::swaps(text);
    assert!(found.len() < text.lines().count().max(1), "more than there are lines");
    assert!(found.iter().map(|(path, ..)| path.as_os_str().len()).sum::<usize>() <= text.len());
    if let Some(pages) = agent::swapped_out(text) {
        assert_eq!(agent::swapped_out(&format!("pgpgin 1\npswpout {pages}\npgmajfault 2\n")), Some(pages));
    }
    let (total, available) = agent::memory(text);
    let again = format!("MemTotal: {} kB\nMemAvailable: {} kB\n", total.0 / 1024, available.0 / 1024);
    if total.0 < u64::MAX && available.0 < u64::MAX {
        assert_eq!(agent::memory(&again), (total, available));
    }
    let path = text.trim_matches('\0');
    if path.is_empty() {
        return;
    }
    let written = seq_path(path.as_bytes());
    let written = String::from_utf8_lossy(&written);
    let listed = format!("Filename\tType\n{written}\tfile\t\t{size}\t\t{used}\t\t-2\n");
    let kib = |count| Bytes(count * 1024);
    assert_eq!(agent::swaps(&listed), [(path.into(), kib(size), kib(used))]);
}

/// A path as the kernel writes it (`seq_path`).
fn seq_path(path: &[u8]) -> Vec<u8> {
    let escaped = path.iter().flat_map(|byte| match byte {
        b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
        _ => vec![*byte],
    });
    escaped.collect()
}

/// Any report; and one in which a user's line stands beside any other. The user and its three numbers, and the other line.
fn quotas(mut input: Input<'_>) {
    let [uid, used, limit, inodes] = [(); 4].map(|()| u32::from_le_bytes(input.array()));
    let Some(text) = input.text() else { return };
    if let Some(counts) = agent::quotas(text.as_bytes()) {
        assert!(counts.len() < text.lines().count(), "more than there are lines");
        assert!(text.contains("HardLimit"));
        assert!(counts.keys().all(|uid| text.contains(&uid.to_string())));
    }
    let other = text.lines().next().unwrap_or_default();
    let report = format!(
        "*** Report for user quotas on device /dev/vdb\nUser,BlockStatus,FileStatus,BlockUsed,BlockSoftLimit,\
         BlockHardLimit,BlockGrace,FileUsed,FileSoftLimit,FileHardLimit,FileGrace\n{other}\n\
         #{uid},ok,ok,{used},0,{limit},,7,0,{inodes},\n"
    );
    let counts = agent::quotas(report.as_bytes());
    assert!(counts.is_some() || other.starts_with('#'), "`{other}` is nobody's");
    if let Some(counts) = counts {
        let kib = |count: u32| Bytes(u64::from(count) * 1024);
        assert_eq!(counts.get(&uid), Some(&(kib(used), kib(limit), inodes.into())));
    }
}

/// The pages, the number of a file, and what the process calls itself and the file.
fn process(mut input: Input<'_>) {
    let (first, pages, inode) =
        (u64::from(input.short()), u64::from(input.short()) + 1, u64::from(input.byte()));
    let name = input.rest();
    let _any = agent::started(name);
    for line in name.split(|byte| *byte == b'\n') {
        if let Some((first, end, file)) = agent::map_line(line) {
            assert!(first < end && end <= 1 << 35, "no address of a process");
            assert!(file.is_none_or(|(device, inode)| inode != 0 && device.len() < line.len()));
        }
    }
    let stat = [b"7 (", name, b") S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21\n"].concat();
    assert_eq!(agent::started(&stat), Some(4711), "a process names itself out of its own number");
    let (shown, ticks) = agent::work(&stat).expect("a process that hides");
    assert_eq!(ticks, 11 + 12);
    assert!(shown.chars().count() <= 15 && !shown.chars().any(char::is_control), "{shown:?}");
    let (from, to) = (first * 4096, (first + pages) * 4096);
    let begin = format!("{from:x}-{to:x} r--s 00001000 fe:00 {inode}      /");
    let name: Vec<u8> = name.iter().copied().filter(|byte| *byte != b'\n').collect();
    let file = (inode != 0).then(|| ("fe:00".to_owned(), inode));
    assert_eq!(
        agent::map_line(&[begin.as_bytes(), &name].concat()),
        Some((first, first + pages, file)),
        "a file's name counts"
    );
    let ranges = agent::unpacked(&name);
    assert!(ranges.len() <= name.len() / 2);
    assert_eq!(agent::unpacked(&agent::packed(&ranges)), ranges);
}

fn bodies(body: &[u8]) {
    fn same<T: Serialize + DeserializeOwned + PartialEq + Debug>(body: &[u8]) {
        if let Ok(value) = serde_json::from_slice::<T>(body) {
            let json = serde_json::to_string(&value).expect("what was read can be written");
            assert_eq!(serde_json::from_str::<T>(&json).expect("what was written can be read"), value);
        }
    }
    same::<CreateUser>(body);
    same::<CreateToken>(body);
    same::<SleepRequest>(body);
    same::<ProblemBody>(body);
    same::<Logs>(body);
    if let Ok(user) = serde_json::from_slice::<User>(body) {
        assert!(!user.slug.as_str().is_empty() && !user.image.as_str().is_empty());
    }
}

/// Inputs to begin with.
pub fn seeds() -> Vec<Vec<u8>> {
    let id = "ab01".repeat(16);
    let mut block = with_magic([0; SUPERBLOCK_BYTES]);
    for (at, value) in [(0x4, 16), (0xC, 4), (0x18, 2), (0x60, 0x80), (0x150, 1)] {
        block.iter_mut().skip(at).take(1).for_each(|byte| *byte = value);
    }
    let labels = json!({
        "berth.node": made::node().to_string(), "berth.cell": made::cell().to_string(), "berth.op": "7",
        "berth.plan": "fingerprint", "berth.role": "cell",
    });
    let network = json!({ "berth-anna-x": { "IPAddress": "10.231.0.2" } });
    let inspected = |status: &str| {
        json!({
            "Id": id, "State": { "Status": status, "Running": true, "Pid": 5, "ExitCode": 78 },
            "Config": { "Labels": labels }, "NetworkSettings": { "Networks": network },
        })
        .to_string()
    };
    let summary =
        json!({ "Id": id, "Names": ["/berth-anna"], "Labels": labels, "State": "exited" }).to_string();
    let mut seeds = vec![
        seed(0, block),
        seed(1, block),
        seed(2, "36 35 7:3 / /var/a\\040b rw,noatime shared:1 master:2 - ext4 /dev/loop3 rw"),
        seed(3, format!("{id}\n12:pids:/docker/{id}\n7:freezer:/docker/{id}\n0::/docker/{id}\n")),
        seed(3, format!("{id}\n0::/system.slice/docker-{id}.scope\n")),
        seed(3, format!("ab\n7:freezer:/docker/{id}\n")),
        seed(
            4,
            "some avg10=12.34 avg60=0.00 avg300=0.00 total=1\nfull avg10=1.00 avg60=0 avg300=0 total=0\n",
        ),
        seed(4, "usage_usec 12\nuser_usec 7\nanon 4096\nfile 0\n"),
        seed(4, "123456789\n"),
        seed(4, "0f0e0d0c-0b0a-0908-0706-050403020100\n"),
        seed(
            5,
            r#"{"nftables":[{"metainfo":{"version":"1.0.6"}},{"table":{"family":"inet","name":"berth","handle":2}},{"counter":{"name":"a","packets":7,"bytes":420}},{"chain":{"name":"c","handle":1}},{"rule":{"chain":"c","handle":7,"expr":[{"drop":null}]}}]}"#,
        ),
        seed(7, summary),
        seed(8, [&[3, 100, 0, 5][..], b"one\ntwo\r\nthree\nfour\n\xff\xfe\nlast"].concat()),
        seed(
            9,
            r#"{"slug":"anna","image":"a:b","workload":"http","memory":"2GiB","cpus":500,"disk":1048576,"rest":"always-on","idle_after":5000,"node":"n1"}"#,
        ),
        seed(9, r#"{"node":"n1","ttl":60000}"#),
        seed(9, r#"{"freeze":true}"#),
        seed(9, r#"{"lines":["a","b"]}"#),
        seed(
            9,
            r#"{"type":"urn:berth:problem:not_found","title":"t","status":404,"detail":"d","code":"not_found","advice":"a","request":"req_aaaaaaaaaaaaaaaaaaaaaaaaaa"}"#,
        ),
    ];
    seeds.extend([
        seed(
            10,
            [
                &[0, 4, 1, 0][..],
                b"Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n/dev/dm-0  partition\t1048576\t\t0\t\t-2\n\
                  /swap\\040file file 1024 512 -3\npswpin 2\npswpout 345\n",
            ]
            .concat(),
        ),
        seed(
            11,
            [
                &[0; 16][..],
                b"User,BlockStatus,FileStatus,SpaceUsed,SpaceHardLimit,FileHardLimit\n#0,ok,ok,20,0,0\n#200001,--,--,7,8,9\n",
            ]
            .concat(),
        ),
        seed(11, [&[0; 16][..], b"#200001,--,--,7,8,9"].concat()),
        seed(
            12,
            [
                &[1, 0, 2, 0, 9][..],
                b"node) R 1\n7f0000000000-7f0000003000 rw-p 00000000 00:00 0 [heap]\n\
                  7f0000000000-7f0000003000 ---p 00001000 fe:00 4711 /usr/bin/a name\n",
            ]
            .concat(),
        ),
        seed(12, [&[1, 0, 2, 0, 0][..], &agent::packed(&[(1, 2), (900, 16), (1 << 34, 1)])].concat()),
    ]);
    seeds.extend(["running", "paused", "exited", "created", "dead"].map(|status| seed(6, inspected(status))));
    seeds
}
