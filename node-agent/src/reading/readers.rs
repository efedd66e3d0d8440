//! Workers that read users' repositories for their owners. One worker answers one ask after the other, and waits a while
//! for the next: stock `restic` asks for hundreds of small parts, and a process, with a connection to the store, for each
//! of them would cost more than what is read.
//!
//! ```text
//! an ask ──place──turn──> worker (idle one of this cell, else a new one) ──lines──> body of the answer
//!                            └── killed when nobody takes the answer, or it takes too long; ends when nothing is asked
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_daemon::tasks::Tasks;
use berth_shared::ids::CellId;
use berth_shared::problem::{Code, Problem};
use berth_snapshot::Reason;
use berth_snapshot::caller::Workers;
use berth_snapshot::protocol::{Ask, Line, Request};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout, timeout_at};

use crate::snapshots::Access;

/// Asks of one owner that may be open at a time. Stock `restic` has five connections.
const PLACES_PER_CELL: usize = 8;

/// How many of them are answered at a time; where the node has more than one turn, one is always another owner's.
const TURNS_PER_CELL: usize = 2;

/// How long an ask may wait for its turn.
const TURN_MAX: Duration = Duration::from_secs(20);

/// How long a worker waits for the next ask.
const IDLE_MAX: Duration = Duration::from_secs(20);

/// How long a worker lives. In the middle of an answer `restic` asks again.
const WORKER_MAX: Duration = Duration::from_secs(60 * 60);

/// How long the head of an answer may take: the store with all its tries ([`REQUEST_MAX_MS`]), and a listing's pages.
const HEAD_MAX: Duration = Duration::from_secs(60);

/// How long a listing may take in all, whatever keeps coming.
const LISTING_MAX: Duration = Duration::from_secs(10 * 60);

/// How long one request to the bucket may take with all its tries, and how long one try: a connection that hangs is not all
/// that is tried.
const REQUEST_MAX_MS: u64 = 30_000;
const CALL_MAX_MS: u64 = 10_000;

/// Most objects that a listing may have: 16 MiB each, so terabytes.
const OBJECTS_MAX: usize = 200_000;

/// Whoever takes an answer more slowly than this gives the turn back; `restic` asks again, for a part of it.
const RATE_MIN: u64 = 32 * 1024;

/// Lines of an answer that wait to be taken: of content each holds 32 KiB.
const LINES_MAX: usize = 8;

/// A worker that is between two asks.
#[derive(Debug)]
struct Reader {
    cell: CellId,
    access: Access,
    work: mpsc::Sender<Work>,
}

impl Reader {
    /// May it be asked of this repository, with this credential?
    fn fits(&self, cell: CellId, access: &Access) -> bool {
        self.cell == cell
            && self.access.bucket == access.bucket
            && self.access.repository.prefix == access.repository.prefix
            && !self.work.is_closed()
    }
}

/// What is given back when a worker has said its last word of an answer, however it has ended.
#[derive(Debug)]
struct Turn {
    _own: OwnedSemaphorePermit,
    _shared: OwnedSemaphorePermit,
}

/// One ask on its way to a worker.
#[derive(Debug)]
struct Work {
    ask: Ask,
    to: mpsc::Sender<Line>,
    turn: Turn,
    /// The worker's own handle, to be put among the idle ones.
    reader: Reader,
}

/// Of one cell: how many may ask, how many are answered.
#[derive(Debug)]
struct Own {
    places: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Books {
    cells: BTreeMap<CellId, Own>,
    /// The longest idle first.
    idle: Vec<Reader>,
}

/// All of them. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Readers(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    workers: Workers,
    at_once: usize,
    turns: Arc<Semaphore>,
    books: Mutex<Books>,
    tasks: Tasks,
}

/// The beginning of an answer, and what comes behind it.
#[derive(Debug)]
pub(super) struct Answer {
    /// The first line.
    pub(super) first: Line,
    /// The others, to [`Line::Answered`]: without that one it is not whole.
    pub(super) rest: mpsc::Receiver<Line>,
    /// The owner's place: held until whoever asked has taken all of it, and not only until it lies ready.
    pub(super) place: Option<OwnedSemaphorePermit>,
}

impl Readers {
    /// Workers of this program, so many at a time.
    pub(super) fn new(program: PathBuf, at_once: usize, tasks: Tasks) -> Self {
        Self(Arc::new(Inner {
            workers: Workers::new(program, at_once),
            at_once,
            turns: Arc::new(Semaphore::new(at_once)),
            books: Mutex::default(),
            tasks,
        }))
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // No code between lock and unlock can panic half way through a change.
        self.0.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a worker answer, as this user of the machine.
    ///
    /// # Errors
    /// There is no turn, or nothing to be had: said before anything of the answer is.
    pub(super) async fn ask(
        &self,
        cell: CellId,
        uid: u32,
        access: &Access,
        ask: &Ask,
    ) -> Result<Answer, Problem> {
        // A worker that was idle may be about to end: then a new one is asked.
        for _ in 0..2 {
            let (place, turn) = self.turn(cell).await?;
            let Some(answer) = self.ask_one(cell, uid, access, ask, turn).await else { continue };
            return match answer.first {
                Line::Unanswered { reason, detail } => Err(problem(cell, reason, &detail)),
                _ => Ok(Answer { place: Some(place), ..answer }),
            };
        }
        Err(Problem::new(Code::BucketUnreachable, "the worker that reads the repository has ended"))
    }

    async fn turn(&self, cell: CellId) -> Result<(OwnedSemaphorePermit, Turn), Problem> {
        let busy = || Problem::new(Code::WorkersBusy, "as much of the repository is being read as may be");
        let (place, own) = self.place(cell).ok_or_else(busy)?;
        let until = Instant::now() + TURN_MAX;
        let of = async |turns: &Arc<Semaphore>| {
            let turn = timeout_at(until, Arc::clone(turns).acquire_owned()).await;
            turn.map_err(|_| busy())?.map_err(|_| busy())
        };
        let own = of(&own).await?;
        Ok((place, Turn { _own: own, _shared: of(&self.0.turns).await? }))
    }

    /// A place among those who ask of this cell, and the turns that they wait for. Cells that nobody reads of any more are
    /// forgotten.
    fn place(&self, cell: CellId) -> Option<(OwnedSemaphorePermit, Arc<Semaphore>)> {
        let mut books = self.books();
        books.cells.retain(|_, own| own.places.available_permits() < PLACES_PER_CELL);
        let made = || Own {
            places: Arc::new(Semaphore::new(PLACES_PER_CELL)),
            turns: Arc::new(Semaphore::new(TURNS_PER_CELL.min(self.0.at_once.saturating_sub(1)).max(1))),
        };
        let own = books.cells.entry(cell).or_insert_with(made);
        let place = Arc::clone(&own.places).try_acquire_owned().ok()?;
        Some((place, Arc::clone(&own.turns)))
    }

    /// `None`: the worker has ended without a word.
    async fn ask_one(
        &self,
        cell: CellId,
        uid: u32,
        access: &Access,
        ask: &Ask,
        turn: Turn,
    ) -> Option<Answer> {
        let reader = self.idle(cell, access).unwrap_or_else(|| self.begin(cell, uid, access));
        let (to, mut rest) = mpsc::channel(LINES_MAX);
        let work = reader.work.clone();
        work.send(Work { ask: ask.clone(), to, turn, reader }).await.ok()?;
        drop(work);
        rest.recv().await.map(|first| Answer { first, rest, place: None })
    }

    /// An idle worker of this cell. The longest idle one of another is ended where a new one would be one too many.
    fn idle(&self, cell: CellId, access: &Access) -> Option<Reader> {
        let mut books = self.books();
        books.idle.retain(|reader| !reader.work.is_closed());
        if let Some(at) = books.idle.iter().rposition(|reader| reader.fits(cell, access)) {
            return Some(books.idle.remove(at));
        }
        // Whoever has a turn has a worker, or is about to.
        while books.idle.len() > self.0.turns.available_permits() {
            drop(books.idle.remove(0));
        }
        None
    }

    fn begin(&self, cell: CellId, uid: u32, access: &Access) -> Reader {
        let (work, works) = mpsc::channel(1);
        let (readers, mut request) = (self.clone(), access.reading());
        request.store.limits.total_ms = REQUEST_MAX_MS;
        request.store.limits.call_ms = CALL_MAX_MS;
        request.store.limits.objects_max = OBJECTS_MAX;
        tracing::info!(%cell, user = %access.repository.user, "an owner reads their repository");
        self.0.tasks.spawn_client("reader", async move {
            let stop = readers.0.tasks.stopping();
            let _stopped = stop.run_until_cancelled(readers.live(cell, uid, &request, works)).await;
        });
        Reader { cell, access: access.clone(), work }
    }

    /// One worker, from its start to its end.
    async fn live(&self, cell: CellId, uid: u32, request: &Request, mut works: mpsc::Receiver<Work>) {
        let (asks, asked) = mpsc::channel(1);
        let (say, mut lines) = mpsc::channel(LINES_MAX);
        let worker = self.0.workers.converse(request, Some((uid, uid)), WORKER_MAX, asked, say);
        let serve = async {
            while let Ok(Some(Work { ask, to, turn, reader })) = timeout(IDLE_MAX, works.recv()).await {
                if !serve(ask, &to, &asks, &mut lines).await {
                    return;
                }
                // Idle first: whoever gets the turn looks for it.
                self.books().idle.push(reader);
                drop(turn);
            }
        };
        tokio::select! {
            ended = worker => {
                if let Err(failed) = ended {
                    tracing::warn!(%cell, error = failed.to_string(), "a worker that reads a repository has ended");
                }
            }
            () = serve => {}
        }
    }
}

/// Hands one answer on. Says whether the worker is ready for the next ask.
async fn serve(
    ask: Ask,
    to: &mpsc::Sender<Line>,
    asks: &mpsc::Sender<Ask>,
    lines: &mut mpsc::Receiver<Line>,
) -> bool {
    let begun = Instant::now();
    let mut until = begun + HEAD_MAX;
    if asks.send(ask).await.is_err() {
        return false;
    }
    loop {
        let Ok(Some(line)) = timeout_at(until, lines.recv()).await else { return false };
        match line {
            Line::Object { bytes, .. } => {
                until = Instant::now() + HEAD_MAX + Duration::from_secs(bytes / RATE_MIN);
            }
            // A listing comes in pages, and nobody knows how many there are.
            Line::Listed { .. } => until = (Instant::now() + HEAD_MAX).min(begun + LISTING_MAX),
            _ => {}
        }
        let is_last = matches!(line, Line::Answered | Line::Unanswered { .. });
        let taken = matches!(timeout_at(until, to.send(line)).await, Ok(Ok(())));
        // Whoever wanted a size only has gone by the last line.
        if is_last || !taken {
            return is_last;
        }
    }
}

/// What the owner is told: not how the store is reached, which the worker's own words may say.
fn problem(cell: CellId, reason: Reason, detail: &str) -> Problem {
    tracing::info!(%cell, detail, "a part of a repository cannot be given");
    let (code, told) = match reason {
        Reason::NotFound => (Code::NotFound, "there is no such object"),
        Reason::StoreRefused | Reason::NoBucket => {
            (Code::BucketRefused, "the store of the snapshots refuses it")
        }
        Reason::StoreDamaged => (Code::RepositoryDamaged, "the store gives what cannot be right"),
        Reason::TooLarge => (Code::TooMany, "the repository has more objects than are listed"),
        _ => (Code::BucketUnreachable, "the store of the snapshots does not answer"),
    };
    Problem::new(code, told)
}

#[cfg(test)]
mod tests;
