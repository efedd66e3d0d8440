//! What the environment has armed in this process, and what a passed point does about it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use crate::spec::{self, Action, Armed};
use crate::{Due, Kind, Point, Start, TRACE_VARIABLE, VARIABLE};

/// The points that [`start`] was told of.
static KNOWN: OnceLock<BTreeMap<&'static str, Kind>> = OnceLock::new();

/// Set by the first pass or by [`start`]; `None` where the environment says nothing.
static SWITCHES: OnceLock<Option<Switches>> = OnceLock::new();

struct Switches {
    /// Whence [`State::text`] is read anew at each pass.
    file: Option<PathBuf>,
    trace: Option<File>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What `armed` was read from. Another text arms anew and counts from the beginning.
    text: String,
    armed: Vec<Armed>,
}

fn switches() -> Option<&'static Switches> {
    SWITCHES
        .get_or_init(|| Switches::of(std::env::var_os(VARIABLE), std::env::var_os(TRACE_VARIABLE)))
        .as_ref()
}

impl Switches {
    fn of(armed: Option<OsString>, trace: Option<OsString>) -> Option<Self> {
        if armed.is_none() && trace.is_none() {
            return None;
        }
        let text = armed.map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
        let file = text.strip_prefix('@').map(PathBuf::from);
        let trace = trace.map(|path| {
            let opened = OpenOptions::new().create(true).append(true).open(&path);
            opened.unwrap_or_else(|error| misused(&format!("{}: {error}", path.to_string_lossy())))
        });
        let mut state = State::default();
        if file.is_none() {
            state.arm(text);
        }
        Some(Self { file, trace, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &self.file {
            // No file: nothing is armed.
            let text = std::fs::read_to_string(file).unwrap_or_default();
            if text != state.text {
                state.arm(text);
            }
        }
        state
    }
}

impl State {
    fn arm(&mut self, text: String) {
        self.armed = spec::parse(&text).unwrap_or_else(|error| misused(&error));
        if let Some(Err(error)) = KNOWN.get().map(|known| check(&self.armed, known)) {
            misused(&error);
        }
        self.text = text;
    }
}

/// A test that arms something that does not exist would wait for ever: it shall hear at once.
fn misused(error: &str) -> ! {
    say(&format!("{VARIABLE}: {error}"));
    std::process::abort()
}

fn say(text: &str) {
    // Nobody is left to be told that stderr is gone.
    let _unwritten = writeln!(std::io::stderr(), "{text}");
}

fn check(armed: &[Armed], known: &BTreeMap<&'static str, Kind>) -> Result<(), String> {
    for Armed { name, action, .. } in armed {
        match known.get(name.as_str()) {
            None => {
                return Err(format!("there is no failpoint `{name}`; {VARIABLE}=list shows what there is"));
            }
            Some(kind) if !spec::fits(*action, *kind) => {
                return Err(format!("`{name}` is {}: this action is not for it", kind.as_str()));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

pub(crate) fn start(lists: &[&[&'static Point]]) -> Start {
    let mut known = BTreeMap::new();
    for point in lists.iter().copied().flatten() {
        if known.insert(point.name, point.kind).is_some() {
            return Start::Refuse(format!("two failpoints have the name `{}`", point.name));
        }
    }
    let text = std::env::var_os(VARIABLE).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default();
    if text == "list" {
        return Start::Print(
            known.iter().map(|(name, kind)| format!("{name} {}\n", kind.as_str())).collect(),
        );
    }
    if !text.starts_with('@')
        && let Err(error) = spec::parse(&text).and_then(|armed| check(&armed, &known))
    {
        return Start::Refuse(format!("{VARIABLE}: {error}"));
    }
    // A second call, which no daemon makes, would name the same points.
    let _known_already = KNOWN.set(known);
    Start::Go
}

pub(crate) fn pass(point: &Point) -> Due {
    let Some(switches) = switches() else { return Due::Nothing };
    if let Some(mut trace) = switches.trace.as_ref() {
        // One write of a line: lines of several threads and of an earlier life do not mix.
        let _untold = trace.write_all(format!("{}\n", point.name).as_bytes());
    }
    let mut due = Due::Nothing;
    for armed in switches.state().armed.iter_mut().filter(|armed| armed.name == point.name) {
        armed.passed += 1;
        if armed.passed == armed.at {
            match armed.action {
                Action::Kill => die(armed),
                Action::Do(what) => due = what,
            }
        }
    }
    due
}

pub(crate) fn is_armed(point: &Point) -> bool {
    switches().is_some_and(|switches| switches.state().armed.iter().any(|armed| armed.name == point.name))
}

fn die(armed: &Armed) -> ! {
    say(&format!("failpoint {} reached at pass {}, dying", armed.name, armed.passed));
    let _ends_here = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    // A process that cannot kill itself ends otherwise, and whoever waits for the kill sees how.
    std::process::abort()
}
