//! The task that decides, appends, publishes and answers.

use std::sync::Arc;

use berth_coordinator_core::event::Encoded;
use berth_coordinator_core::{Event, Fleet};
use berth_daemon::exit::{Exit, ExitError, chain};
use berth_daemon::tasks::Tasks;
use berth_journal::{Journal, JournalError, KindId, KindVersion, NewRecord, Storage};
use berth_shared::problem::{Code, Problem};
use berth_shared::time::UnixMs;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::start::Snapshots;
use super::states::States;
use super::{Accepted, BATCH_MAX, Opened, QUEUE_MAX, Request, Store};
use crate::failpoint;
use crate::metrics::Metrics;

/// Owns fleet and journal.
pub struct Writer<S: Storage> {
    journal: Journal<S>,
    states: States,
    requests: mpsc::Receiver<Request>,
    publish: watch::Sender<Arc<Fleet>>,
    metrics: Arc<Metrics>,
    wall: fn() -> UnixMs,
    snapshots: Snapshots,
    /// Last, so that whoever hears of the end finds every answer given.
    _ended: DropGuard,
}

type Reply = oneshot::Sender<Result<Accepted, Problem>>;

/// A command that was decided and not yet answered.
struct Decided {
    reply: Reply,
    outcome: Result<Vec<Event>, Problem>,
    /// It was decided on a state that is not on stable storage yet, or made it.
    tentative: bool,
}

/// A batch, decided, and what has to be written before it counts.
struct Batch {
    decided: Vec<Decided>,
    encoded: Vec<Encoded>,
}

impl<S> Writer<S>
where
    S: Storage + Send + 'static,
    S::File: Send,
{
    /// A writer and the way to it.
    pub fn new(opened: Opened<S>, metrics: Arc<Metrics>, wall: fn() -> UnixMs) -> (Self, Store) {
        let (to_writer, requests) = mpsc::channel(QUEUE_MAX);
        let Opened { journal, snapshots, fleet, .. } = opened;
        let states = States::new(fleet);
        let (publish, fleet) = watch::channel(Arc::clone(states.published()));
        let ended = CancellationToken::new();
        let _ended = ended.clone().drop_guard();
        let writer = Self { journal, states, requests, publish, metrics, wall, snapshots, _ended };
        (writer, Store { requests: to_writer, fleet, ended })
    }

    /// Works until `stop`, then answers what has come in and closes the journal.
    ///
    /// # Errors
    /// It is unknown what the disk holds: the process has to end. Callers that wait are told that nothing is sure.
    pub async fn run(mut self, tasks: Tasks, stop: CancellationToken) -> Result<(), ExitError> {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        loop {
            let waiting = tokio::select! {
                biased;
                count = self.requests.recv_many(&mut batch, BATCH_MAX) => count,
                () = stop.cancelled(), if !self.requests.is_closed() => {
                    self.requests.close();
                    continue;
                }
            };
            if waiting == 0 {
                break;
            }
            let requests = std::mem::take(&mut batch);
            self = tasks
                .blocking("journal commit", move || self.commit(requests))
                .await
                .map_err(|lost| Exit::Software.because(lost))??;
        }
        let close = move || {
            let mark = self.journal.mark();
            let closed = self.journal.close();
            if closed.is_ok() {
                self.snapshots.last(self.states.published(), mark);
            }
            closed
        };
        let closed = tasks.blocking("journal close", close).await;
        closed.map_err(|lost| Exit::Software.because(lost))?.map_err(|error| Exit::Io.because(error))
    }

    /// On a blocking thread: everything between taking a batch and answering it.
    fn commit(mut self, requests: Vec<Request>) -> Result<Self, ExitError> {
        let batch = decide(&mut self.states, requests, self.wall);
        if !self.states.is_tentative() {
            self.answer(batch.decided, None);
            return Ok(self);
        }
        let records = new_records(&batch.encoded);
        failpoint::STORE_DECIDED.reach();
        match self.journal.append_group(&records) {
            Ok(_committed) => {
                self.metrics.journal_groups.inc();
                self.metrics.journal_events.inc_by(u64::try_from(records.len()).unwrap_or(u64::MAX));
                // Published before it is answered: whoever has an answer finds its effect.
                self.publish.send_replace(self.states.written());
                failpoint::STORE_PUBLISHED.reach();
                self.answer(batch.decided, None);
                self.snapshots.due(self.states.published(), self.journal.mark());
                Ok(self)
            }
            Err(error) => {
                let fatal = error.is_fatal();
                let full = matches!(error, JournalError::Full { .. });
                let problem = if full {
                    Problem::new(Code::JournalFull, chain(&error))
                } else {
                    Problem::new(Code::Internal, "the journal could not be written")
                };
                tracing::error!(error = chain(&error), full, fatal, "a group of events was not written");
                self.metrics.journal_failures.inc();
                self.states.thrown_away();
                self.answer(batch.decided, Some(&problem));
                if fatal { Err(Exit::Io.because(error)) } else { Ok(self) }
            }
        }
    }

    /// Answers all; what was tentative is answered with `lost`, where it is given.
    fn answer(&self, decided: Vec<Decided>, lost: Option<&Problem>) {
        for Decided { reply, outcome, tentative } in decided {
            let answer = match lost {
                Some(problem) if tentative => Err(problem.clone()),
                Some(_) | None => {
                    outcome.map(|events| Accepted { events, fleet: Arc::clone(self.states.published()) })
                }
            };
            // A caller that has gone does not need its answer.
            let _gone = reply.send(answer);
        }
    }
}

fn decide(states: &mut States, requests: Vec<Request>, wall: fn() -> UnixMs) -> Batch {
    let mut encoded = vec![];
    let mut decided = Vec::with_capacity(requests.len());
    for Request { actor, command, reply } in requests {
        let outcome = states
            .working()
            .decide(wall(), actor, &command)
            .map_err(|refusal| Problem::from(&refusal))
            .and_then(|events| encode(&events).map(|bytes| (events, bytes)));
        let outcome = outcome.map(|(events, bytes)| {
            states.try_out(&events);
            encoded.extend(bytes);
            events
        });
        decided.push(Decided { reply, outcome, tentative: states.is_tentative() });
    }
    Batch { decided, encoded }
}

/// Events as the journal takes them.
pub(crate) fn new_records(encoded: &[Encoded]) -> Vec<NewRecord<'_>> {
    encoded
        .iter()
        .map(|event| NewRecord {
            kind: KindId(event.kind),
            version: KindVersion(event.version),
            payload: &event.payload,
        })
        .collect()
}

fn encode(events: &[Event]) -> Result<Vec<Encoded>, Problem> {
    events.iter().map(Event::encode).collect::<Result<_, _>>().map_err(|error| {
        tracing::error!(error = chain(&error), "an event could not be encoded");
        Problem::new(Code::Internal, "the decision could not be written down")
    })
}
