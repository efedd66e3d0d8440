//! The worker alone: what `berth-node-agent worker` does.

use berth_daemon::exit::Exit;

fn main() -> Exit {
    berth_snapshot::worker::main()
}
