//! The program as its callers meet it: started with port 0, found by its port file, asked over HTTP, ended by SIGTERM.

#![expect(clippy::unwrap_used, reason = "a panic is the report of a test, also in its helpers")]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// Bound on every wait of these tests.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// A model that is killed when it is dropped.
struct Model {
    child: Child,
    address: String,
    _folder: tempfile::TempDir,
}

fn wait_until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < end, "{what}: not in time");
        std::thread::sleep(LOOK);
    }
}

fn start_with(folder: &Path, more: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth-fake-model"));
    command.args(["--listen", "127.0.0.1:0", "--port-file"]).arg(folder.join("port")).args(more);
    command.stdout(Stdio::null()).spawn().unwrap()
}

impl Model {
    fn start(more: &[&str]) -> Model {
        let folder = tempfile::tempdir().unwrap();
        let child = start_with(folder.path(), more);
        // Whole or not at all: the first text that is seen is the whole text.
        let text = wait_until("the port file", || std::fs::read_to_string(folder.path().join("port")).ok());
        let address = text.strip_suffix('\n').expect("a whole line").to_owned();
        Model { child, address, _folder: folder }
    }

    async fn send(&self, method: Method, path: &str, body: impl Into<Bytes>) -> http::Response<Incoming> {
        let stream = TcpStream::connect(&self.address).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::task::spawn_local(connection);
        let request = Request::builder().method(method).uri(path).header("host", &self.address);
        let request = request.body(Full::new(body.into())).unwrap();
        tokio::time::timeout(PATIENCE, sender.send_request(request)).await.unwrap().unwrap()
    }

    async fn call(&self, method: Method, path: &str, body: impl Into<Bytes>) -> (StatusCode, String) {
        let (head, body) = self.send(method, path, body).await.into_parts();
        let bytes = tokio::time::timeout(PATIENCE, body.collect()).await.unwrap().unwrap().to_bytes();
        (head.status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    async fn chat(&self, body: Value) -> (StatusCode, String) {
        self.call(Method::POST, "/v1/chat/completions", body.to_string()).await
    }

    async fn calls(&self) -> Value {
        let (status, body) = self.call(Method::GET, "/calls", "").await;
        assert_eq!(status, StatusCode::OK);
        serde_json::from_str(&body).unwrap()
    }

    async fn wait_for_calls(&self, wanted: Value) {
        let seen = async {
            while self.calls().await != wanted {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(PATIENCE, seen).await.is_err() {
            panic!("wanted {wanted}, have {}", self.calls().await);
        }
    }

    fn term(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    fn exit_code(&mut self) -> Option<i32> {
        wait_until("the end", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // Already ended is as good as killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a test with the client's connections on its own thread.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, test);
}

fn conversation() -> Value {
    json!([
        { "role": "system", "content": "You are terse." },
        { "role": "user", "content": "the word is heliotrope" },
        { "role": "assistant", "content": "noted" },
        { "role": "user", "content": [{ "type": "text", "text": "and what was it" }] },
    ])
}

const SAID: &str = "You said: \"the word is heliotrope\" / \"and what was it\"";

#[test]
fn a_whole_answer_says_back_what_the_user_said() {
    run(async {
        let model = Model::start(&[]);
        let (status, body) = model.chat(json!({ "model": "m1", "messages": conversation() })).await;
        assert_eq!(status, StatusCode::OK);
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["object"], "chat.completion");
        assert_eq!(answer["model"], "m1");
        assert_eq!(answer["choices"][0]["message"], json!({ "role": "assistant", "content": SAID }));
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        let usage = &answer["usage"];
        let count = |name: &str| usage[name].as_u64().unwrap();
        assert!(count("prompt_tokens") > 0 && count("completion_tokens") > 0);
        assert_eq!(count("total_tokens"), count("prompt_tokens") + count("completion_tokens"));
        let (status, body) = model.call(Method::GET, "/v1/models", "").await;
        assert_eq!(status, StatusCode::OK);
        let models: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(models["data"][0]["object"], "model");
    });
}

/// The JSON of each event, checked to be framed as events and to end with the end mark.
fn chunks(body: &str) -> Vec<Value> {
    let events = body.strip_suffix("\n\n").expect("the last event ends with an empty line").split("\n\n");
    let mut data: Vec<&str> = events.map(|event| event.strip_prefix("data: ").unwrap()).collect();
    assert_eq!(data.pop(), Some("[DONE]"));
    data.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
}

#[test]
fn a_streamed_answer_is_the_same_in_chunks_with_usage_when_asked_for() {
    run(async {
        let model = Model::start(&[]);
        for with_usage in [false, true] {
            let mut request = json!({ "model": "m1", "messages": conversation(), "stream": true });
            if with_usage {
                request["stream_options"] = json!({ "include_usage": true });
            }
            let (status, body) = model.chat(request).await;
            assert_eq!(status, StatusCode::OK);
            let mut chunks = chunks(&body);
            assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk"));
            assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"]));
            if with_usage {
                let last = chunks.pop().unwrap();
                assert_eq!(last["choices"], json!([]));
                assert!(last["usage"]["total_tokens"].as_u64().unwrap() > 0);
                assert!(chunks.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)));
            } else {
                assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
            }
            let end = chunks.pop().unwrap();
            assert_eq!(end["choices"][0]["finish_reason"], "stop");
            assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
            assert!(chunks.iter().all(|chunk| chunk["choices"][0]["finish_reason"].is_null()));
            let text = |chunk: &Value| chunk["choices"][0]["delta"]["content"].as_str().unwrap().to_owned();
            assert!(chunks.len() > 2, "one piece is no stream");
            assert_eq!(chunks.iter().map(text).collect::<String>(), SAID);
        }
        assert_eq!(model.calls().await, json!({ "begun": 2, "finished": 2, "cut": 0 }));
    });
}

#[test]
fn a_slow_completion_speaks_meanwhile_and_takes_the_time_that_was_asked_for() {
    run(async {
        let model = Model::start(&[]);
        let started = Instant::now();
        let request = json!({
            "model": "m1", "stream": true, "messages": [{ "role": "user", "content": "slow:1200" }],
        });
        let reply = model.send(Method::POST, "/v1/chat/completions", request.to_string()).await;
        let mut body = reply.into_body();
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(first.starts_with(b"data: {"));
        assert_eq!(model.calls().await, json!({ "begun": 1, "finished": 0, "cut": 0 }));
        let rest = tokio::time::timeout(PATIENCE, body.collect()).await.unwrap().unwrap().to_bytes();
        assert!(started.elapsed() >= Duration::from_millis(1200));
        let text = String::from_utf8([first.as_ref(), rest.as_ref()].concat()).unwrap();
        let said: Vec<String> = chunks(&text)
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
            .collect();
        assert_eq!(said.concat(), ". You said: \"slow:1200\"");
        model.wait_for_calls(json!({ "begun": 1, "finished": 1, "cut": 0 })).await;
    });
}

#[test]
fn a_completion_whose_client_goes_away_is_counted_as_cut() {
    run(async {
        let model = Model::start(&[]);
        for (stream, cut) in [(true, 1), (false, 2)] {
            let request = json!({
                "model": "m1", "stream": stream, "messages": [{ "role": "user", "content": "slow:600000" }],
            });
            let asking = model.chat(request);
            tokio::select! {
                _ = asking => panic!("answered ten minutes early"),
                () = model.wait_for_calls(json!({ "begun": cut, "finished": 0, "cut": cut - 1 })) => {}
            }
            model.wait_for_calls(json!({ "begun": cut, "finished": 0, "cut": cut })).await;
        }
    });
}

#[test]
fn the_delay_of_the_command_line_comes_before_each_answer() {
    run(async {
        let model = Model::start(&["--delay-ms", "200", "--chunk-ms", "100"]);
        let started = Instant::now();
        // 54 characters are two pieces: one delay and one pause.
        model.chat(json!({ "model": "m1", "messages": conversation() })).await;
        assert!(started.elapsed() >= Duration::from_millis(300));
    });
}

#[test]
fn what_is_no_completion_is_refused_in_the_words_of_the_api() {
    run(async {
        let model = Model::start(&[]);
        let cases = [
            (Method::POST, "/v1/chat/completions", Bytes::from_static(b"{"), StatusCode::BAD_REQUEST),
            (
                Method::POST,
                "/v1/chat/completions",
                Bytes::from_static(b"{\"model\":\"m1\"}"),
                StatusCode::BAD_REQUEST,
            ),
            (Method::GET, "/v1/chat/completions", Bytes::new(), StatusCode::METHOD_NOT_ALLOWED),
            (Method::POST, "/v1/models", Bytes::new(), StatusCode::METHOD_NOT_ALLOWED),
            (Method::GET, "/v1/embeddings", Bytes::new(), StatusCode::NOT_FOUND),
        ];
        for (method, path, body, wanted) in cases {
            let (status, body) = model.call(method, path, body).await;
            assert_eq!(status, wanted, "{path}");
            let error: Value = serde_json::from_str(&body).unwrap();
            assert!(error["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
        }
        assert_eq!(model.calls().await, json!({ "begun": 0, "finished": 0, "cut": 0 }));
    });
}

#[test]
fn a_body_above_the_bound_is_refused_and_one_below_it_is_read() {
    run(async {
        let model = Model::start(&[]);
        let chat = |bytes: usize| json!({ "model": "m1", "messages": [{ "role": "user", "content": "x".repeat(bytes) }] });
        let (status, _) = model.chat(chat(15 * 1024 * 1024)).await;
        assert_eq!(status, StatusCode::OK);
        let (status, _) = model.chat(chat(16 * 1024 * 1024)).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    });
}

#[test]
fn sigterm_lets_an_answer_under_way_finish_and_ends_with_0() {
    run(async {
        let mut model = Model::start(&[]);
        // An idle connection that nobody uses must not hold up the end.
        let _idle = TcpStream::connect(&model.address).await.unwrap();
        let request = json!({ "model": "m1", "messages": [{ "role": "user", "content": "slow:700" }] });
        let (status, body) = {
            let under_way = async {
                model.wait_for_calls(json!({ "begun": 1, "finished": 0, "cut": 0 })).await;
                model.term();
            };
            let (answer, ()) = tokio::join!(model.chat(request), under_way);
            answer
        };
        assert_eq!(status, StatusCode::OK);
        assert!(body.contains("slow:700"), "{body}");
        assert_eq!(model.exit_code(), Some(0));
    });
}

#[test]
fn an_address_in_use_ends_the_program_and_leaves_no_port_file() {
    let model = Model::start(&[]);
    let folder = tempfile::tempdir().unwrap();
    let port_file = folder.path().join("port");
    let ended = Command::new(env!("CARGO_BIN_EXE_berth-fake-model"))
        .args(["--listen", &model.address, "--port-file"])
        .arg(&port_file)
        .output()
        .unwrap();
    assert!(!ended.status.success());
    assert!(String::from_utf8_lossy(&ended.stderr).contains(&model.address));
    assert!(!port_file.exists());
}
