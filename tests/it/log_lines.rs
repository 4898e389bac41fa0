//! The log, when standard error does not take it: clients notice nothing, and what is missing is counted.

use std::fs::OpenOptions;
use std::io::Read;
use std::process::Command;
use std::time::Instant;

use crate::support::condition::{PATIENCE, eventually};
use crate::support::process::{Process, RELAY, Ready, get};
use crate::support::rabbit::{Rabbit, unique};
use crate::support::scratch::Scratch;
use crate::support::stomp::Client;

const SETTINGS: &str = "[log]\nformat = \"json\"\nlevel = \"trace\"\n";

/// A relay that logs much, to what the shell makes of `2>TARGET`.
fn relay(scratch: &Scratch, target: &str) -> (Process, Ready) {
    let file = scratch.write("relay.toml", SETTINGS);
    let broker = Rabbit::shared().uri();
    let redirected = ["sh", "-c", "target=$1; shift; exec \"$@\" 2>\"$target\"", "sh", target, RELAY];
    let arguments =
        ["serve", "--config", file.to_str().unwrap(), "--broker", &broker, "--listen", "ws://127.0.0.1:0/ws"];
    let mut process = Process::start_by(&[&redirected[..], &arguments, &["--admin", "127.0.0.1:0"]].concat(), &[]);
    let ready = process.ready();
    (process, ready)
}

async fn lost(ready: &Ready) -> u64 {
    let page = get(ready.admin, "/metrics").await.body;
    let line = page.lines().find_map(|line| line.strip_prefix("stomp_relay_log_lines_lost_total "));
    line.and_then(|number| number.parse().ok()).unwrap()
}

async fn work(client: &mut Client, topic: &str) {
    client.send(&format!("SEND\ndestination:{topic}\n\nhello")).await;
    client.message("hello").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_who_does_not_read_the_log() {
    let scratch = Scratch::new();
    let pipe = scratch.path("log");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("mkfifo can be run").success());
    // Open for both, so that it has a reader, which does not read.
    let mut reader = OpenOptions::new().read(true).write(true).open(&pipe).expect("it opens");
    let (_process, ready) = relay(&scratch, pipe.to_str().unwrap());
    let (mut client, topic) = (Client::log_in(&ready.urls[0]).await.expect("let in"), unique("/topic/log"));
    client.subscribe(&format!("id:0\ndestination:{topic}")).await;
    // Each newcomer is worth some lines.
    let end = Instant::now() + PATIENCE;
    while lost(&ready).await < 20 {
        assert!(Instant::now() < end, "the pipe is not full");
        Client::log_in(&ready.urls[0]).await.expect("let in").disconnect().await;
        work(&mut client, &topic).await;
    }
    // Somebody reads again.
    let mut text = Vec::new();
    let told = b"standard error did not take all lines of the log";
    let reading = tokio::task::spawn_blocking(move || {
        let mut piece = [0; 64 * 1024];
        while !text.windows(told.len()).any(|part| part == told) || !text.ends_with(b"\n") {
            let count = reader.read(&mut piece).expect("it can be read");
            text.extend_from_slice(&piece[..count]);
        }
        (text, reader)
    });
    let (text, _reader) = tokio::time::timeout(PATIENCE, reading).await.expect("it is told").expect("ran");
    for line in String::from_utf8(text).expect("text").lines() {
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(line);
        assert!(parsed.is_ok(), "{line}");
    }
    work(&mut client, &topic).await;
    client.disconnect().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_that_a_full_disk_refuses_are_counted() {
    let scratch = Scratch::new();
    let (_process, ready) = relay(&scratch, "/dev/full");
    let (mut client, topic) = (Client::log_in(&ready.urls[0]).await.expect("let in"), unique("/topic/log"));
    client.subscribe(&format!("id:0\ndestination:{topic}")).await;
    work(&mut client, &topic).await;
    eventually("lines are lost", async || lost(&ready).await > 0).await;
    work(&mut client, &topic).await;
    client.disconnect().await;
}
