//! The cell as a process: every test starts its own, on a free port and an empty folder.

mod gateway;
mod support;
mod tools;
