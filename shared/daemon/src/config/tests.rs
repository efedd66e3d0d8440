use super::*;
use serde::Deserialize;

#[derive(Debug, Deserialize, PartialEq, Default)]
#[serde(default)]
struct Demo {
    name: String,
    slots: u32,
    share: f64,
    quiet: bool,
    link: Link,
    tags: Vec<String>,
    kind: Kind,
    limit: Option<Port>,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(default)]
struct Link {
    listen: String,
    timeout_ms: u64,
}

impl Default for Link {
    fn default() -> Link {
        Link { listen: "127.0.0.1:1".to_owned(), timeout_ms: 500 }
    }
}

#[derive(Debug, Deserialize, PartialEq, Default)]
#[serde(rename_all = "snake_case")]
enum Kind {
    #[default]
    File,
    Memory {
        bytes: u64,
    },
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(try_from = "u16")]
struct Port(u16);

impl TryFrom<u16> for Port {
    type Error = String;

    fn try_from(number: u16) -> Result<Port, String> {
        if number < 1024 { Err(format!("{number} is below 1024")) } else { Ok(Port(number)) }
    }
}

const PREFIX: &str = "BERTH_DEMO_";

struct Case {
    folder: tempfile::TempDir,
    file: Option<PathBuf>,
    env: Env,
    overrides: Vec<(String, String)>,
}

impl Case {
    fn new(file: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Case {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("demo.toml");
        std::fs::write(&path, file).unwrap();
        Case {
            folder,
            file: Some(path),
            env: env.iter().copied().collect(),
            overrides: flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        }
    }

    fn load<T: DeserializeOwned>(&self) -> Result<Loaded<T>, ConfigError> {
        load_with_origins(&Sources {
            file: self.file.clone(),
            env_prefix: PREFIX,
            env_ignored: &["BERTH_DEMO_CONFIG"],
            env: &self.env,
            overrides: self.overrides.clone(),
        })
    }

    fn demo(&self) -> Demo {
        self.load().unwrap().value
    }

    /// The report, with the folder's name taken out.
    fn report(&self) -> Vec<String> {
        match self.load::<Demo>() {
            Err(ConfigError::Invalid { problems }) => {
                let folder = format!("{}/", self.folder.path().display());
                problems.iter().map(|problem| problem.to_string().replace(&folder, "")).collect()
            }
            other => panic!("expected a report, got {other:?}"),
        }
    }
}

#[test]
fn without_any_source_the_defaults_of_the_code_hold() {
    let env = Env::default();
    let sources =
        Sources { file: None, env_prefix: PREFIX, env_ignored: &[], env: &env, overrides: Vec::new() };
    assert_eq!(load::<Demo>(&sources).unwrap(), Demo::default());
}

#[test]
fn later_layers_win_key_by_key() {
    let case = Case::new(
        "name = 'file'\nslots = 1\n[link]\nlisten = 'file'\ntimeout_ms = 1\n",
        &[("BERTH_DEMO_SLOTS", "2"), ("BERTH_DEMO_LINK__LISTEN", "env"), ("OTHER_NAME", "x")],
        &[("link.listen", "flag"), ("link.listen", "later flag")],
    );
    let demo = case.demo();
    assert_eq!((demo.name.as_str(), demo.slots), ("file", 2));
    assert_eq!(demo.link, Link { listen: "later flag".to_owned(), timeout_ms: 1 });
}

#[test]
fn text_of_the_environment_takes_the_type_of_its_key() {
    let case = Case::new(
        "",
        &[
            ("BERTH_DEMO_NAME", "123"),
            ("BERTH_DEMO_SLOTS", "1_000"),
            ("BERTH_DEMO_SHARE", "0.5"),
            ("BERTH_DEMO_QUIET", "true"),
            ("BERTH_DEMO_TAGS", "['a', 'b']"),
            ("BERTH_DEMO_LIMIT", "8080"),
            ("BERTH_DEMO_KIND__MEMORY__BYTES", "7"),
            ("BERTH_DEMO_LABELS__ZONE", "true"),
            ("BERTH_DEMO_LINK", "{ timeout_ms = 3 }"),
        ],
        &[],
    );
    let demo = case.demo();
    assert_eq!(demo.name, "123");
    assert_eq!(demo.slots, 1000);
    assert!((demo.share - 0.5).abs() < f64::EPSILON);
    assert!(demo.quiet);
    assert_eq!(demo.tags, ["a", "b"]);
    assert_eq!(demo.limit, Some(Port(8080)));
    assert_eq!(demo.kind, Kind::Memory { bytes: 7 });
    assert_eq!(demo.labels["zone"], "true");
    assert_eq!(demo.link.timeout_ms, 3);
}

#[test]
fn an_enum_is_read_from_a_word_and_from_a_table() {
    assert_eq!(Case::new("kind = 'file'", &[], &[]).demo().kind, Kind::File);
    assert_eq!(
        Case::new("kind = { memory = { bytes = 9 } }", &[], &[]).demo().kind,
        Kind::Memory { bytes: 9 }
    );
    let report = Case::new("kind = 'memroy'", &[], &[]).report();
    assert_eq!(report, ["demo.toml:1: kind: unknown value `memroy`; did you mean `memory`?"]);
}

#[test]
fn every_unknown_key_is_named_with_its_place_and_the_nearest_known_one() {
    let case = Case::new(
        "name = 'x'\n\n[link]\nlisten = 'x'\ntimout_ms = 3\n",
        &[("BERTH_DEMO_SLOT", "1"), ("BERTH_DEMO_CONFIG", "ignored")],
        &[("link.zzzzzzzz", "1")],
    );
    assert_eq!(
        case.report(),
        [
            "demo.toml:5: link.timout_ms: unknown key `timout_ms`; did you mean `timeout_ms`?",
            "command line, link.zzzzzzzz: link.zzzzzzzz: unknown key `zzzzzzzz`; known here: listen, timeout_ms",
            "environment variable BERTH_DEMO_SLOT: slot: unknown key `slot`; did you mean `slots`?",
        ]
    );
}

#[test]
fn several_wrong_values_are_reported_together() {
    let case = Case::new(
        "slots = 'many'\ntags = [1]\nlimit = 80\nnmae = 1\n",
        &[("BERTH_DEMO_LINK__TIMEOUT_MS", "soon"), ("BERTH_DEMO_QUIET", "yes")],
        &[],
    );
    let mut report = case.report();
    report.sort();
    assert_eq!(
        report,
        [
            "demo.toml:1: slots: invalid type: string \"many\", expected u32",
            "demo.toml:2: tags.0: invalid type: integer `1`, expected a string",
            "demo.toml:3: limit: 80 is below 1024",
            "demo.toml:4: nmae: unknown key `nmae`; did you mean `name`?",
            "environment variable BERTH_DEMO_LINK__TIMEOUT_MS: link.timeout_ms: \
             `soon` is not a whole number from 0 that fits 64 bits",
            "environment variable BERTH_DEMO_QUIET: quiet: `yes` is not true or false",
        ]
    );
}

#[test]
fn syntax_errors_name_their_line() {
    let report = Case::new("name = 'x'\nslots = = 1\n", &[], &[]).report();
    assert!(report[0].starts_with("demo.toml:2: not TOML: "), "{report:?}");
}

#[test]
fn a_number_beyond_64_bits_is_a_problem_and_not_a_wrap() {
    let report = Case::new("slots = 99999999999999999999\n", &[], &[]).report();
    assert_eq!(report, ["demo.toml:1: slots: this number does not fit 64 bits"]);
}

#[test]
fn a_key_with_an_empty_part_is_refused() {
    let report = Case::new("", &[("BERTH_DEMO_LINK____LISTEN", "x")], &[]).report();
    assert_eq!(report.len(), 1);
    assert!(report[0].contains("a part of the key is empty"), "{report:?}");
}

#[test]
fn a_required_key_that_is_not_set_is_named() {
    #[derive(Debug, Deserialize)]
    struct Strict {
        #[expect(dead_code, reason = "only its absence matters")]
        domain: String,
    }
    let error = Case::new("", &[], &[]).load::<Strict>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "the config is wrong (config_invalid):\n  domain: this key is required and not set"
    );
    assert_eq!(error.exit(), Exit::Usage);
}

#[test]
fn a_wrong_value_of_a_required_key_is_reported_once() {
    #[derive(Debug, Deserialize)]
    struct Strict {
        #[expect(dead_code, reason = "only its type matters")]
        count: u8,
    }
    let error = Case::new("count = 300", &[], &[]).load::<Strict>().unwrap_err();
    let ConfigError::Invalid { problems } = error else { panic!("{error:?}") };
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(problems[0].key, "count");
}

#[test]
fn a_file_that_was_named_must_exist() {
    let mut case = Case::new("", &[], &[]);
    case.file = Some(case.folder.path().join("other.toml"));
    let error = case.load::<Demo>().unwrap_err();
    assert_eq!(error.exit(), Exit::NoInput);
    assert!(error.to_string().contains("other.toml"));
}

#[test]
fn a_file_that_is_too_large_is_not_parsed() {
    let text = "#".repeat(usize::try_from(CONFIG_FILE_BYTES_MAX).unwrap() + 1);
    assert!(matches!(Case::new(&text, &[], &[]).load::<Demo>(), Err(ConfigError::TooLarge { .. })));
}

#[test]
fn the_daemons_own_findings_carry_the_place_too() {
    let loaded = Case::new("\nslots = 3\n", &[], &[("link.listen", "0.0.0.0:1")]).load::<Demo>().unwrap();
    assert_eq!(loaded.origin("link.timeout_ms"), Origin::Default);
    assert_eq!(
        loaded.problem("link.listen", "not loopback").origin,
        Origin::Flag { key: "link.listen".to_owned() }
    );
    let problems = vec![loaded.problem("slots", "too few")];
    let error = loaded.check(problems).unwrap_err().to_string();
    assert!(error.ends_with("demo.toml:2: slots: too few"), "{error}");
}

#[test]
fn an_override_needs_a_key_and_a_value() {
    assert_eq!(parse_override("a.b=c=d"), Ok(("a.b".to_owned(), "c=d".to_owned())));
    assert!(parse_override("a.b").is_err());
    assert!(parse_override("=x").is_err());
}
