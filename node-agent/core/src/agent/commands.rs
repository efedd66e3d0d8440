//! The coordinator's commands: whom each is for, and the answers, which are kept for a command that comes again.

use berth_shared::cell::WakeCause;
use berth_shared::ids::CellId;
use berth_shared::problem::{Code, Problem};
use berth_shared::wire::{Command, CommandOutcome, CommandVerb};

use super::{Agent, Effect};
use crate::cell::{self, Now, Rest, Waiter};
use crate::disk::Cover;

/// How many answers of commands are kept for their repetition.
pub const ANSWERS_MAX: usize = 256;

/// How many commands may wait for their end at a time.
pub const COMMANDS_MAX: usize = 256;

impl Agent {
    pub(super) fn command(
        &mut self,
        now: Now,
        command: &Command,
        cover: &Cover,
        random: &mut dyn FnMut() -> u64,
        out: &mut Vec<Effect>,
    ) {
        let seq = command.seq;
        if let Some((_, outcome)) = self.answers.iter().find(|(known, _)| *known == seq) {
            out.push(Effect::CommandDone { seq, outcome: outcome.clone() });
            return;
        }
        if self.commands.contains(&seq) || self.asked_snapshots.contains(&seq) {
            return; // Under way: its answer goes out once.
        }
        if command.verb == CommandVerb::Purge {
            // About what lies here of a cell that does not live here any more. It can be done any number of times.
            let (cell, generation) = (command.cell, command.generation);
            return out.push(Effect::Purge { seq, cell, generation });
        }
        let refusal = match self.cells.get(&command.cell) {
            None => Some(Problem::new(Code::UnknownUser, "the cell does not live on this node")),
            Some(cell) if cell.generation() != command.generation => Some(Problem::new(
                Code::StaleGeneration,
                format!("the cell is here under assignment {}", cell.generation()),
            )),
            Some(_) if self.commands.len() >= COMMANDS_MAX && command.verb != CommandVerb::Snapshot => {
                Some(Problem::new(Code::NodeBusy, "the node has too many commands under way"))
            }
            Some(_) => None,
        };
        if let Some(problem) = refusal {
            out.push(Effect::CommandDone { seq, outcome: Err(problem) });
            return;
        }
        let waiter = Waiter(seq);
        let event = match &command.verb {
            CommandVerb::Wake => cell::Event::Wake { cause: WakeCause::Operator, waiter: Some(waiter) },
            CommandVerb::Sleep { freeze } => {
                let rest = if *freeze { Rest::Frozen } else { Rest::Stopped };
                cell::Event::Sleep { rest, waiter }
            }
            CommandVerb::Restart => cell::Event::Restart { waiter },
            CommandVerb::Restore { snapshot } => {
                cell::Event::Restore { snapshot: *snapshot, paths: None, waiter }
            }
            CommandVerb::RestorePaths { snapshot, paths } => {
                cell::Event::Restore { snapshot: *snapshot, paths: Some(paths.clone()), waiter }
            }
            CommandVerb::Archive => {
                let snapshot = cover.get(&command.cell).map(|covered| covered.by);
                cell::Event::Archive { snapshot, waiter: Some(waiter) }
            }
            CommandVerb::Snapshot => {
                self.asked_snapshots.insert(seq);
                return out.push(Effect::Snapshot { seq, cell: command.cell });
            }
            CommandVerb::Logs { lines } => {
                out.push(Effect::ReadLogs { seq, cell: command.cell, lines: *lines });
                return;
            }
            CommandVerb::Purge => return, // Seen to above.
        };
        self.commands.insert(seq);
        self.give(now, command.cell, event, random, out);
    }

    pub(super) fn answer(
        &mut self,
        now: Now,
        id: CellId,
        waiter: Waiter,
        result: Result<(), Problem>,
        out: &mut Vec<Effect>,
    ) {
        let seq = waiter.0;
        let status = self.cells.get(&id).map(|cell| cell.status(now));
        let outcome = match (result, status) {
            (Ok(()), Some(status)) => Ok(CommandOutcome::Cell(Box::new(status))),
            (Ok(()), None) => Err(Problem::new(Code::UnknownUser, "the cell is gone")),
            (Err(problem), _) => Err(problem),
        };
        self.answered(seq, outcome, out);
    }

    /// The answer goes out, and is kept for the command's repetition.
    pub(super) fn answered(
        &mut self,
        seq: u64,
        outcome: Result<CommandOutcome, Problem>,
        out: &mut Vec<Effect>,
    ) {
        self.commands.remove(&seq);
        self.asked_snapshots.remove(&seq);
        if self.answers.len() >= ANSWERS_MAX {
            self.answers.pop_front();
        }
        self.answers.push_back((seq, outcome.clone()));
        out.push(Effect::CommandDone { seq, outcome });
    }
}
