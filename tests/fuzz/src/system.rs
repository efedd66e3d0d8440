//! What the machine says: kernel, Docker, `nft`; and the bodies of the HTTP API.
//!
//! | choice | what is tried |
//! |---|---|
//! | 0, 1 | a superblock, as it is and with its magic number |
//! | 2 | a line of mountinfo |
//! | 3 | the control groups of a process: whose processes would be killed |
//! | 4 | memory pressure, the boot id |
//! | 5 | packet rules |
//! | 6 | what Docker says of one container |
//! | 7 | what Docker lists |
//! | 8 | the output of a container, in any pieces |
//! | 9 | bodies of the HTTP API |

use std::ffi::OsStr;
use std::fmt::Debug;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use berth_node_agent::fuzz as agent;
use berth_node_agent::runtime::{ContainerKey, LOG_LINE_BYTES_MAX};
use berth_node_agent_core::cell::Seen;
use berth_shared::api::{CreateToken, CreateUser, Logs, ProblemBody, SleepRequest, User};
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
    match input.choice(10) {
        0 => superblock(input.array()),
        1 => superblock(with_magic(input.array())),
        2 => mount_line(input.rest()),
        3 => freezer(input),
        4 => input.text().into_iter().for_each(small_files),
        5 => packet_rules(input.rest()),
        6 => container(input.rest()),
        7 => list(input.rest()),
        8 => output(input),
        _ => bodies(input.rest()),
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
    let escaped: Vec<u8> = line
        .iter()
        .flat_map(|byte| match byte {
            b' ' | b'\t' | b'\n' | b'\\' => format!("\\{byte:03o}").into_bytes(),
            _ => vec![*byte],
        })
        .collect();
    let written = [b"36 35 7:3 / ", escaped.as_slice(), b" rw shared:1 - ext4 /dev/loop3 rw"].concat();
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
    if let Some(boot) = agent::boot_id(text) {
        let digits = data_encoding::HEXLOWER.encode(boot.bytes());
        assert_eq!(agent::boot_id(&digits), Some(boot));
    }
}

fn packet_rules(output: &[u8]) {
    if let Some((rules, chains, packets)) = agent::nft_listing(output) {
        let value: Value = serde_json::from_slice(output).expect("only JSON is read");
        let items = value.pointer("/nftables").and_then(Value::as_array).expect("a list");
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
    seeds.extend(["running", "paused", "exited", "created", "dead"].map(|status| seed(6, inspected(status))));
    seeds
}
