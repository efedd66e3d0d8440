//! Logging in and out.

use berth_daemon::config::Scheme;
use berth_daemon::exit::Exit;
use berth_ingress::config::Config;
use berth_ingress::daemon;
use berth_shared::door::{RouteState, ToIngress};
use berth_shared::time::UnixMs;
use http::{Method, Response};
use hyper::body::Incoming;

use crate::world::{Cell, World, body, empty, get, route, text, ticket, wall_in, within};

async fn redeem(world: &World, slug: &str, ticket: &str) -> Response<Incoming> {
    let request = get(slug, "/.berth/login")
        .method(Method::POST)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(text(format!("t={ticket}")))
        .unwrap();
    world.ask(request).await
}

/// Logs in with a link of its own; gives the cookie as a browser sends it.
pub(crate) async fn log_in(world: &World, seed: u8, slug: &str, nonce: u8) -> String {
    let answer = redeem(world, slug, &ticket(seed, nonce, wall_in(60))).await;
    assert_eq!((answer.status().as_u16(), answer.headers()["location"].to_str().unwrap()), (303, "/"));
    let cookie = answer.headers()["set-cookie"].to_str().unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Lax"));
    cookie.split(';').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_link_works_once_by_its_button_also_across_a_restart() {
    let mut world = World::start(|_| {}).await;
    let target = Cell::start(&world.tasks).await;
    let link = world.link(vec![route(1, "demo", target.up()), route(2, "other", target.up())]).await;
    assert_eq!(world.port_file().trim(), world.running.address.to_string());
    let link_text = ticket(1, 1, wall_in(60));
    let page = || get("demo", &format!("/.berth/login?t={link_text}")).header("accept", "text/html");
    // Whoever looks at the link first, and however often, does not use it up.
    for _ in 0..3 {
        let answer = world.ask(page().body(empty()).unwrap()).await;
        assert_eq!(answer.status(), 200);
        assert!(answer.headers().get("set-cookie").is_none());
        let html = body(answer).await;
        assert!(html.contains("method=\"post\"") && html.contains(&link_text) && !html.contains("<script"));
    }
    let cookie = log_in(&world, 1, "demo", 1).await;
    assert_eq!(redeem(&world, "demo", &link_text).await.status(), 410);
    let as_user = |slug: &str| get(slug, "/me").header("cookie", &cookie).body(empty()).unwrap();
    assert_eq!(world.ask(as_user("demo")).await.status(), 200);
    assert_eq!(world.ask(as_user("other")).await.status(), 401);

    drop(link);
    world.restart().await;
    let target = Cell::start(&world.tasks).await;
    let mut link = world.link(vec![route(1, "demo", target.up())]).await;
    let answer = redeem(&world, "demo", &link_text).await;
    assert_eq!(answer.status(), 410);
    assert!(body(answer).await.contains("link_used"));
    assert_eq!(world.ask(as_user("demo")).await.status(), 200, "the session outlives the process");

    let mut void = route(1, "demo", target.up());
    void.sessions_valid_from = wall_in(1);
    link.send(&ToIngress::Set(void)).await;
    within("the session to be void", async { while world.ask(as_user("demo")).await.status() != 401 {} })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_press_the_button_at_once_one_gets_in() {
    let world = World::start(|_| {}).await;
    let _link = world.link(vec![route(1, "demo", RouteState::Down)]).await;
    let link_text = ticket(1, 5, wall_in(60));
    let answers = futures_util::future::join_all((0..8).map(|_| redeem(&world, "demo", &link_text))).await;
    let statuses: Vec<u16> = answers.iter().map(|answer| answer.status().as_u16()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 303).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 410).count(), 7, "{statuses:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_that_are_expired_forged_cut_or_somebody_elses_say_so() {
    let world = World::start(|_| {}).await;
    let _link = world.link(vec![route(1, "demo", RouteState::Down)]).await;
    let good = ticket(1, 1, wall_in(60));
    let altered = format!("{}{}", if good.starts_with('A') { 'B' } else { 'A' }, &good[1..]);
    for (link, status, code) in [
        (ticket(1, 2, wall_in(-1)), 410, "link_expired"),
        (ticket(1, 2, UnixMs(0)), 410, "link_expired"),
        (altered, 403, "link_forged"),
        (ticket(2, 3, wall_in(60)), 403, "link_forged"),
        (good[..20].to_owned(), 400, "link_malformed"),
        ("%22%3E".to_owned(), 400, "link_malformed"),
        ("A".repeat(5000), 413, "body_too_large"),
    ] {
        let answer = redeem(&world, "demo", &link).await;
        assert_eq!(answer.status(), status, "{code}");
        assert!(answer.headers().get("set-cookie").is_none());
        assert!(body(answer).await.contains(code), "{code}");
    }
    // None of it used the good one up.
    assert_eq!(redeem(&world, "demo", &good).await.status(), 303);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logging_out_ends_the_session_its_sockets_and_what_the_browser_keeps() {
    let world = World::start(|config| config.public_scheme = Scheme::Https).await;
    let target = Cell::start(&world.tasks).await;
    let _link = world.link(vec![route(1, "demo", target.up())]).await;
    let cookie = log_in(&world, 1, "demo", 1).await;
    let mut socket = crate::inside::open_socket_as(&world, "demo", "cookie", &cookie).await;
    let out = |origin| {
        get("demo", "/.berth/logout").method(Method::POST).header("cookie", &cookie).header("origin", origin)
    };
    let foreign = world.ask(out("https://evil.localhost").body(empty()).unwrap()).await;
    assert_eq!(foreign.status(), 403);
    let answer = world.ask(out("https://demo.localhost").body(empty()).unwrap()).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["clear-site-data"], "\"cache\", \"storage\"");
    let cleared = answer.headers()["set-cookie"].to_str().unwrap();
    assert!(cleared.contains("Max-Age=0") && cleared.contains("Secure"));
    crate::inside::heard(&mut socket, &["hello"]).await;
    crate::inside::hears_the_end(&mut socket, 1008).await;
    let again = world.ask(get("demo", "/").header("cookie", &cookie).body(empty()).unwrap()).await;
    assert_eq!(again.status(), 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_folder_that_cannot_be_used_is_told_before_anything_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let config = Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        metrics_listen: "127.0.0.1:0".parse().unwrap(),
        state_dir: file.join("state"),
        ..Config::default()
    };
    let error =
        daemon::start(config, berth_daemon::listen::Passed::none(), &berth_daemon::tasks::Tasks::new())
            .await
            .unwrap_err();
    assert_eq!(error.exit(), Exit::CantCreate);
}
