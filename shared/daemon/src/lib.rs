//! What Berth's three daemons start with.
//!
//! A daemon's `main` reads: [`telemetry`] → [`config`] → validate → bind ([`listen`]) → build → spawn ([`tasks`])
//! → [`notify`] ready → wait ([`run::supervise`]) → [`exit`]. Nothing here knows what a daemon does; everything
//! here is the same in the coordinator, the node agent and the ingress.

pub mod cli;
pub mod config;
pub mod credentials;
pub mod doctor;
pub mod durable;
pub mod env;
pub mod exit;
pub mod failpoint;
pub mod http;
pub mod journal;
pub mod listen;
pub mod metrics;
pub mod notify;
pub mod panics;
pub mod program;
pub mod run;
pub mod secret_file;
pub mod signals;
pub mod tasks;
pub mod telemetry;
pub mod terminal;
