//! The child: reads one request, does it, says how it went.
//!
//! It runs as the cell's uid beside the daemon, which must not hold what this needs of memory, nor wait for what a
//! hostile folder or a far store makes it wait for. Whoever started it may kill it at any moment.

use std::io::{BufRead, Read, Write};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use berth_daemon::exit::Exit;
use rustix::process::{DumpableBehavior, Resource, Rlimit};

use crate::error::{Failure, Reason};
use crate::progress::Meter;
use crate::protocol::{
    Job, LINE_BYTES_MAX, Line, Outcome, ProcessLimits, REQUEST_BYTES_MAX, Request, VERSION,
};
use crate::repository::{self, OpenRepository, Opening};
use crate::store::{S3Store, Traffic, check_store};
use crate::{check, import, look, objects, prune, read, restore, snapshot, tar};

/// How often progress is told. Also how soon it is noticed that nobody listens any more.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// Ended before most others when memory is short: nothing is lost with a worker.
const WORKER_OOM_SCORE: &str = "500";

/// Does the one job that comes on standard input. This is all of `berth-node-agent worker`.
pub fn main() -> Exit {
    // The daemon may be one that the kernel should spare. Written first: below, what is in /proc/self comes to be root's.
    let _as_it_was = std::fs::write("/proc/self/oom_score_adj", WORKER_OOM_SCORE);
    // Other processes of this uid, the cell's among them, may not look into this one's memory: there are keys in it.
    let _older_kernel = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    let out = Out(Arc::new(Mutex::new(std::io::stdout())));
    out.say(&Line::Hello { version: VERSION });
    // Locked by this thread for ever: what comes behind the request is read here, too.
    let mut input = std::io::stdin().lock();
    let done = read_request(&mut input).and_then(|request| run(&request, &mut input, &out));
    match done {
        Ok(line) => {
            out.say(&line);
            Exit::Ok
        }
        Err(failure) => {
            let reason = failure.reason();
            out.say(&Line::Failed { reason, detail: failure.text() });
            reason.exit()
        }
    }
}

fn read_request(input: &mut impl BufRead) -> Result<Request, Failure> {
    let mut text = zeroize::Zeroizing::new(Vec::with_capacity(8192));
    let read = input.take(REQUEST_BYTES_MAX + 1).read_until(b'\n', &mut text);
    read.map_err(|error| Failure::bad_job(format!("standard input cannot be read: {error}")))?;
    if text.len() as u64 > REQUEST_BYTES_MAX {
        return Err(Failure::bad_job("the request is too long"));
    }
    // Of what was read only the place is told: the text may be a key's.
    let request: Request = serde_json::from_slice(&text).map_err(|error| {
        Failure::bad_job(format!(
            "the request cannot be read, line {} column {}",
            error.line(),
            error.column()
        ))
    })?;
    if request.version != VERSION {
        return Err(Failure::bad_job(format!(
            "the request is of version {}, this is {VERSION}",
            request.version
        )));
    }
    Ok(request)
}

/// Standard output, of which each line is whole. When nobody reads it any more the process ends.
#[derive(Debug, Clone)]
struct Out(Arc<Mutex<std::io::Stdout>>);

impl Out {
    fn say(&self, line: &Line) {
        let Ok(mut text) = serde_json::to_string(line) else { return };
        if text.len() >= LINE_BYTES_MAX {
            return;
        }
        text.push('\n');
        let mut out = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            std::process::exit(Exit::TempFail.code().into());
        }
    }
}

fn limit(limits: ProcessLimits) {
    let bound = Some(limits.memory_bytes);
    let _told_by_nobody =
        rustix::process::setrlimit(Resource::Data, Rlimit { current: bound, maximum: bound });
    let _no_core = rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _as_it_was = rustix::process::nice(limits.nice.min(19).into());
}

fn run(request: &Request, input: &mut dyn BufRead, out: &Out) -> Result<Line, Failure> {
    limit(request.process);
    let store = S3Store::new(&request.store)?;
    let meter = Arc::new(Meter::default());
    let ended = Arc::new(AtomicBool::new(false));
    let ticker = {
        let (meter, ended, out) = (Arc::clone(&meter), Arc::clone(&ended), out.clone());
        std::thread::Builder::new().name("progress".to_owned()).spawn(move || {
            while !ended.load(Ordering::Acquire) {
                let (entries, bytes) = meter.read();
                out.say(&Line::Progress { entries, bytes });
                std::thread::park_timeout(PROGRESS_EVERY);
            }
        })
    };
    // The library panics where its threads meet an error that it does not expect.
    let mut say = |line: Line| {
        out.say(&line);
        Ok(())
    };
    let done =
        std::panic::catch_unwind(AssertUnwindSafe(|| perform(request, &store, &meter, input, &mut say)));
    ended.store(true, Ordering::Release);
    if let Ok(ticker) = ticker {
        ticker.thread().unpark();
        let _panicked = ticker.join();
    }
    let outcome = done.unwrap_or_else(|panic| {
        Err(store.take_error().map_or_else(
            || Failure::Internal { detail: format!("the library gave up: {}", panic_text(panic.as_ref())) },
            Failure::Store,
        ))
    })?;
    Ok(Line::Done { outcome, traffic: store.traffic(), memory_bytes_peak: memory_bytes_peak() })
}

pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a text").chars().take(200).collect()
}

fn perform(
    request: &Request,
    store: &Arc<S3Store>,
    meter: &Meter,
    input: &mut dyn BufRead,
    say: &mut dyn FnMut(Line) -> Result<(), Failure>,
) -> Result<Outcome, Failure> {
    let key = || request.key.as_ref().ok_or_else(|| Failure::bad_job("the job needs a key"));
    let opening = || -> Result<Opening<'_>, Failure> { Ok(Opening::new(store, key()?)) };
    let open = || -> Result<OpenRepository, Failure> { repository::open(store, key()?) };
    let told = |count| Outcome::Told { count };
    Ok(match &request.job {
        Job::CheckStore => Outcome::StoreChecked(check_store(store)?),
        Job::Init { password, chunking } => {
            repository::init(store, key()?, password, *chunking)?;
            Outcome::Initialised
        }
        Job::Snapshot(job) => Outcome::Taken(snapshot::take(opening()?, job, meter)?),
        Job::Import(job) => Outcome::Imported(import::import(open()?, job, input, meter)?),
        Job::Restore(job) => Outcome::Restored(restore::restore(opening, job, meter)?),
        Job::Verify(job) => Outcome::Verified(restore::verify::verify(open()?, job, meter)?),
        Job::Check { read_percent } => Outcome::Checked(check::check(&open()?, *read_percent)?),
        Job::Prune(job) => Outcome::Pruned(prune::prune(&open()?, job)?),
        Job::Folders => {
            let folders = store.folders()?;
            let count = folders.len() as u64;
            for name in folders {
                say(Line::Folder { name })?;
            }
            told(count)
        }
        Job::Read => told(read::read(store, input, say)?),
        Job::Objects => told(objects::list(store, say)?),
        Job::Fetch { name } => told(objects::fetch(store, name, say)?),
        Job::Put { name, bytes } => told(objects::put(store, name, *bytes, input)?),
        Job::Remove { names } => told(objects::remove(store, names)?),
        Job::List => told(look::list(&open()?, say)?),
        Job::Ls { snapshot, path, recursive } => told(look::ls(open()?, snapshot, path, *recursive, say)?),
        Job::Show { snapshot, paths } => Outcome::Shown(look::show(open()?, snapshot, paths)?),
        Job::Diff { from, to } => told(look::diff(open()?, from, to, say)?),
        Job::Tar { snapshot } => told(tar::tar(open()?, snapshot, say)?),
        Job::Dump { snapshot, path, to } => told(look::dump(open()?, snapshot, path, to.as_deref(), say)?),
    })
}

/// The resident set's peak, as the kernel says it. 0 where it does not.
fn memory_bytes_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB"));
    peak.and_then(|text| text.trim().parse::<u64>().ok()).map_or(0, |kib| kib.saturating_mul(1024))
}

/// Does a job in this process, but for what reads behind the request: for tests and benches. What a worker would have said before its last
/// line goes to `say`; what was asked of the store comes along.
///
/// # Errors
/// [`Reason`] and a text for people.
pub fn perform_here(
    request: &Request,
    say: &mut dyn FnMut(Line),
) -> Result<(Outcome, Traffic), (Reason, String)> {
    let told = |failure: Failure| (failure.reason(), failure.text());
    let store = S3Store::new(&request.store).map_err(|error| told(error.into()))?;
    let mut say = |line: Line| {
        say(line);
        Ok(())
    };
    let outcome =
        perform(request, &store, &Meter::default(), &mut std::io::empty(), &mut say).map_err(told)?;
    Ok((outcome, store.traffic()))
}
