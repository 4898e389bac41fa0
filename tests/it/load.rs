//! The load generator (examples/load): that its counts notice what goes wrong, and that every scenario runs through a relay.

#[allow(dead_code)]
#[path = "../../examples/load/main.rs"]
mod generator;
mod peer;

use clap::Parser;
use generator::{Cli, EXIT_UNUSABLE, Report, Unusable, Verb, exit_code, scenario_run};
use peer::{Fault, Peer};

use super::support::rabbit::Rabbit;
use super::support::relay::Relay;

/// Runs the generator with these words and the arguments that its other options need.
async fn load(words: &str, more: &[String]) -> Result<Report, Unusable> {
    let arguments = ["load", "run"].into_iter().chain(words.split(' ')).chain(more.iter().map(String::as_str));
    let verb = Cli::try_parse_from(arguments).expect("the words are right").verb;
    match verb {
        Verb::Run { scenario, settings } => scenario_run(scenario, &settings).await,
        Verb::Compare(_) => unreachable!("`run` was asked for"),
    }
}

/// Through a peer with this fault: 3 publishers, 3 queues, 20 messages each.
async fn through(fault: Fault) -> Result<Report, Unusable> {
    let peer = Peer::start(fault).await;
    let words = "pipe --publishers 3 --subscribers 3 --messages 20 --warm-up 0 --duration 20 --patience 0.5";
    load(words, &["--url".to_owned(), peer.url()]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faithful_peer_is_whole() {
    let outcome = through(Fault::None).await;
    assert_eq!(exit_code(&outcome), 0, "{outcome:?}");
    let found = outcome.unwrap().integrity;
    assert_eq!((found.sent, found.received), (60, 60), "{found:?}");
}

/// Lost, duplicated, reordered and unknown, of a run that must have failed.
async fn faults_found(fault: Fault) -> [u64; 4] {
    let outcome = through(fault).await;
    assert_eq!(exit_code(&outcome), 1, "{outcome:?}");
    let found = outcome.unwrap().integrity;
    [found.lost, found.duplicated, found.reordered, found.unknown]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_message_is_counted() {
    assert_eq!(faults_found(Fault::Drop(17)).await, [1, 0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_message_is_counted() {
    assert_eq!(faults_found(Fault::Repeat(17)).await, [0, 1, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn swapped_messages_are_counted() {
    assert_eq!(faults_found(Fault::Swap(17)).await, [0, 0, 1, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_body_is_counted() {
    assert_eq!(faults_found(Fault::Spoil(17)).await, [1, 0, 0, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_cut_off_is_counted() {
    let outcome = through(Fault::Close(17)).await;
    assert_eq!(exit_code(&outcome), 1, "{outcome:?}");
    let found = outcome.unwrap();
    assert_eq!(found.integrity.disconnected, 1, "{found:?}");
    assert!(found.remarks[0].starts_with("publisher "), "{found:?}");
}

/// A peer that stands still between two messages for 300 ms makes those late that were due meanwhile, not that one alone.
#[tokio::test(flavor = "multi_thread")]
async fn latency_counts_from_when_a_message_was_due() {
    let peer = Peer::start(Fault::Pause(100)).await;
    let words = "rtt --rate 200 --messages 200 --window 1 --warm-up 0 --duration 20";
    let report = load(words, &["--url".to_owned(), peer.url()]).await.unwrap();
    assert!(report.integrity.is_whole(), "{report:?}");
    // 60 of 200 were due in the pause. A closed loop would see one of them.
    assert!(report.values["p99_ms"] > 200.0 && report.values["max_ms"] >= 290.0, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_unusable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("ws://{}/ws", listener.local_addr().unwrap());
    drop(listener);
    let outcome = load("pipe", &["--url".to_owned(), url]).await;
    assert_eq!(exit_code(&outcome), EXIT_UNUSABLE, "{outcome:?}");
}

/// Every scenario, small, through a relay in front of a real RabbitMQ; and where it can be, at RabbitMQ itself.
#[tokio::test(flavor = "multi_thread")]
async fn every_scenario_is_whole_through_the_relay() {
    let rabbit = Rabbit::shared();
    let relay = Relay::start(rabbit);
    let (ws, wss, amqp) = (relay.ws.clone(), relay.wss.clone(), rabbit.uri());
    let ca = relay.ca.display().to_string();
    let pipe = "pipe --messages 50 --warm-up 0 --duration 60";
    let cases = [
        (pipe.to_owned(), &ws),
        (format!("{pipe} --ack client --body 16384"), &wss),
        (format!("{pipe} --ack client-individual --subscribers 2"), &wss),
        (format!("{pipe} --window 10 --in-flight 0"), &ws),
        (format!("{pipe} --ack client"), &amqp),
        ("fanout --publishers 1 --subscribers 20 --messages 30 --warm-up 0 --duration 60".to_owned(), &wss),
        ("fanout --publishers 1 --subscribers 20 --messages 30 --warm-up 0 --duration 60".to_owned(), &amqp),
        ("receipts --publishers 1 --window 1 --messages 30 --warm-up 0 --duration 60".to_owned(), &ws),
        ("receipts --publishers 1 --window 100 --messages 300 --warm-up 0 --duration 60".to_owned(), &amqp),
        ("rtt --rate 200 --messages 50 --warm-up 0 --duration 60".to_owned(), &wss),
        ("slow --publishers 1 --rate 100 --subscribers 3 --body 4096 --warm-up 0.1 --duration 0.5".to_owned(), &wss),
        ("connect --sessions 10".to_owned(), &wss),
        ("idle --sessions 10 --topics shared --warm-up 0 --duration 0.2".to_owned(), &ws),
        ("mixed --sessions 10 --messages 30 --warm-up 0 --duration 60".to_owned(), &wss),
    ];
    for (words, url) in cases {
        let mut more = vec!["--url".to_owned(), url.clone(), "--ca".to_owned(), ca.clone()];
        more.extend(["--broker".to_owned(), amqp.clone(), "--pid".to_owned(), format!("self={}", std::process::id())]);
        let outcome = load(&words, &more).await;
        assert_eq!(exit_code(&outcome), 0, "{words}: {outcome:?}");
        let report = outcome.unwrap();
        assert!(report.processes.contains_key("self"), "{words}: {report:?}");
        let of_messages = !words.starts_with("connect") && !words.starts_with("idle");
        assert!(!of_messages || report.integrity.received > 0, "{words}: {report:?}");
    }
    let left = rabbit.ctl(&["list_queues", "--no-table-headers", "name"]);
    assert!(!left.contains("load-"), "a run removes its queues: {left}");
}
