//! The S3 server of the tests as a program of its own: for scripts, the demo and the bench.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use berth_test_s3::{ADMIN_KEY, ADMIN_SECRET, NODE_KEY, NODE_SECRET, REGION, Server};
use clap::Parser;

/// Serves a folder as an S3 store until its standard input ends. For tests: what it writes is not synced.
///
/// Prints one line with endpoint, bucket, region and the two credentials when it answers.
#[derive(Debug, Parser)]
struct Cli {
    /// The folder that holds the buckets.
    root: PathBuf,
    /// Where to listen; port 0 is any.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// A bucket to make.
    #[arg(long, default_value = "berth")]
    bucket: String,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let server = match Server::start(&cli.root, cli.listen, &[&cli.bucket]) {
        Ok(server) => server,
        Err(error) => {
            let _unread = writeln!(std::io::stderr(), "berth-test-s3: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut out = std::io::stdout();
    let _unread = writeln!(
        out,
        "endpoint={} bucket={} region={REGION} admin={ADMIN_KEY}:{ADMIN_SECRET} node={NODE_KEY}:{NODE_SECRET}",
        server.endpoint(),
        cli.bucket
    );
    let _unread = out.flush();
    // Whoever started it holds the other end: when they are gone, so is this.
    let mut sink = [0; 64];
    while matches!(std::io::stdin().read(&mut sink), Ok(read) if read > 0) {}
    ExitCode::SUCCESS
}
